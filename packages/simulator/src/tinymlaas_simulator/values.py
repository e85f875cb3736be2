"""What a machine is made of and what a run gives: regions, devices, windows, results."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinymlaas_simulator.errors import SimulatorError

PAGE = 4096


@dataclass(frozen=True)
class Region:
    """A memory region: base and size in bytes (base on a 4 KiB page), perms out of "r", "w", "x"."""

    name: str
    base: int
    size: int
    perms: str

    @property
    def end(self) -> int:
        return self.base + self.size


@dataclass(frozen=True)
class Device:
    """A memory-mapped device: `read(offset, size) -> value`, `write(offset, size, value)`; base, size on 4 KiB pages.

    A callback may call `Machine.request_stop`, or raise: the exception comes out of the call that ran the machine.
    """

    name: str
    base: int
    size: int
    read: Callable[[int, int], int]
    write: Callable[[int, int, int], None]


@dataclass(frozen=True)
class Window:
    """Data addresses [base, base + size) that a call may touch; perms "r" or "rw"."""

    base: int
    size: int
    perms: str


@dataclass(frozen=True)
class Touched:
    """The extremes of what was accessed in one window: [lowest, highest), None where nothing was."""

    window: Window
    written: tuple[int, int] | None
    read: tuple[int, int] | None


@dataclass(frozen=True)
class CallResult:
    """What one run gave: return value (unsigned 32-bit), exact instruction count, stack peak, what was touched.

    `stack_peak_bytes` is the distance from the stack top to the lowest stack byte that was written (0 if none):
    exact for what was stored, silent about space reserved but never written.
    """

    return_value: int
    instructions: int
    stack_peak_bytes: int
    touched: tuple[Touched, ...]
    stopped: bool = False


@dataclass(frozen=True)
class Charged:
    """Counters by owner (rows): instructions and branches taken at each halfword, bytes read and written by window."""

    owners: npt.NDArray[np.uint16]
    executed: npt.NDArray[np.uint64]
    taken: npt.NDArray[np.uint64]
    moved: npt.NDArray[np.uint64]


def check_layout(regions: Sequence[Region], devices: Sequence[Device], stub: Region) -> None:
    """Raise REGION_INVALID unless all lie inside 32 bits on pages of their own, those of `stub` included."""
    every: list[Region | Device] = [*regions, *devices, stub]
    spans = sorted((each.base, each.size, each.name) for each in every)
    for base, size, name in spans:
        if base % PAGE or size <= 0 or base + size > 0x1_0000_0000:
            raise SimulatorError(
                "REGION_INVALID",
                f"region {name}: base {base:#x}, size {size:#x}",
                metadata={"region": name},
                help="start regions on 4 KiB pages inside 32 bits",
            )
    for (base, size, name), (following, _, other) in itertools.pairwise(spans):
        if base + -(-size // PAGE) * PAGE > following:
            raise SimulatorError(
                "REGION_INVALID",
                f"regions {name} and {other} share a page",
                metadata={"region": name, "other": other},
                help="move one of them",
            )
