"""Where projects compete, the one that floods waits: places in turns, and a running gateway whose compiler is taken."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest
from gateway_fakes import toy_target
from gateway_world import World, until
from test_gateway_builds import finished, started

from tinymlaas.gateway.v1 import builds_pb2, routing_pb2
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_gateway.engine.fairness import FairPlaces, on_behalf_of
from tinymlaas_servicekit import ResourceExhausted, connect

Build = builds_pb2.Build


class Rush:
    """Calls of several projects for the same places; `served` are those that got one, in order."""

    def __init__(self, places: FairPlaces) -> None:
        self.places, self.served = places, list[str]()
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def call(self, name: str) -> None:
        """Begins a call such as "a1" of the project "a", up to where it holds a place or waits."""
        self._ends[name] = asyncio.Event()
        with on_behalf_of(f"projects/{name[0]}"):
            self._tasks[name] = asyncio.create_task(self._run(name))
        await asyncio.sleep(0)

    async def _run(self, name: str) -> None:
        async with self.places.taken():
            self.served.append(name)
            await self._ends[name].wait()

    async def end(self, name: str) -> None:
        """Lets a call that holds a place finish."""
        self._ends[name].set()
        await self._tasks[name]
        await asyncio.sleep(0)

    async def leave(self, name: str) -> None:
        """Takes the caller of a call away."""
        self._tasks[name].cancel()
        await asyncio.gather(self._tasks[name], return_exceptions=True)
        await asyncio.sleep(0)


async def test_a_place_goes_to_the_project_that_holds_the_fewest() -> None:
    rush = Rush(FairPlaces(2))
    for name in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
        await rush.call(name)
    assert rush.served == ["a1", "a2"]
    for name in ("a1", "a2", "b1", "c1", "a3", "b2", "a4"):
        await rush.end(name)
    assert rush.served == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_projects_that_hold_as_many_take_turns() -> None:
    rush = Rush(FairPlaces(1))
    for name in ("a1", "a2", "a3", "b1", "b2", "b3"):
        await rush.call(name)
    while len(rush.served) < 6:
        await rush.end(rush.served[-1])
    assert rush.served == ["a1", "b1", "a2", "b2", "a3", "b3"]


async def test_turns_are_of_one_gateway_so_at_one_of_two_flooded_ones_a_project_gets_its_share_of_that_one() -> None:
    """The bound that docs/guide-operate.md states."""
    here, there = Rush(FairPlaces(4)), Rush(FairPlaces(4))
    flood = [f"a{number}" for number in range(8)]
    for gateway in (here, there):
        for name in flood:
            await gateway.call(name)
    for number in range(8):
        await here.call(f"b{number}")
    for gateway in (here, there):
        for name in flood[:4]:
            await gateway.end(name)
    assert sorted(here.served[4:]) == ["a4", "a5", "b0", "b1"]
    assert there.served[4:] == ["a4", "a5", "a6", "a7"]
    for gateway in (here, there):
        for name in (*flood[4:], *(f"b{number}" for number in range(8) if gateway is here)):
            await gateway.leave(name)


async def test_a_project_never_has_more_than_its_share_even_of_idle_places() -> None:
    rush = Rush(FairPlaces(4, each=2))
    for name in ("a1", "a2", "a3", "b1"):
        await rush.call(name)
    assert rush.served == ["a1", "a2", "b1"]
    await rush.end("a2")
    assert rush.served == ["a1", "a2", "b1", "a3"]


async def test_who_leaves_while_waiting_or_when_just_let_in_keeps_no_place() -> None:
    places = FairPlaces(1)
    rush = Rush(places)
    for name in ("a1", "b1", "c1"):
        await rush.call(name)
    await rush.leave("b1")
    await rush.end("a1")
    assert rush.served == ["a1", "c1"]
    late = asyncio.create_task(places._take("d"))
    await asyncio.sleep(0)
    places._give_back("c")  # the place is d's now, and d leaves before it could run
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    assert late.cancelled()
    assert (places._free, places._held, places._waiting, places._last) == (1, {}, {}, {})


async def test_a_place_that_comes_free_while_its_next_caller_is_being_cancelled_is_not_lost() -> None:
    """As where the deadlines of several callers run out at one moment: the first gives its place to one who is going."""
    places = FairPlaces(1)
    await places._take("a")
    going, staying = (asyncio.create_task(places._take(name)) for name in ("b", "c"))
    await asyncio.sleep(0)
    going.cancel()
    places._give_back("a")
    await asyncio.gather(going, staying, return_exceptions=True)
    assert (going.cancelled(), staying.exception()) == (True, None)
    places._give_back("c")
    assert (places._free, places._held, places._waiting, places._last) == (1, {}, {}, {})


async def test_a_line_has_an_end() -> None:
    rush = Rush(FairPlaces(1, max_waiting=2))
    for name in ("a1", "a2", "a3"):
        await rush.call(name)
    with on_behalf_of("projects/a"), pytest.raises(ResourceExhausted) as refused:
        async with rush.places.taken():
            pass
    assert refused.value.metadata["limit"] == "waiting_calls"
    await rush.call("b1")
    await rush.end("a1")
    assert rush.served == ["a1", "b1"]


async def test_a_place_that_is_given_is_followed_by_none_for_so_many_rounds_of_the_event_loop() -> None:
    rush = Rush(FairPlaces(8, rounds=3))
    for name in ("a1", "a2", "b1"):
        await rush.call(name)
    assert rush.served == ["a1"], "b1 came in the second round"
    for served in (["a1", "b1"], ["a1", "b1", "a2"]):
        while len(rush.served) < len(served):
            assert rush.served == served[:-1]
            await asyncio.sleep(0)
        assert rush.served == served
    for _ in range(4):
        await asyncio.sleep(0)
    await rush.call("a3")
    assert rush.served == ["a1", "b1", "a2", "a3"], "rested enough, it has a place at once"


async def test_a_call_behind_a_flood_that_grpc_still_holds_is_answered_before_most_of_it() -> None:
    """All calls come on one connection, the calm project's last: gRPC hands them over in this order."""
    flood, answered = 64, list[str]()
    places = FairPlaces(256, 32, rounds=500)

    async def answer(request: bytes, _: object) -> bytes:
        project = request.decode()
        with on_behalf_of(project):
            async with places.taken():
                answered.append(project)
        return b""

    server = grpc.aio.server()
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Known", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with connect(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
        call = channel.unary_unary("/test.Known/Call")
        names = [*["projects/flood"] * flood, "projects/calm"]
        await asyncio.gather(*(call(name.encode(), timeout=60) for name in names))
    await server.stop(None)
    assert len(answered) == flood + 1
    assert answered.index("projects/calm") < flood / 2


