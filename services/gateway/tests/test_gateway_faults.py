"""Plugins that lie, crash, hang, flood or answer garbage: named, counted, and the suite goes on."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from gateway_fakes import PROJECT, toy_target
from gateway_world import World, until
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import struct_pb2
from test_gateway_builds import Build, Candidate, finished, request, started
from test_gateway_deployments import model_in

from tinymlaas.gateway.v1 import builds_pb2, quarantine_pb2, quarantine_pb2_grpc, routing_pb2
from tinymlaas.registry.v1 import models_pb2, models_pb2_grpc, modules_pb2, modules_pb2_grpc, plugins_pb2
from tinymlaas_gateway.core.objections import error_info
from tinymlaas_servicekit import connect, from_rpc_error

MODES = {
    "lies-arena": "CLAIM_REFUTED",
    "lies-numerics": "CLAIM_REFUTED",
    "lies-certificate": "CERTIFICATE_INVALID",
    "crashes": "COMPILER_CRASH",
    "hangs": "PLUGIN_TIMEOUT",
    "floods": "PLUGIN_PROTOCOL",
    "garbage": "PLUGIN_PROTOCOL",
}


def reasons(build: builds_pb2.Build) -> dict[str, str]:
    found = {}
    for item in build.candidates:
        name = item.plugin.removeprefix("plugins/io.example.")
        info = error_info(item.error)
        if item.state == Candidate.STATE_SEALED:
            found[name] = "SEALED"
        elif item.state == Candidate.STATE_REJECTED:
            found[name] = item.verdict.objections[0].reason
        else:
            found[name] = info.reason if info is not None else item.error.message
    return found


async def test_faulty_compilers_fail_by_name_while_the_honest_one_wins(world: World) -> None:
    """DO-EVID-001: of what a certificate that does not hold comes with, nothing is sealed."""
    for mode in MODES:
        world.add_plugin(mode, roles="compiler", mode=mode)
    world.add_plugin("rejects", roles="compiler", mode="rejects")
    world.add_plugin("honest", roles="compiler")
    world.add_plugin("witness", roles="profiler")
    await world.start_gateway(TINYMLAAS_COMPILE_SECONDS="15", TINYMLAAS_COMPILES_AT_ONCE="3")
    build = started(await world.builds.CreateBuild(request(model_in(world))))
    build = await finished(world, build.name)
    assert build.state == Build.STATE_SUCCEEDED, build.error
    assert reasons(build) == {**MODES, "rejects": "OP_UNSUPPORTED", "honest": "SEALED"}
    assert len(world.registry.modules) == 1
    liars = {f"plugins/io.example.lies-{what}" for what in ("arena", "numerics", "certificate")}
    await until(
        lambda: {name for name, item in world.registry.plugins.items() if item.refuted_claims == 1} == liars,
        "refuted claims are on record",
    )


async def test_the_third_refuted_claim_puts_a_plugin_in_quarantine(world: World) -> None:
    world.add_plugin("liar", roles="compiler", mode="lies-arena")
    world.add_plugin("witness", roles="profiler")
    await world.start_gateway()
    for index in range(3):
        model = model_in(world, bytes([index + 1]) + b"model")
        build = await finished(world, started(await world.builds.CreateBuild(request(model))).name)
        assert build.state == Build.STATE_FAILED
        assert "arena_bytes" in build.error.message
    model = model_in(world, b"\x09model")
    build = await finished(world, started(await world.builds.CreateBuild(request(model))).name)
    assert reasons(build) == {"liar": "PLUGIN_QUARANTINED"}
    assert world.registry.plugins["plugins/io.example.liar"].state == plugins_pb2.Plugin.STATE_QUARANTINED
    world.processes["gateway"].kill()
    await world.start_gateway()
    build = await finished(world, started(await world.builds.CreateBuild(request(model, objective=2))).name)
    assert reasons(build) == {"liar": "PLUGIN_QUARANTINED"}, "a restart lifts no quarantine"


async def test_an_administrator_lets_a_plugin_out_of_quarantine(world: World) -> None:
    """AC-QTN-001, AC-QTN-002"""
    world.add_plugin("liar", roles="compiler", mode="lies-arena")
    world.add_plugin("witness", roles="profiler")
    await world.start_gateway()

    async def tried(index: int) -> str:
        model = model_in(world, bytes([index]) + b"model")
        return reasons(await finished(world, started(await world.builds.CreateBuild(request(model))).name))["liar"]

    def release(**fields: str) -> quarantine_pb2.ReleasePluginRequest:
        plugin = world.registry.plugins["plugins/io.example.liar"]
        known = {"name": plugin.name, "vendor_version": plugin.info.vendor_version, "reason": "the witness was wrong"}
        return quarantine_pb2.ReleasePluginRequest(**{**known, **fields})

    refuted = [await tried(index) for index in range(1, 5)]
    assert refuted[3] == "PLUGIN_QUARANTINED" not in refuted[:3]
    stub = quarantine_pb2_grpc.QuarantineStub(world.channel)
    for fields, reason in (
        ({"name": "plugins/io.example.other"}, "NOT_FOUND"),
        ({"vendor_version": "9"}, "VERSION_MISMATCH"),
        ({"reason": ""}, "FIELD_INVALID"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            await stub.ReleasePlugin(release(**fields))
        assert from_rpc_error(caught.value).reason == reason
    plugin = await stub.ReleasePlugin(release())
    assert (plugin.state, plugin.refuted_claims) == (plugins_pb2.Plugin.STATE_READY, 0)
    assert await stub.ReleasePlugin(release()) == plugin, "repeating it does no harm"
    entry = next(item for item in world.registry.audit if item.method.endswith("ReleasePlugin") and item.code == "OK")
    assert "the witness was wrong" in entry.request
    again = [await tried(index) for index in range(5, 9)]
    assert again == refuted, "it is counted anew, and three are too many again"


async def test_a_plugin_killed_while_compiling_is_tried_again_when_it_is_back(world: World) -> None:
    world.add_plugin("compiler", roles="compiler", seconds="1")
    world.add_plugin("witness", roles="profiler")
    await world.start_gateway()
    build = started(await world.builds.CreateBuild(request(model_in(world))))
    await until(lambda: world.counted("io.example.compiler compile") == 1, "compiling")
    world.processes["compiler"].kill()
    world.add_plugin("compiler", roles="compiler")
    build = await finished(world, build.name)
    assert reasons(build) == {"compiler": "SEALED"}


async def test_a_compiler_is_never_its_own_witness(world: World) -> None:
    world.add_plugin("both", roles="compiler,profiler")
    await world.start_gateway()
    build = await finished(world, started(await world.builds.CreateBuild(request(model_in(world)))).name)
    assert reasons(build) == {"both": "NO_PROFILER"}


async def test_a_known_build_is_answered_at_once_and_cancel_watch_list_and_operations_work(world: World) -> None:
    world.add_plugin("compiler", roles="compiler,importer")
    world.add_plugin("witness", roles="profiler")
    await world.start_gateway()
    model = world.registry.add_model("toy", b"\x05onnx", 1)
    first = await finished(world, started(await world.builds.CreateBuild(request(model))).name)
    assert first.state == Build.STATE_SUCCEEDED, reasons(first)
    derived = [item for item in world.registry.versions.values() if item.derived_from == model]
    assert [item.derived_by for item in derived] == ["io.example.compiler 1.0"]

    operation = await world.builds.CreateBuild(request(model))
    second = Build()
    assert operation.done
    assert operation.response.Unpack(second)
    assert second.cached
    assert second.module == first.module
    assert second.name != first.name
    assert world.counted("io.example.compiler compile") == 1

    other = await finished(world, started(await world.builds.CreateBuild(request(model, objective=3))).name)
    assert other.module == first.module
    assert world.counted("io.example.compiler compile") == 1, "the candidate's own result is known"

    page = await world.builds.ListBuilds(builds_pb2.ListBuildsRequest(parent=PROJECT, page_size=2))
    assert [item.name for item in page.builds] == [other.name, second.name]
    rest = await world.builds.ListBuilds(
        builds_pb2.ListBuildsRequest(parent=PROJECT, page_size=2, page_token=page.next_page_token)
    )
    assert [item.name for item in rest.builds] == [first.name]

    operations = operations_pb2_grpc.OperationsStub(world.channel)
    again = await operations.GetOperation(operations_pb2.GetOperationRequest(name=operation.name))
    assert (again.name, again.done) == (operation.name, operation.done)
    # The same build, whatever order its maps were written in.
    was, is_now = builds_pb2.Build(), builds_pb2.Build()
    assert operation.metadata.Unpack(was)
    assert again.metadata.Unpack(is_now)
    assert is_now == was
    assert (await operations.WaitOperation(operations_pb2.WaitOperationRequest(name=operation.name))).done

    wish = operations_pb2.ListOperationsRequest(name=f"{PROJECT}/operations", page_size=2)
    listed = await operations.ListOperations(wish)
    wish.page_token = listed.next_page_token
    last = await operations.ListOperations(wish)
    assert last.next_page_token == ""
    identities = [item.name.rsplit("/", 1)[-1] for item in (*listed.operations, *last.operations)]
    assert identities == [f"builds.{item.name.rsplit('/', 1)[-1]}" for item in (other, second, first)]
    for field, value in (("page_token", "nonsense"), ("filter", "done"), ("name", "nowhere")):
        wrong = operations_pb2.ListOperationsRequest(name=PROJECT)
        setattr(wrong, field, value)
        with pytest.raises(grpc.RpcError) as caught:
            await operations.ListOperations(wrong)
        assert from_rpc_error(caught.value).code == "INVALID_ARGUMENT"

    options = struct_pb2.Struct()
    options["tiel"] = 4
    bad = request(model)
    bad.build.options["io.example.compiler"].CopyFrom(options)
    with pytest.raises(grpc.RpcError) as caught:
        await world.builds.CreateBuild(bad)
    assert from_rpc_error(caught.value).reason == "OPTION_UNKNOWN"

    reused = request(model, "same", objective=1)
    await world.builds.CreateBuild(reused)
    reused.build.objective = builds_pb2.OBJECTIVE_RAM
    with pytest.raises(grpc.RpcError) as caught:
        await world.builds.CreateBuild(reused)
    assert from_rpc_error(caught.value).reason == "REQUEST_ID_REUSED"


async def test_a_cancelled_build_ends_soon_and_stops_its_plugins(world: World) -> None:
    world.add_plugin("compiler", roles="compiler", seconds="60")
    world.add_plugin("witness", roles="profiler")
    await world.start_gateway()
    build = started(await world.builds.CreateBuild(request(model_in(world))))
    await until(lambda: world.counted("io.example.compiler compile") == 1, "compiling")
    await world.builds.CancelBuild(builds_pb2.CancelBuildRequest(name=build.name))
    async with asyncio.timeout(20):
        build = await finished(world, build.name)
    assert build.state == Build.STATE_CANCELLED
    assert reasons(build) == {"compiler": "CANCELLED"}


async def test_explain_judges_every_pair_and_the_catalogue_is_forwarded_behind_the_token(world: World) -> None:
    world.add_plugin("rejects", roles="compiler", mode="rejects")
    world.add_plugin("honest", roles="compiler")
    world.add_plugin("witness", roles="profiler")
    model = model_in(world)
    world.registry.add_device("a")
    await world.start_gateway()
    explain = routing_pb2.ExplainRequest(
        parent=PROJECT,
        model_version=model,
        destinations=[
            routing_pb2.Destination(device=f"{PROJECT}/devices/a"),
            routing_pb2.Destination(target=toy_target(ram=2000)),
        ],
    )
    answer = await world.routing.Explain(explain)
    by_pair = {(item.plugin.rsplit(".", 1)[1], item.destination): item for item in answer.verdicts}
    assert {pair for pair, item in by_pair.items() if item.admitted} == {("honest", 0)}
    assert by_pair["rejects", 0].objections[0].reason == "OP_UNSUPPORTED"
    assert by_pair["honest", 1].objections[0].remedy == "needs 2,096 B more RAM"
    assert len(answer.targets) == 2
    answers = await asyncio.gather(*(world.routing.Explain(explain) for _ in range(100)))
    assert all(item == answer for item in answers)
    assert world.counted("io.example.honest check") == 2, "one check for each distinct target"

    models = models_pb2_grpc.ModelsStub(world.channel)
    assert (await models.GetModel(models_pb2.GetModelRequest(name=f"{PROJECT}/models/toy"))).latest_version == model
    with pytest.raises(grpc.RpcError) as caught:
        await models.GetModel(models_pb2.GetModelRequest(name=f"{PROJECT}/models/none"))
    assert from_rpc_error(caught.value).reason == "NOT_FOUND"
    with pytest.raises(grpc.RpcError) as caught:
        await models.ListModels(models_pb2.ListModelsRequest(parent=PROJECT))
    told = from_rpc_error(caught.value)
    assert (told.code, told.reason, told.metadata, told.help) == (
        "FAILED_PRECONDITION",
        "FAKE_REASON",
        {"key": "value"},
        "Ask the fake.",
    ), "the registry's own status travels back unchanged"
    with pytest.raises(grpc.RpcError) as caught:
        await modules_pb2_grpc.ModulesStub(world.channel).CreateModule(
            modules_pb2.CreateModuleRequest(parent=PROJECT, module=modules_pb2.Module(name="forged"))
        )
    assert from_rpc_error(caught.value).reason == "INTERNAL_CALL"

    address = world.processes["gateway"].address_file.read_text().strip()
    async with connect(address, "wrong") as stranger:
        with pytest.raises(grpc.RpcError) as caught:
            await models_pb2_grpc.ModelsStub(stranger).GetModel(
                models_pb2.GetModelRequest(name=f"{PROJECT}/models/toy")
            )
    assert from_rpc_error(caught.value).reason == "TOKEN_INVALID"
