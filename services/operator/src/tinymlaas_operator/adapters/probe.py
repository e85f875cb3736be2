"""Asks a plugin who it is, by the contract's PluginIdentity service."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from tinymlaas.plugin.v1 import identity_pb2, identity_pb2_grpc
from tinymlaas_servicekit import FailedPrecondition, TlsFiles, Unavailable, adapt, connect

from ..core.objects import object_name
from ..core.spec import Identity, PluginSpec

PROBE_SECONDS = 5.0
MAX_TEXT = 200
ROLE = "role."


class GrpcProber:
    """A Prober over gRPC; a new connection each time, so that a replaced container is what answers.

    With `tls` only a plugin is asked that proves by its certificate that it is the one of its resource.
    """

    def __init__(self, tls: TlsFiles | None = None) -> None:
        self._tls = tls

    async def ask(self, spec: PluginSpec, address: str, token: str) -> Identity:
        """See Prober; an answer with texts longer than the contract allows is refused as PLUGIN_IDENTITY_INVALID."""
        channel = connect(
            address, token, tls=self._tls, peer=object_name(spec) if self._tls is not None else "", retry=False
        )
        try:
            stub: Any = identity_pb2_grpc.PluginIdentityStub(channel)
            info = await stub.GetPluginInfo(identity_pb2.GetPluginInfoRequest(), timeout=PROBE_SECONDS)
            told = await stub.GetPluginCapabilities(identity_pb2.GetPluginCapabilitiesRequest(), timeout=PROBE_SECONDS)
            probe = await stub.Probe(identity_pb2.ProbeRequest(), timeout=PROBE_SECONDS)
        except grpc.RpcError as error:
            raise (adapt(error) or Unavailable("the plugin does not answer")) from error
        finally:
            await channel.close()
        if not info.name or max(map(len, (info.name, info.vendor_version, info.contract_version))) > MAX_TEXT:
            raise FailedPrecondition("the plugin's identity breaks the contract", "PLUGIN_IDENTITY_INVALID")
        roles = sorted(each.removeprefix(ROLE) for each in told.capabilities if each.startswith(ROLE))
        return Identity(info.name, info.vendor_version, info.contract_version, tuple(roles), bool(probe.ready))
