"""Parts that fall silent, move, hang or die amid a call: what a gateway began goes on, and what it accepted is begun."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gateway_fakes as fakes
import grpc
import psycopg
import pytest
from gateway_fakes import PROJECT
from gateway_world import HERE, TOKEN, World, until
from structlog.testing import capture_logs
from test_gateway_builds import Build, Candidate, finished, request, started
from test_gateway_deployments import Deployment, device_in, model_in, wanted
from test_gateway_replicas import NAME, NoneRefuted, Recorder

import postgres_server
from tinymlaas.bridge.v1 import bridge_pb2, bridge_pb2_grpc
from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2
from tinymlaas.plugin.v1 import compiler_pb2
from tinymlaas.registry.v1 import devices_pb2, plugins_pb2
from tinymlaas_gateway.adapters import bridges, endpoints, plugins
from tinymlaas_gateway.adapters.bridges import BridgeDirectory
from tinymlaas_gateway.adapters.catalogue import Catalogue
from tinymlaas_gateway.adapters.deployments import Deployments
from tinymlaas_gateway.adapters.endpoints import Endpoint, Location
from tinymlaas_gateway.adapters.manifest import Entry, Manifest
from tinymlaas_gateway.adapters.plugins import PluginDirectory
from tinymlaas_gateway.adapters.store import Resources, open_engine
from tinymlaas_gateway.core import projection
from tinymlaas_gateway.engine import deployments
from tinymlaas_gateway.engine.calls import bounded
from tinymlaas_gateway.engine.context import Limits
from tinymlaas_gateway.services.undivided import undivided
from tinymlaas_pluginkit import Compiler, Plugin, PluginTimeout
from tinymlaas_servicekit import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    ServiceError,
    ServiceSettings,
    Unavailable,
)

DEVICE = f"{PROJECT}/devices/node-1"
Step = bridge_pb2.InstallResponse
SETTINGS = ServiceSettings(listen="127.0.0.1:0", token=TOKEN, grace_seconds=0.0)  # type: ignore[arg-type]


# Plugins


def silent() -> ServiceError:
    return PluginTimeout("CP-STREAM-008", "no sign of life for 30 s", 30.0)


def slow() -> ServiceError:
    return PluginTimeout("CP-LIMIT-004", "no result after 1800 s", 1800.0)


@pytest.mark.parametrize(("error", "tries"), [(silent, 3), (slow, 1)])
async def test_silence_is_tried_again_and_a_call_that_took_longer_than_its_time_is_not(
    error: Callable[[], ServiceError], tries: int
) -> None:
    known = plugins_pb2.Plugin(name=NAME, state=plugins_pb2.Plugin.STATE_READY)
    directory = SimpleNamespace(known=lambda: [SimpleNamespace(plugin=known)])
    context: Any = SimpleNamespace(limits=Limits(plugin_tries=3, retry_pause_seconds=0.0), plugins=directory)
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        raise error()

    with pytest.raises(DeadlineExceeded) as caught:
        await bounded(context, NAME, 60.0, call)
    assert (calls, caught.value.reason, caught.value.metadata["plugin"]) == (tries, "PLUGIN_TIMEOUT", NAME)


async def test_a_replica_that_is_stopped_amid_a_call_is_left_for_another_one(world: World, tmp_path: Path) -> None:
    """CP-STREAM-008: the platform gives up after a time of silence, and repeats."""
    world.add_plugin("witness", roles="profiler")
    gate, entries = tmp_path / "gate", [{"address_file": "witness.addr"}]
    for number in "01":
        environment = {"NAME": "io.example.twin", "ROLES": "compiler", "GATE": str(gate), "COUNTER": f"{gate}-{number}"}
        process = world._spawn(
            f"twin-{number}",
            [str(HERE / "gateway_sample_plugin.py")],
            {f"TINYMLAAS_SAMPLE_{key}": value for key, value in environment.items()},
        )
        await until(process.address_file.exists, "the replica listens")
        entries.append({"address_file": f"twin-{number}.addr"})

    def compiling(number: str) -> bool:
        counter = Path(f"{gate}-{number}")
        return counter.exists() and "io.example.twin compile\n" in counter.read_text()

    (tmp_path / "plugins.json").write_text(json.dumps(entries))
    await world.start_gateway(TINYMLAAS_SILENCE_SECONDS="2")
    await until(lambda: world._ready("plugins/io.example.twin"), "the compiler is ready")
    build = started(await world.builds.CreateBuild(request(model_in(world))))
    number = await until(lambda: [each for each in "01" if compiling(each)], "compiling")
    stopped = world.processes[f"twin-{number[0]}"].process
    stopped.send_signal(signal.SIGSTOP)
    try:
        gate.touch()
        build = await finished(world, build.name)
    finally:
        stopped.send_signal(signal.SIGCONT)
    assert [item.state for item in build.candidates] == [Candidate.STATE_SEALED], str(build)
    assert compiling("0")
    assert compiling("1")


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[PluginDirectory]:
    """Two real replicas, both ready."""
    plugin = Plugin("io.example.fast", "1.0", compiler=Compiler("json:loads", "json:loads", [], []))
    catalogue: Any = Recorder()
    refutations: Any = NoneRefuted()
    async with plugin.server(SETTINGS) as one, plugin.server(SETTINGS) as other:
        (tmp_path / "own.json").write_text(json.dumps([{"address": one.address}, {"address": other.address}]))
        directory = PluginDirectory(Manifest([], tmp_path), catalogue, refutations, TOKEN)
        await until(lambda: looked(directory), "both are ready")
        yield directory


async def looked(directory: PluginDirectory) -> bool:
    await directory.look()
    states = [seat.known.plugin.state for seat in directory._named(NAME) if seat.known]
    return states == [plugins_pb2.Plugin.STATE_READY] * 2


async def test_a_replica_that_was_silent_is_not_chosen_again_first_though_it_is_found_ready(
    two: PluginDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = two._seat(NAME)
    second = next(seat for seat in two._seats.values() if seat is not first)
    second.turn, two._turns = 1, 1
    assert first.client is not None

    async def finish(on_event: object) -> None:
        second.turn = two._turns = two._turns + 1  # the other one has a call meanwhile
        raise silent()

    monkeypatch.setattr(first.client, "check_model", lambda *_: SimpleNamespace(finish=finish))
    with pytest.raises(PluginTimeout):
        await two.check_model(NAME, compiler_pb2.CompileHeader(), b"")
    assert first.known is not None
    assert first.known.plugin.state == plugins_pb2.Plugin.STATE_UNREACHABLE
    assert await looked(two)
    assert two._seat(NAME)[0] is second


async def test_a_registry_that_hangs_does_not_keep_plugins_from_being_looked_at(
    two: PluginDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, told = asyncio.Event(), []

    async def upsert(plugin: plugins_pb2.Plugin, patience: float) -> None:
        told.append(plugin.refuted_claims)
        await answers.wait()

    monkeypatch.setattr(two._catalogue, "upsert_plugin", upsert)
    two._recorded.clear()
    assert await looked(two)
    await until(lambda: told, "the registry is asked")
    for seat in two._seats.values():
        two._set_state(seat, plugins_pb2.Plugin.STATE_UNREACHABLE, "restarted")
    monkeypatch.setattr(two._refutations, "counts", lambda: {(NAME, "1.0"): 2})
    assert await looked(two), "found again"
    assert told == [0]
    answers.set()
    await until(lambda: two._recording and two._recording.done(), "the registry answered")
    assert await looked(two)
    await until(lambda: told == [0, 2], "the newest state is told in the end")


@pytest.mark.parametrize("of", ["plugins", "bridges"])
async def test_a_look_that_goes_wrong_ends_no_watch(
    two: PluginDirectory, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    monkeypatch.setattr(plugins, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(bridges, "LOOK_SECONDS", 0.01)
    manifest, looks = Manifest([], None), []

    def entries() -> list[Entry]:
        looks.append(1)
        if len(looks) <= 2:
            raise RuntimeError("a fault of ours")
        return []

    monkeypatch.setattr(manifest, "entries", entries)
    monkeypatch.setattr(two, "_manifest", manifest)
    directory = two if of == "plugins" else BridgeDirectory(manifest, cast(Any, None), [])
    watch = asyncio.create_task(directory.watch())
    with capture_logs() as logs:
        await until(lambda: len(looks) > 4 or watch.done(), "it looks on")
    assert not watch.done()
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    assert [event["log_level"] for event in logs] == ["error", "error"]


# Bridges


class HangingBridge(bridge_pb2_grpc.BridgeServicer):
    """A bridge whose calls never end, or that ends them at once."""

    def __init__(self, hangs: bool) -> None:
        self.hangs = hangs
        self.asked: list[str] = []

    async def _answer(self, call: str) -> None:
        self.asked.append(call)
        if self.hangs:
            await asyncio.Event().wait()

    async def Install(self, request: bridge_pb2.InstallRequest, context: Any) -> AsyncIterator[Step]:
        yield Step(step=Step.STEP_DOWNLOADING)
        await self._answer("install")
        yield Step(step=Step.STEP_READY)

    async def Observe(self, request: Any, context: Any) -> AsyncIterator[bridge_pb2.ObserveResponse]:
        await self._answer("observe")
        yield bridge_pb2.ObserveResponse()

    async def ReadCapabilities(self, request: Any, context: Any) -> devices_pb2.Device:
        await self._answer("read")
        return devices_pb2.Device(name=DEVICE)

    async def Rollback(self, request: Any, context: Any) -> devices_pb2.Device:
        await self._answer("rollback")
        return devices_pb2.Device(name=DEVICE)

    async def Infer(self, request: Any, context: Any) -> bridge_pb2.InferResponse:
        await self._answer("infer")
        return bridge_pb2.InferResponse()


async def test_a_call_whose_channel_is_closed_under_it_is_made_again_or_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a bridge moves or certificates change: nobody cancelled the tasks that call."""
    monkeypatch.setattr(endpoints, "CLOSE_GRACE_SECONDS", 0.0)
    monkeypatch.setattr(bridges, "RECONNECT_SECONDS", 0.01)
    before, after = HangingBridge(True), HangingBridge(False)
    address = tmp_path / "address"
    async with (
        fakes.bridge_server(cast(Any, before), SETTINGS) as old,
        fakes.bridge_server(cast(Any, after), SETTINGS) as new,
    ):
        address.write_text(old.address)
        entry = Entry(Location(address_file=address))
        directory = BridgeDirectory(Manifest([entry], None), cast(Any, None), [], TOKEN)
        watching = asyncio.create_task(directory.watch())
        await until(lambda: directory._endpoints, "the bridge is known")
        install = bridge_pb2.InstallRequest(install_id="i-1", device=DEVICE, module_sha256="ab" * 32)

        async def steps() -> list[int]:
            return [event.step async for event in directory.install(install)]

        async def observed() -> list[object]:
            return [seen async for seen in directory.observe(DEVICE)]

        def task(work: Awaitable[Any]) -> asyncio.Future[Any]:
            return asyncio.ensure_future(work)

        repeated = (
            task(steps()),
            task(directory.read_capabilities(DEVICE)),
            task(directory.infer(DEVICE, bridge_pb2.InferRequest().inputs)),
        )
        refused = task(observed()), task(directory.rollback(DEVICE, ""))
        cancelled = task(steps())
        await until(lambda: len(before.asked) == 6, "all calls are under way", 30)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        assert cancelled.cancelled(), "who is cancelled stays so"
        address.write_text(new.address)
        directory.any_channel()
        begun, ready = Step.STEP_DOWNLOADING, Step.STEP_READY
        try:
            async with asyncio.timeout(60):
                answers = [[begun, begun, ready], devices_pb2.Device(name=DEVICE), bridge_pb2.InferResponse()]
                assert await asyncio.gather(*repeated) == answers
                for each in refused:
                    with pytest.raises(Unavailable):
                        await each
            assert sorted(after.asked) == ["infer", "install", "read"]
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


