"""The search for kernel variants: one layer's shape after the other, each candidate built and counted on a simulated CPU.

The cost is that of the whole module: exact instructions, payload bytes, arena and stack. The result depends on nothing but
model, target, options and the database that the search starts from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tinymlaas_compiler_tvm.errors import CompilerFault
from tinymlaas_compiler_tvm.parts import CompiledParts

# Candidates for how far a layer's loops unroll, and how often all layers are gone through, by level.
LEVELS: Mapping[int, tuple[tuple[int, ...], int]] = {
    1: ((4, 16), 1),
    2: ((2, 4, 8, 16), 1),
    3: ((1, 2, 4, 8, 16, 32), 2),
}
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Figures:
    """What one candidate costs."""

    instructions: int
    payload_bytes: int
    ram_bytes: int

    def cost(self, objective: str) -> tuple[float, ...]:
        """Smaller is better; `balanced` weighs a percent of instructions as a percent of flash."""
        if objective == "latency":
            return (self.instructions, self.payload_bytes)
        if objective == "flash":
            return (self.payload_bytes, self.instructions)
        if objective == "ram":
            return (self.ram_bytes, self.instructions)
        return (round(math.log(self.instructions) + math.log(self.payload_bytes), 9),)


def count(parts: CompiledParts, cpu: str) -> Figures:
    """The figures of one inference on zeros, on the simulator; CompilerFault where it does not run."""
    from tinymlaas_simulator import SimulatorError, run_native

    try:
        run = run_native(
            parts.payload,
            cpu=cpu,
            entry_offset=parts.entry_offset,
            arena_bytes=parts.arena_bytes,
            stack_limit=parts.stack_bytes,
            inputs={tensor.offset: bytes(tensor.bytes) for tensor in parts.inputs},
            outputs=[],
            ram_bytes=parts.arena_bytes + parts.stack_bytes + 4096,
            flash_bytes=len(parts.payload) + 4096,
            check_accesses=False,
            check_relocation=False,
        )
    except SimulatorError as error:
        raise CompilerFault("a candidate did not run on the simulator", detail=str(error)[:200]) from error
    return Figures(run.instructions, len(parts.payload), parts.arena_bytes + parts.stack_bytes)


def search(
    level: int,
    objective: str,
    signatures: Sequence[str],
    start: Mapping[str, int],
    build: Callable[[Mapping[str, int]], CompiledParts],
    measure: Callable[[CompiledParts], Figures],
    progress: Progress,
) -> tuple[dict[str, int], CompiledParts, list[str]]:
    """The best variants found, the module that they make, and lines for the log.

    `signatures`: the layers' shapes, each once; `start`: variants to begin with; `build` makes a module of variants.
    """
    candidates, rounds = LEVELS[level]
    chosen = dict(start)
    best_parts = build(chosen)
    first = best = measure(best_parts)
    tried, total = 1, rounds * len(signatures) * len(candidates) + 1
    for _ in range(rounds):
        for name in signatures:
            for candidate in candidates:
                progress(f"tuning {name}", tried / total)
                tried += 1
                if chosen.get(name) == candidate:
                    continue
                variant = {**chosen, name: candidate}
                parts = build(variant)
                figures = measure(parts)
                if figures.cost(objective) < best.cost(objective):
                    chosen, best, best_parts = variant, figures, parts
    line = (
        f"tune {level}: {tried} builds for {objective}; instructions {first.instructions} -> {best.instructions}, "
        f"payload {first.payload_bytes} -> {best.payload_bytes} B, RAM {first.ram_bytes} -> {best.ram_bytes} B"
    )
    return chosen, best_parts, [line]
