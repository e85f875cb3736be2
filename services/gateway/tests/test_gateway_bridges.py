"""How the gateway follows an install whose device sleeps while its bridge is restarted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tinymlaas.bridge.v1 import bridge_pb2
from tinymlaas_gateway.adapters.bridges import BridgeDirectory
from tinymlaas_servicekit import Unavailable

Step = bridge_pb2.InstallResponse
REQUEST = bridge_pb2.InstallRequest(install_id="i", device="projects/p/devices/d")


class Directory(BridgeDirectory):
    """Calls of a bridge that last as long as `calls` say and then break off; the one after them ends the install."""

    def __init__(self, calls: list[float], patience: float) -> None:
        super().__init__(None, None, [], patience=patience)  # type: ignore[arg-type]
        self.calls = calls

    def _stub(self, device: str) -> Any:
        return self

    async def Install(self, request: Any) -> AsyncIterator[bridge_pb2.InstallResponse]:
        """As the bridge's RPC."""
        if self.calls:
            await asyncio.sleep(self.calls.pop(0))
            raise Unavailable("the bridge restarts")
        yield Step(step=Step.STEP_READY)


async def test_a_bridge_that_restarts_after_hours_of_silence_is_waited_for() -> None:
    """DO-QUEUE-002: nothing runs out of time because its device sleeps."""
    directory = Directory([0.3, 0.3], patience=0.2)
    assert [event.step async for event in directory.install(REQUEST)] == [Step.STEP_READY]


async def test_a_bridge_that_stays_away_is_given_up() -> None:
    directory = Directory([0.0] * 99, patience=0.2)
    with pytest.raises(Unavailable):
        async for _ in directory.install(REQUEST):
            pass