class Untellable:
    """A catalogue that fails with `errors` first, each time anew for each device."""

    def __init__(self, errors: list[ServiceError], only: str = "") -> None:
        self.errors, self.only = errors, only
        self.tried: list[str] = []
        self.told: list[str] = []

    async def tell_device(self, device: devices_pb2.Device) -> None:
        ident = device.name.rsplit("/", 1)[-1]
        self.tried.append(ident)
        if self.errors and ident.startswith(self.only):
            raise self.errors.pop(0)
        self.told.append(ident)


async def recorded(errors: list[ServiceError], monkeypatch: pytest.MonkeyPatch, until_told: list[str]) -> list[str]:
    """What a bridge with devices "a" and "b" tells, until those have been recorded; what was tried for it."""
    monkeypatch.setattr(bridges, "RECONNECT_SECONDS", 0.01)
    bridge, registry = fakes.FakeBridge(), fakes.FakeRegistry()
    for name in "ab":
        bridge.add(registry.devices[registry.add_device(name)])
    catalogue = Untellable(errors, "a")
    async with fakes.bridge_server(bridge, SETTINGS) as server:
        entry = Entry(Location(address=server.address))
        directory = BridgeDirectory(Manifest([entry], None), cast(Any, catalogue), ["default"], TOKEN)
        watching = asyncio.create_task(directory.watch())
        try:
            await until(lambda: catalogue.told == until_told, "told", 30)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    return catalogue.tried


