"""A durable step waits for the registry as long as it is away; a caller is told after a while (docs/adr/0028)."""

from __future__ import annotations

import asyncio
from unittest.mock import AsyncMock

import gateway_fakes as fakes
import pytest
from gateway_world import TOKEN

from tinymlaas.registry.v1 import devices_pb2
from tinymlaas_gateway.adapters.catalogue import SLOW_TRIES, Catalogue, patiently
from tinymlaas_gateway.adapters.endpoints import Endpoint, Location
from tinymlaas_servicekit import DeadlineExceeded, ServiceSettings, Unavailable, patience

NAME = "projects/default/devices/node-1"


async def test_a_durable_step_waits_for_a_registry_that_a_caller_has_given_up(unused_tcp_port: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    catalogue = Catalogue(Endpoint("registry", Location(address=address), TOKEN), patience=0.0)
    with patience.durable():
        step = asyncio.create_task(catalogue.device(NAME))
    with pytest.raises(Unavailable):
        await catalogue.device(NAME)
    assert not step.done()
    registry = fakes.FakeRegistry()
    registry.devices[NAME] = devices_pb2.Device(name=NAME, model="here again")
    settings = ServiceSettings(listen=address, token=TOKEN, grace_seconds=0.1)  # type: ignore[arg-type]
    async with fakes.registry_server(registry, settings), asyncio.timeout(60):
        assert (await step).model == "here again"


async def test_a_call_that_always_takes_longer_than_its_deadline_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a step may wait: this is not an outage."""
    monkeypatch.setattr(asyncio, "sleep", AsyncMock())
    calls = AsyncMock(side_effect=DeadlineExceeded("too long"))
    with pytest.raises(DeadlineExceeded):
        await patiently(calls, patience.DURABLE_SECONDS)
    assert calls.await_count == SLOW_TRIES
    calls = AsyncMock(side_effect=[DeadlineExceeded("hung"), Unavailable("away")] * SLOW_TRIES + ["answer"])
    assert await patiently(calls, patience.DURABLE_SECONDS) == "answer"
