"""Two gateways of one database are replaced one after the other, and no call of a client fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from gateway_fakes import toy_target
from gateway_world import TOKEN, World, until
from test_gateway_deployments import model_in

import postgres_server
from tinymlaas.gateway.v1 import builds_pb2
from tinymlaas_client import AsyncClient

CALLS = 12


async def test_gateways_are_replaced_one_after_the_other_without_a_failed_call(
    world: World, postgresql: str, tmp_path: Path
) -> None:
    world.settings["TINYMLAAS_DATABASE_URL"] = postgres_server.database(postgresql, str(tmp_path))
    world.settings |= {"TINYMLAAS_LEASE_SECONDS": "2", "TINYMLAAS_GRACE_SECONDS": "10"}
    gate = world.folder / "gate"
    world.add_plugin("compiler", roles="compiler", gate=str(gate))
    world.add_plugin("witness", roles="profiler")
    addresses = {}
    for name in ("a", "b"):
        process = await world.start_gateway(name)
        addresses[name] = process.address_file.read_text().strip()
    known, held = model_in(world, b"\x05known"), model_in(world, b"\x06held")
    client = AsyncClient(f"ipv4:{','.join(addresses.values())}", token=TOKEN)
    answered: Counter[str] = Counter()
    over = asyncio.Event()

    async def calls(kind: str, call: Callable[[], Awaitable[object]]) -> None:
        while not over.is_set():
            await call()
            answered[kind] += 1

    async with client:
        gate.touch()
        first = await client.create_build(known, toy_target())
        assert (await client.wait_build(first.name)).state == builds_pb2.Build.STATE_SUCCEEDED
        gate.unlink()
        began = await client.create_build(held, toy_target())
        waiter = asyncio.create_task(client.wait_build(began.name))
        async with asyncio.TaskGroup() as group:
            group.create_task(calls("create", lambda: client.create_build(known, toy_target())))
            group.create_task(calls("explain", lambda: client.explain(known, targets=[toy_target()])))
            group.create_task(calls("get", lambda: client.get_build(first.name)))

            async def answers(what: str) -> None:
                before = answered.copy()
                await until(lambda: all(answered[kind] >= before[kind] + CALLS for kind in before), what)

            await until(lambda: len(answered) == 3, "every kind of call is answered")
            for name, address in addresses.items():
                await answers("calls are answered by both")
                assert await asyncio.to_thread(world.processes[name].stop) == 0
                await answers(f"calls are answered while {name} is away")
                await world.start_gateway(name, TINYMLAAS_LISTEN=address)
            await answers("calls are answered by the new ones")
            over.set()
        gate.touch()
        ended = await waiter
    assert ended.state == builds_pb2.Build.STATE_SUCCEEDED, (
        "a build that was under way all the time is watched to its end"
    )
