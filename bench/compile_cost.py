"""What compiling costs: run by the interpreter of compiler-tvm's environment, prints JSON on standard output.

`services/compiler-tvm/.venv/bin/python bench/compile_cost.py` loads the compiler, warms it up with one model as a worker would
be, and compiles the others with default options (tune 0) for a Cortex-M4. Beside the seconds on the clock stand those of the
processor, child processes included, which other work on the machine does not change much.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

ZOO = Path(__file__).resolve().parent.parent / "zoo"
MODELS = ("kws", "ic", "vww", "ad")
WARM_UP = "sww"


def processor_seconds() -> float:
    """What this process and its ended children used so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> int:
    """Measure and print."""
    began, used = time.perf_counter(), processor_seconds()
    from tinymlaas_compiler_tvm import TargetSpec
    from tinymlaas_compiler_tvm.compile import compile_model

    target = TargetSpec("cortex-m4", "armv7e-m", ("thumb2", "dsp", "fpu-sp"))
    compile_model((ZOO / WARM_UP / f"{WARM_UP}_int8_qdq.onnx").read_bytes(), target)
    figures = {"warm-up": time.perf_counter() - began}
    processor = {"warm-up": processor_seconds() - used}
    for model in MODELS:
        data = (ZOO / model / f"{model}_int8_qdq.onnx").read_bytes()
        began, used = time.perf_counter(), processor_seconds()
        compile_model(data, target)
        figures[model], processor[model] = time.perf_counter() - began, processor_seconds() - used
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    peak = 1024 * (own + children)
    json.dump({"seconds": figures, "processor_seconds": processor, "peak_bytes": peak}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