async def test_while_one_project_floods_the_compiler_another_ones_build_is_next(world: World) -> None:
    gate = world.folder / "gate"
    world.add_plugin("slow", roles="compiler", gate=str(gate))
    world.add_plugin("witness", roles="profiler")
    await world.start_gateway(TINYMLAAS_COMPILES_AT_ONCE="1")

    async def build(project: str, label: str) -> str:
        parent = f"projects/{project}"
        model = world.registry.add_model(label, b"\x05" + label.encode(), tensor_pb2.MODEL_FORMAT_TFLITE, parent)
        request = builds_pb2.CreateBuildRequest(parent=parent, build=Build(model_version=model, target=toy_target()))
        return started(await world.builds.CreateBuild(request)).name

    async def waits(name: str) -> bool:
        shown = await world.builds.GetBuild(builds_pb2.GetBuildRequest(name=name))
        return [item.state for item in shown.candidates] == [builds_pb2.Candidate.STATE_COMPILING]

    first = await build("flood", "flood-0")
    await until(lambda: world.counted("io.example.slow compiles flood-0"), "the only place is taken")
    flood = [first] + [await build("flood", f"flood-{index}") for index in range(1, 7)]
    for name in flood:
        await until(lambda name=name: waits(name), "the flood stands in line")
    wanted = await build("calm", "calm-0")
    await until(lambda: waits(wanted), "the other project's build waits too")
    explained = await world.routing.Explain(
        routing_pb2.ExplainRequest(
            parent="projects/calm",
            model_version=(await world.builds.GetBuild(builds_pb2.GetBuildRequest(name=wanted))).model_version,
            destinations=[routing_pb2.Destination(target=toy_target())],
        ),
        timeout=60,
    )
    assert explained.verdicts[0].admitted, "explain calls go on while compilers are taken"
    gate.touch()
    assert (await finished(world, wanted)).state == Build.STATE_SUCCEEDED
    for name in flood:
        assert (await finished(world, name)).state == Build.STATE_SUCCEEDED
    lines = (world.folder / "counter").read_text().splitlines()
    order = [line.rsplit(" ", 1)[1] for line in lines if line.startswith("io.example.slow compiles ")]
    assert sorted(order) == ["calm-0", *(f"flood-{index}" for index in range(7))]
    assert order.index("calm-0") <= 2, "at most one got a place before it stood in line"
