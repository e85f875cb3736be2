"""The limits of a model check."""

from __future__ import annotations

from dataclasses import asdict, dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Largest model that is accepted, and the most that a check may use. All are inclusive.

    `parsed_bytes` bounds what the parsed file would take in memory, which can be a hundred times its size.
    `memory_bytes` (address space) and `cpu_seconds` (of the check itself) bound what a hostile file can cost; `deadline_s`
    (wall clock, with starting the child process) is only for a machine that gives the child no time.
    """

    model_bytes: int = 32 * MIB
    parsed_bytes: int = 256 * MIB
    fields: int = 500_000
    nodes: int = 4096
    tensors: int = 16_384
    tensor_bytes: int = 64 * MIB
    rank: int = 8
    name_bytes: int = 4096
    inputs_outputs: int = 64
    opset_min: int = 7
    memory_bytes: int = 1024 * MIB
    cpu_seconds: int = 5
    deadline_s: float = 60.0

    def __post_init__(self) -> None:
        """ValueError unless every limit is positive."""
        for name, value in asdict(self).items():
            if value <= 0:
                raise ValueError(f"limit {name} must be positive")
