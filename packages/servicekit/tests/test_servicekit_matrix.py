"""The whole permission matrix: every RPC of every contract, called on a real server by every role and service.

What is expected stands in docs/guide-identity.md, for people; what happens comes from the options in the protos.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from tinymlaas.type.v1 import access_pb2
from tinymlaas_servicekit import Call, Principal, connect
from tinymlaas_servicekit._calls import Chain
from tinymlaas_servicekit.access import contract_services, permissions_of, role_name
from tinymlaas_servicekit.interceptors import AccessInterceptor, ErrorInterceptor

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guide-identity.md"
ROLES = {role_name(role): role for role in access_pb2.Role.values() if role}
SERVICES = ("gateway", "lwm2m-bridge", "dtls-front")
OPERATIONS = ("GetOperation", "ListOperations", "WaitOperation", "CancelOperation", "DeleteOperation")


def _methods() -> dict[str, MethodDescriptor | None]:
    """Every RPC by full name; those of google.longrunning without a descriptor here."""
    ours = {
        f"{service.full_name}/{method.name}": method for service in contract_services() for method in service.methods
    }
    return {**ours, **{f"google.longrunning.Operations/{name}": None for name in OPERATIONS}}


METHODS = _methods()


class _Callers:
    """Callers by what they show: "ROLE@PROJECT" or a service's name."""

    async def authenticate(self, call: Call) -> Principal:
        who = call.metadata["authorization"].removeprefix("Bearer ")
        role, _, project = who.partition("@")
        if not project:
            return Principal(f"service:{who}", "mtls", service=who)
        return Principal(who, "test", {project: permissions_of([ROLES[role]])})


class _Everything(grpc.GenericRpcHandler):
    """Serves every RPC of every contract with an empty answer."""

    def service(self, handler_call_details: Any) -> Any:
        method = METHODS[handler_call_details.method.lstrip("/")]
        kind = operations_pb2.GetOperationRequest if method is None else GetMessageClass(method.input_type)
        streams = (False, False) if method is None else (method.client_streaming, method.server_streaming)

        async def read(request: Any) -> None:
            if streams[0]:
                async for _ in request:
                    pass

        async def one(request: Any, context: Any) -> empty_pb2.Empty:
            await read(request)
            return empty_pb2.Empty()

        async def many(request: Any, context: Any) -> AsyncIterator[empty_pb2.Empty]:
            await read(request)
            yield empty_pb2.Empty()

        shape = f"{'stream' if streams[0] else 'unary'}_{'stream' if streams[1] else 'unary'}_rpc_method_handler"
        return getattr(grpc, shape)(
            many if streams[1] else one, request_deserializer=kind.FromString, response_serializer=lambda m: b""
        )


def _about(descriptor: Descriptor, name: str) -> Any:
    """A message that names `name` in its first string, however deep; empty where it has none."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
            setattr(message, field.name, name)
            return message
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.full_name.startswith("tinymlaas."):
            if not field.is_repeated:
                getattr(message, field.name).CopyFrom(_about(field.message_type, name))
                return message
            getattr(message, field.name).append(_about(field.message_type, name))
            return message
    return message


async def _outcome(channel: grpc.aio.Channel, name: str, who: str, project: str) -> str:
    method = METHODS[name]
    resource = f"projects/{project}/things/1"
    if method is None:
        request: Any = operations_pb2.GetOperationRequest(name=resource)
    else:
        request = _about(method.input_type, resource)
    call = channel.stream_stream if method is not None and method.client_streaming else channel.unary_stream
    sent = iter([request]) if method is not None and method.client_streaming else request
    raw = call(f"/{name}", request_serializer=lambda message: message.SerializeToString())
    try:
        async for _ in raw(sent, metadata=(("authorization", f"Bearer {who}"),), timeout=60):
            pass
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(interceptors=[Chain([ErrorInterceptor(), AccessInterceptor(_Callers())])])
    server.add_generic_rpc_handlers((_Everything(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with connect(f"127.0.0.1:{port}", retry=False) as opened:
        yield opened
    await server.stop(None)


async def _table(channel: grpc.aio.Channel) -> list[str]:
    callers = [f"{role}@p" for role in ROLES] + list(SERVICES)
    rows = []
    for name in METHODS:
        outcomes = await asyncio.gather(*(_outcome(channel, name, who, "p") for who in callers))
        assert set(outcomes) <= {"OK", "PERMISSION_DENIED"}, (name, outcomes)
        everywhere = await _outcome(channel, name, "admin@-", "p")
        cells = ["yes" if outcome == "OK" else "" for outcome in outcomes]
        if everywhere == "OK" and not any(cells[: len(ROLES)]):
            place = list(ROLES).index("admin")
            cells[place] = "everywhere"
        rows.append(f"| {name.removeprefix('tinymlaas.')} | {' | '.join(cells)} |")
    return rows


def _documented() -> list[str]:
    lines = GUIDE.read_text(encoding="utf-8").splitlines()
    start = lines.index("<!-- the permission matrix; tests compare it with what servers do -->")
    return [line for line in lines[start:] if line.startswith("| ") and "/" in line.split("|")[1]]


async def test_every_rpc_admits_the_roles_and_services_that_the_guide_says(channel: grpc.aio.Channel) -> None:
    assert await _table(channel) == _documented()


async def test_no_role_reaches_into_another_project(channel: grpc.aio.Channel) -> None:
    """AC-RPC-002: what is admitted for a role of another project is only what is asked of no project."""
    admitted = {name for name in METHODS for role in ROLES if await _outcome(channel, name, f"{role}@q", "p") == "OK"}
    assert admitted == {"tinymlaas.registry.v1.Plugins/GetPlugin", "tinymlaas.registry.v1.Plugins/ListPlugins"}


async def test_an_rpc_that_declares_nothing_is_refused_to_everybody(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AC-RPC-001"""
    from tinymlaas_servicekit import interceptors

    name = "tinymlaas.registry.v1.Models/GetModel"
    rest = {method: access for method, access in interceptors.access_table().items() if method != f"/{name}"}
    monkeypatch.setattr(interceptors, "access_table", lambda: rest)
    for who in ("admin@-", "gateway"):
        assert await _outcome(channel, name, who, "p") == "PERMISSION_DENIED"
