"""What the tests of compiler-tvm share: zoo models, targets, and runs on the simulator with every access checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinymlaas_compiler_tvm import CompiledParts, TargetSpec
from tinymlaas_simulator import NativeRun, run_native, run_native_in_qemu

ZOO = Path(__file__).resolve().parents[3] / "zoo"
TARGETS = {
    "cortex-m0plus": TargetSpec("cortex-m0plus", "armv6-m", ("thumb2",)),
    "cortex-m3": TargetSpec("cortex-m3", "armv7-m", ("thumb2",)),
    "cortex-m4": TargetSpec("cortex-m4", "armv7e-m", ("thumb2", "dsp", "fpu-sp")),
    "cortex-m7": TargetSpec("cortex-m7", "armv7e-m", ("thumb2", "dsp", "fpu-sp")),
    "cortex-m33": TargetSpec("cortex-m33", "armv8-m.main", ("thumb2", "dsp", "fpu-sp")),
    "rv32imc": TargetSpec("rv32imc", "rv32imc"),
}
# QEMU runs it, where that is installed: tests that need it say so and skip.
CORTEX_M55 = TargetSpec("cortex-m55", "armv8.1-m.main", ("thumb2", "dsp", "fpu-sp", "mve", "mve-fp"))


class Samples:
    """A zoo model's inputs with the outputs of its reference executors."""

    def __init__(self, name: str) -> None:
        with np.load(ZOO / name / "samples.npz") as data:
            self.int8 = list(zip(data["input_int8"], data["output_int8"], strict=True))
            self.float = list(zip(data["input_float"], data["output_float"], strict=True))


def zoo_model(name: str, kind: str) -> bytes:
    """The bytes of `zoo/<name>/<name>_<kind>.onnx`."""
    return (ZOO / name / f"{name}_{kind}.onnx").read_bytes()


def run_parts(
    parts: CompiledParts, cpu: str, inputs: Sequence[npt.NDArray[np.generic]], strict: bool = True
) -> tuple[list[npt.NDArray[np.generic]], NativeRun]:
    """Outputs and figures of one inference; with `strict`, every access checked and a second run at other addresses."""
    settings: dict[str, Any] = {
        "cpu": cpu,
        "entry_offset": parts.entry_offset,
        "arena_bytes": parts.arena_bytes,
        "stack_limit": parts.stack_bytes,
        "inputs": {t.offset: x.tobytes() for t, x in zip(parts.inputs, inputs, strict=True)},
        "outputs": [(t.offset, t.bytes) for t in parts.outputs],
        "ram_bytes": parts.arena_bytes + parts.stack_bytes + 4096,
        "flash_bytes": len(parts.payload) + 4096,
        "instruction_limit": 2_000_000_000,
        "check_relocation": strict,
    }
    if cpu in TARGETS:
        run = run_native(parts.payload, **settings, check_accesses=strict)
    else:
        run = run_native_in_qemu(parts.payload, **settings)
    assert run.return_value == 0
    outputs = [
        np.frombuffer(data, t.dtype).reshape(t.shape) for data, t in zip(run.outputs, parts.outputs, strict=True)
    ]
    return outputs, run