@pytest.mark.parametrize("error", [Unavailable, DeadlineExceeded, Cancelled, Internal])
async def test_a_device_that_a_registry_in_trouble_did_not_record_is_told_again(
    error: type[ServiceError], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await recorded([error("in trouble")], monkeypatch, ["a", "b"]) == ["a", "a", "b"]


async def test_a_device_that_the_registry_cannot_record_keeps_back_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[ServiceError] = [Internal("a fault") for _ in range(10)]
    assert await recorded(faults, monkeypatch, ["b"]) == ["a", "a", "b"]


# The registry


async def test_a_call_that_a_registry_let_run_out_of_time_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = fakes.FakeRegistry()
    name = registry.add_model("toy", b"\x05model", 1).rsplit("/versions/", 1)[0]
    get, asked = fakes._Models.GetModel, 0

    async def late(self: Any, request: Any, context: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked < 3:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED)
        return await get(self, request, context)

    monkeypatch.setattr(fakes._Models, "GetModel", late)
    async with fakes.registry_server(registry, SETTINGS) as server:
        endpoint = Endpoint("the registry", Location(server.address), TOKEN)
        assert (await Catalogue(endpoint).model(name)).name == name
        assert asked == 3
        asked = 0
        with pytest.raises(DeadlineExceeded):
            await Catalogue(endpoint, patience=0.0).model(name)
        await endpoint.close()


# What was accepted


@pytest.fixture
def database(world: World, postgresql: str, tmp_path: Path) -> str:
    """The URL of a real database in which the world's gateway keeps its records."""
    url = world.settings["TINYMLAAS_DATABASE_URL"] = postgres_server.database(postgresql, str(tmp_path))
    return url


def haste(seconds: float) -> dict[str, str]:
    """Settings of a gateway that looks so often for what never began."""
    return {"command": str(HERE / "gateway_with_haste.py"), "TINYMLAAS_TEST_UNBEGUN_SECONDS": str(seconds)}


async def builds_in(world: World) -> list[builds_pb2.Build]:
    return list((await world.builds.ListBuilds(builds_pb2.ListBuildsRequest(parent=PROJECT))).builds)


async def deployments_in(world: World) -> list[deployments_pb2.Deployment]:
    wish = deployments_pb2.ListDeploymentsRequest(parent=PROJECT)
    return list((await world.deployments.ListDeployments(wish)).deployments)


@pytest.mark.parametrize("what", ["build", "deployment"])
async def test_what_a_caller_asked_for_who_left_amid_its_storing_is_begun_all_the_same(
    world: World, database: str, what: str
) -> None:
    world.add_plugin("compiler", roles="compiler")
    world.add_plugin("witness", roles="profiler")
    await world.start_gateway(**haste(3600))
    model = model_in(world)
    device_in(world, "a")
    async with await psycopg.AsyncConnection.connect(database) as other:
        await other.execute("LOCK TABLE gateway_resources IN EXCLUSIVE MODE")  # as of a slow database: it can be read
        call = (
            world.builds.CreateBuild(request(model))
            if what == "build"
            else world.deployments.CreateDeployment(wanted(model))
        )

        async def waiting() -> bool:
            query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'gateway_resources'::regclass"
            async with await psycopg.AsyncConnection.connect(database) as third:
                row = await (await third.execute(query)).fetchone()
            return row == (1,)

        await until(waiting, "it is about to be stored")
        call.cancel()
        left = lambda: [entry for entry in world.registry.audit if entry.code == "CANCELLED"]  # noqa: E731
        await until(left, "the gateway knows that its caller has left")

    async def ended() -> bool:
        states = [item.state for item in (*await builds_in(world), *await deployments_in(world))]
        return bool(states) and all(state == Build.STATE_SUCCEEDED for state in states)

    assert Build.STATE_SUCCEEDED == Deployment.STATE_SUCCEEDED
    await until(ended, "it was begun, and ended", 60)


async def test_what_was_accepted_and_never_began_is_begun_by_and_by(world: World, database: str) -> None:
    """However it came to that: here nobody ever tried to begin it."""
    world.add_plugin("compiler", roles="compiler")
    world.add_plugin("witness", roles="profiler")
    device_in(world, "a")
    await world.start_gateway(**haste(0.2))
    model = model_in(world)
    build = started(
        await world.builds.CreateBuild(
            builds_pb2.CreateBuildRequest(parent=PROJECT, build=request(model).build, validate_only=True)
        )
    )
    deployment = Deployment(
        name=f"{PROJECT}/deployments/left",
        model_version=build.model_version,
        devices=[f"{PROJECT}/devices/a"],
        state=Deployment.STATE_PLANNING,
    )
    engine = open_engine(database)
    Resources(engine, "build", Build, projection.ended).create("default", build, "")
    Deployments(engine, deployments.ended).create("default", deployment, "")
    engine.dispose()

    assert (await finished(world, build.name)).state == Build.STATE_SUCCEEDED
    wish = deployments_pb2.WatchDeploymentRequest(name=deployment.name)
    last = [item.state async for item in world.deployments.WatchDeployment(wish, timeout=150)][-1]
    assert last == Deployment.STATE_SUCCEEDED
    assert world.bridge.log == ["install a STEP_READY", "activate a 0"], "once"


async def test_work_that_is_not_to_be_divided_goes_on_and_its_error_is_heard_or_logged() -> None:
    go_on, done = asyncio.Event(), []

    async def work(error: Exception | None) -> str:
        await go_on.wait()
        if error is not None:
            raise error
        done.append(1)
        return "made"

    refusal = FailedPrecondition("there is no compiler", "NO_COMPILER")
    kept = [asyncio.create_task(undivided(work(error))) for error in (None, refusal)]
    left = [asyncio.create_task(undivided(work(error))) for error in (None, refusal, RuntimeError("a fault"))]
    await asyncio.sleep(0)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    with capture_logs() as logs:
        go_on.set()
        assert await asyncio.gather(*kept, return_exceptions=True) == ["made", refusal]
        await until(lambda: len(logs) == 2, "both errors that nobody heard are logged")
    assert all(task.cancelled() for task in left)
    assert done == [1, 1]
    assert sorted(event["log_level"] for event in logs) == ["error", "warning"]
