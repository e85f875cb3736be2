"""One case: compile for a Cortex-M4 with FPU, run on the simulator, compare."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.onnx_nodes.cases import Array, Case
from bench.simulated import TARGET, infer
from tinymlaas_compiler_tvm import compile_model
from tinymlaas_compiler_tvm.errors import CompileError, CompilerFault
from tinymlaas_modelkit.check import Limits, ModelRejected
from tinymlaas_modelkit.check._worker import run as verdict_of
from tinymlaas_simulator import SimulatorError

# Relative error that the float kernels aim at; results that small are compared absolutely.
_FINE, _FINE_ABSOLUTE = 1e-5, 1e-6
_INSTRUCTION_LIMIT = 500_000_000
# Every element of a spectrum is a sum of all others, whose noise in float32 is a share of the largest; ONNX expects what a sum
# in float64 gives, zeros included.
_SPECTRA, _SPECTRUM_NOISE = frozenset({"DFT", "STFT"}), 2.0**-20


@dataclass(frozen=True)
class Outcome:
    """What became of a case: `passed`, `unsupported` or `failed`, the reason, and figures of a run."""

    name: str
    operator: str
    state: str
    reason: str = ""
    detail: str = ""
    fine: bool = False
    instructions: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The outcome as values that JSON can hold."""
        return asdict(self)


def check_here(onnx_bytes: bytes) -> None:
    """The check of model files with shape inference, in this process, which is one that may die."""
    verdict = verdict_of(io.BytesIO(onnx_bytes), len(onnx_bytes), "onnx", Limits())
    if "rejected" in verdict:
        raise ModelRejected.from_dict(verdict["rejected"])


def run_case(case: Case) -> Outcome:
    """The outcome of a case; never raises for what a case does."""
    try:
        parts = compile_model(case.model, TARGET, check=check_here)
    except CompilerFault as error:
        return Outcome(case.name, case.operator, "failed", error.reason, str(error)[:500])
    except CompileError as error:
        return Outcome(case.name, case.operator, "unsupported", error.reason, _detail(error))
    except Exception as error:
        return Outcome(case.name, case.operator, "failed", "COMPILER_BUG", f"{type(error).__name__}: {error}"[:500])
    try:
        outputs, instructions = infer(parts, case.inputs, instruction_limit=_INSTRUCTION_LIMIT, check_accesses=True)
    except SimulatorError as error:
        return Outcome(case.name, case.operator, "failed", "RUN_FAILED", str(error)[:500])
    wrong = _difference(case, outputs)
    if wrong:
        return Outcome(case.name, case.operator, "failed", "WRONG_RESULT", wrong, instructions=instructions)
    fine = all(_is_fine(have, want) for have, want in zip(outputs, case.outputs, strict=True))
    return Outcome(case.name, case.operator, "passed", fine=fine, instructions=instructions)


def _detail(error: CompileError) -> str:
    op, dtype = error.metadata.get("op", ""), error.metadata.get("dtype", "")
    more = error.metadata.get("detail", "")
    said = str(error)
    return " · ".join(part for part in (op, dtype, said, more if more not in said else "") if part)[:400]


def _difference(case: Case, outputs: list[Array]) -> str:
    """Why the outputs are not those that are expected; empty if they are."""
    if len(outputs) != len(case.outputs):
        return f"{len(outputs)} outputs instead of {len(case.outputs)}"
    for number, (have, want) in enumerate(zip(outputs, case.outputs, strict=True)):
        if have.shape != want.shape or have.dtype != want.dtype:
            return f"output {number} is {have.dtype}{list(have.shape)} instead of {want.dtype}{list(want.shape)}"
        if case.lsb is not None:
            steps = np.abs(have.astype(np.int64) - want.astype(np.int64)).max(initial=0)
            if steps > case.lsb:
                return f"output {number} is off by {steps} steps"
        elif want.dtype.kind == "f":
            noise = _SPECTRUM_NOISE * float(np.abs(want).max(initial=0)) if case.operator in _SPECTRA else 0.0
            if not np.allclose(have, want, rtol=case.rtol, atol=max(case.atol, noise), equal_nan=True):
                return f"output {number}: {have.reshape(-1)[:6]} instead of {want.reshape(-1)[:6]}"
        elif not np.array_equal(have, want):
            return f"output {number}: {have.reshape(-1)[:8]} instead of {want.reshape(-1)[:8]}"
    return ""


def _is_fine(have: Array, want: Array) -> bool:
    if want.dtype.kind != "f":
        return bool(np.array_equal(have, want))
    return bool(np.allclose(have, want, rtol=_FINE, atol=_FINE_ABSOLUTE, equal_nan=True))
