"""Check a model in a process of its own, so that a file which crashes a library takes nothing with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from typing import Final

from tinymlaas_modelkit.shape_folding import may_fold

from ._limits import Limits
from ._rejection import ModelRejected, Problem
from ._report import ModelReport
from ._structure import FORMATS, Format, check_structure

READY: Final = b"ready\n"
_COMMAND: Final = (sys.executable, "-P", "-m", "tinymlaas_modelkit.check._worker")


class CheckerUnavailable(RuntimeError):
    """The checking process could not be started; nothing is known about the model, and the call may be repeated."""


def _environment() -> dict[str, str]:
    """What the child needs to find its packages, and no secret of the parent.

    One thread, since each reserves memory.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
    }
    return {
        **kept,
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _request(data: bytes, format: Format, limits: Limits) -> bytes:
    if format not in FORMATS:
        raise ValueError(f"format is one of {', '.join(FORMATS)}")
    if len(data) > limits.model_bytes:
        raise ModelRejected(Problem.MODEL_TOO_LARGE, "file", f"{len(data)} bytes, the limit is {limits.model_bytes}")
    folding = format == "onnx" and may_fold(data)
    head = json.dumps({"format": format, "limits": asdict(limits), "size": len(data), "folding": folding})
    return head.encode() + b"\n" + data


def _verdict(output: bytes, status: int) -> ModelReport:
    """The report that the child gave.

    ModelRejected if it rejected the file or died of it, CheckerUnavailable before that.
    """
    if not output.startswith(READY):
        raise CheckerUnavailable(f"the checking process ended with status {status} before it had read the model")
    try:
        verdict = json.loads(output[len(READY) :])
        if "rejected" in verdict:
            raise ModelRejected.from_dict(verdict["rejected"])
        return ModelReport.from_dict(verdict["report"])
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    if status == -signal.SIGXCPU or status == -signal.SIGKILL:
        raise ModelRejected(Problem.CHECK_DEADLINE, "file", f"the check ended by {signal.Signals(-status).name}")
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"status {status}"
    raise ModelRejected(Problem.CHECKER_DIED, "file", f"the process that checked the file ended by {name}")


def _too_slow(limits: Limits) -> ModelRejected:
    return ModelRejected(Problem.CHECK_DEADLINE, "file", f"no verdict within {limits.deadline_s} s")


def check_model_isolated(data: bytes, format: Format, limits: Limits | None = None) -> ModelReport:
    """Check a model in a child process with limits on memory, CPU time, files and wall-clock time.

    Raises ModelRejected also where the child dies of the file (CHECKER_DIED) or takes too long (CHECK_DEADLINE);
    CheckerUnavailable if it could not be started. Blocks: servers use `check_model_isolated_async`.
    """
    limits = limits or Limits()
    request = _request(data, format, limits)
    try:
        done = subprocess.run(
            _COMMAND, input=request, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/", env=_environment(),
            timeout=limits.deadline_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        if not (error.stdout or b"").startswith(READY):
            raise CheckerUnavailable(f"the checking process did not start within {limits.deadline_s} s") from error
        raise _too_slow(limits) from error
    except OSError as error:
        raise CheckerUnavailable(f"the checking process could not be started: {error.strerror}") from error
    return _verdict(done.stdout, done.returncode)


async def check_model_isolated_async(data: bytes, format: Format, limits: Limits | None = None) -> ModelReport:
    """As `check_model_isolated`, without blocking the event loop; cancelling it kills the child."""
    limits = limits or Limits()
    request = _request(data, format, limits)
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        child = await asyncio.create_subprocess_exec(
            *_COMMAND, stdin=pipe, stdout=pipe, stderr=null, cwd="/", env=_environment()
        )
    except OSError as error:
        raise CheckerUnavailable(f"the checking process could not be started: {error.strerror}") from error
    try:
        async with asyncio.timeout(limits.deadline_s):
            output, _ = await child.communicate(request)
    except TimeoutError as error:
        raise _too_slow(limits) from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return _verdict(output, child.returncode if child.returncode is not None else 0)


def check_model(data: bytes, format: Format, limits: Limits | None = None) -> ModelReport:
    """Check a model file and tell what it is; ModelRejected with the first problem.

    The structural checks run in this process, which fails fast and needs no child for most bad files; what they accept
    goes to `check_model_isolated`, which checks it again and asks the onnx package for shapes.
    """
    limits = limits or Limits()
    accepted = check_structure(data, format, limits)
    return accepted if isinstance(accepted, ModelReport) else check_model_isolated(data, format, limits)


def check_model_here(data: bytes, format: Format, limits: Limits | None = None) -> ModelReport:
    """As `check_model`, all of it in this process: for a file of one's own making, or in a process that may die."""
    from ._onnx_shapes import check_onnx_shapes  # late: it loads the onnx package's C++ checker

    limits = limits or Limits()
    accepted = check_structure(data, format, limits)
    return accepted if isinstance(accepted, ModelReport) else check_onnx_shapes(accepted, limits)
