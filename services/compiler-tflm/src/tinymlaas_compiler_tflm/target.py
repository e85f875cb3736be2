"""Targets: whether a device's firmware can run the payload, and how much memory it has for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tinymlaas_compiler_tflm.errors import DoesNotFit, TargetUnsupported
from tinymlaas_modelkit.errors import OffendingOperator, UnsupportedOperator

RUNTIME = "tflite-micro"


@dataclass(frozen=True)
class TargetSpec:
    """A device class.

    `runtimes` maps names of interpreters in its firmware to the operators linked into each (empty: unknown, all are
    assumed). `ram_bytes` and `flash_bytes` are what a module may use; 0: no limit is checked.
    """

    cpu: str = ""
    isa: str = ""
    features: tuple[str, ...] = ()
    ram_bytes: int = 0
    flash_bytes: int = 0
    runtimes: tuple[tuple[str, tuple[str, ...]], ...] = ((RUNTIME, ()),)

    @property
    def has_runtime(self) -> bool:
        """Whether the firmware contains a TFLite Micro interpreter."""
        return any(name == RUNTIME for name, _ in self.runtimes)


def require_runtime(target: TargetSpec, operators: Iterable[str]) -> None:
    """Refuse a target without the interpreter (TargetUnsupported) or without an operator (UnsupportedOperator)."""
    if not target.has_runtime:
        names = ", ".join(name for name, _ in target.runtimes) or "none"
        raise TargetUnsupported(f"the target's firmware has no {RUNTIME}", constraint="runtime", value=names)
    linked = {name for runtime, names in target.runtimes if runtime == RUNTIME for name in names}
    missing = sorted(set(operators) - linked) if linked else []
    if missing:
        detail = f"not linked into the {RUNTIME} of the target's firmware"
        raise UnsupportedOperator([OffendingOperator(name, "", "", detail) for name in missing])


def require_fit(target: TargetSpec, arena_bytes: int, payload_bytes: int) -> None:
    """Refuse a payload that needs more RAM or flash than the target has (DoesNotFit)."""
    for region, need, have in (("ram", arena_bytes, target.ram_bytes), ("flash", payload_bytes, target.flash_bytes)):
        if have and need > have:
            raise DoesNotFit(f"{region} needs {need:,} B, {have:,} B are there", region=region, need=need, have=have)
