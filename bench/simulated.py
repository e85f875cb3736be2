"""One inference of a module on the simulated Cortex-M4, for the benchmarks that run in the environment of compiler-tvm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tinymlaas_compiler_tvm import CompiledParts, TargetSpec
from tinymlaas_simulator import run_native

Array = npt.NDArray[Any]
TARGET = TargetSpec("cortex-m4", "armv7e-m", ("thumb2", "dsp", "fpu-sp"))
_MARGIN_BYTES = 4096


def infer(
    parts: CompiledParts,
    inputs: Sequence[Array],
    *,
    instruction_limit: int = 2_000_000_000,
    check_accesses: bool = False,
) -> tuple[list[Array], int]:
    """Outputs in the shapes that the module states, and instructions. ValueError if the module refuses; SimulatorError."""
    run = run_native(
        parts.payload,
        cpu=TARGET.cpu,
        entry_offset=parts.entry_offset,
        arena_bytes=parts.arena_bytes,
        stack_limit=parts.stack_bytes,
        inputs={t.offset: _stored(x, t.dtype).tobytes() for t, x in zip(parts.inputs, inputs, strict=True)},
        outputs=[(t.offset, t.bytes) for t in parts.outputs],
        ram_bytes=parts.arena_bytes + parts.stack_bytes + _MARGIN_BYTES,
        flash_bytes=len(parts.payload) + _MARGIN_BYTES,
        instruction_limit=instruction_limit,
        check_accesses=check_accesses,
        check_relocation=False,
    )
    if run.return_value != 0:
        raise ValueError(f"the module returned {run.return_value}")
    outputs = [
        np.frombuffer(data, t.dtype).reshape(t.shape) for data, t in zip(run.outputs, parts.outputs, strict=True)
    ]
    return outputs, run.instructions


def _stored(array: Array, dtype: str) -> Array:
    if str(array.dtype) != dtype:
        raise ValueError(f"the module wants {dtype}, the case gives {array.dtype}")
    return np.ascontiguousarray(array)
