"""Whether a module fits a device, in numbers: pure arithmetic on what was certified and what the device reports."""

from __future__ import annotations

from dataclasses import dataclass

from .certificate import MemoryCertificate
from .contents import Module
from .layout import CriticalFlag, align_up


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a module needs on a device: image bytes in flash, arena bytes with their alignment, stack bytes."""

    image_bytes: int
    arena_bytes: int
    arena_alignment: int
    stack_bytes: int
    stateful: bool = False

    @classmethod
    def of(cls, module: Module) -> Requirement:
        """Return what ``module`` needs, with the image as it is (full or stripped)."""
        header = module.header
        return cls(
            module.image_bytes,
            header.arena_bytes,
            header.arena_alignment,
            header.stack_bytes,
            CriticalFlag.STATEFUL in header.critical_flags,
        )

    @classmethod
    def certified(cls, certificate: MemoryCertificate, image_bytes: int, stateful: bool = False) -> Requirement:
        """Return what a checked certificate states, for an image of ``image_bytes``."""
        return cls(image_bytes, certificate.arena_bytes, certificate.arena_alignment, certificate.stack_bytes, stateful)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What a device has left after RTOS, application and other modules; all in bytes.

    ``flash_free`` is the largest free slot (or region), ``flash_page`` its erase unit. ``ram_free`` can become arenas.
    ``stack_free`` is what the task that invokes modules can spare; ``None``: stacks are taken from ``ram_free`` too.
    ``shared_arena`` is an arena that exists already and that modules take turns in. ``arena_alignment`` is how arenas
    are aligned there.
    """

    flash_free: int
    ram_free: int
    flash_page: int = 1
    stack_free: int | None = None
    shared_arena: int = 0
    arena_alignment: int = 16


@dataclass(frozen=True, slots=True)
class RegionFit:
    """One region: bytes needed, bytes there, bytes missing (0 when it fits)."""

    region: str
    need: int
    have: int

    @property
    def missing(self) -> int:
        """Bytes by which the region is too small."""
        return max(0, self.need - self.have)


@dataclass(frozen=True, slots=True)
class FitResult:
    """The verdict with its numbers, region by region."""

    regions: tuple[RegionFit, ...]

    @property
    def fits(self) -> bool:
        """Whether every region is large enough."""
        return all(region.missing == 0 for region in self.regions)

    @property
    def smallest_change(self) -> str:
        """What would make it fit, in words; empty when it fits."""
        parts = [f"{region.missing:,} B more {region.region}" for region in self.regions if region.missing]
        return f"needs {' and '.join(parts)}" if parts else ""


def fit(requirement: Requirement, memory: DeviceMemory) -> FitResult:
    """Return whether ``requirement`` fits ``memory``, with need, have and missing bytes of flash, RAM and stack.

    Flash is counted in whole pages. A module that keeps no state uses the shared arena as far as that reaches. An arena
    that must be aligned more strictly than the device aligns may cost the difference.
    """
    flash = RegionFit("flash", align_up(requirement.image_bytes, max(memory.flash_page, 1)), memory.flash_free)
    slack = max(0, requirement.arena_alignment - memory.arena_alignment)
    arena = requirement.arena_bytes + slack if requirement.arena_bytes else 0
    if not requirement.stateful and memory.shared_arena:
        arena = 0 if arena <= memory.shared_arena else arena
    if memory.stack_free is None:
        return FitResult((flash, RegionFit("RAM", arena + requirement.stack_bytes, memory.ram_free)))
    return FitResult(
        (
            flash,
            RegionFit("RAM", arena, memory.ram_free),
            RegionFit("stack", requirement.stack_bytes, memory.stack_free),
        )
    )
