"""Queue mode: which devices listen now, and which are asked only after their next update (Core TS 1.1, clause 6.5)."""

from __future__ import annotations

from collections import OrderedDict

from .directory import Clock, Directory
from .errors import BridgeError, Reason
from .registration import Registration

AWAKE_S = 93.0
"""How long a device in queue mode listens after its last message: MAX_TRANSMIT_WAIT of RFC 7252, as LwM2M recommends."""


class Sleepers:
    """Knows from what devices sent when they can be asked. `heard` notes a message that was no registration or update."""

    def __init__(self, directory: Directory, clock: Clock, *, awake_s: float = AWAKE_S, limit: int = 20_000) -> None:
        self._directory = directory
        self._clock = clock
        self._awake_s = awake_s
        self._limit = limit
        self._heard: OrderedDict[str, float] = OrderedDict()

    def heard(self, endpoint: str) -> None:
        """Note that a device has just sent something."""
        self._heard[endpoint] = self._clock()
        self._heard.move_to_end(endpoint)
        if len(self._heard) > self._limit:
            self._heard.popitem(last=False)

    def awake(self, device: Registration) -> bool:
        """True where the device listens: always without queue mode, else for a while after its last message."""
        if not device.queue_mode:
            return True
        last = max(device.updated_at, self._heard.get(device.endpoint, 0.0))
        return self._clock() - last < self._awake_s

    def asleep(self, endpoint: str) -> bool:
        """True for a registered device that can't be asked before its next update."""
        try:
            return not self.awake(self._directory.get(endpoint))
        except BridgeError:
            return False

    async def woken(self, endpoint: str) -> Registration:
        """The device's registration, once it listens. DEVICE_UNKNOWN where it is not registered."""
        device = self._directory.get(endpoint)
        while not self.awake(device):
            device = await self._directory.wait_for_update(endpoint, device)
        return device


def asleep_error(device: Registration) -> BridgeError:
    """Why a device in queue mode is not asked now."""
    return BridgeError(Reason.DEVICE_UNREACHABLE, "asleep until its next registration update", device=device.endpoint)
