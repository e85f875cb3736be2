"""What compiling costs: run by the interpreter of compiler-tvm's environment, prints JSON on standard output.

`services/compiler-tvm/.venv/bin/python bench/compile_cost.py` loads the compiler, warms it up with one model as a worker would
be, and compiles the others with default options (tune 0) for a Cortex-M4.
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


def main() -> int:
    """Measure and print."""
    began = time.perf_counter()
    from tinymlaas_compiler_tvm import TargetSpec
    from tinymlaas_compiler_tvm.compile import compile_model

    target = TargetSpec("cortex-m4", "armv7e-m", ("thumb2", "dsp", "fpu-sp"))
    compile_model((ZOO / WARM_UP / f"{WARM_UP}_int8_qdq.onnx").read_bytes(), target)
    figures = {"warm-up": time.perf_counter() - began}
    for model in MODELS:
        data = (ZOO / model / f"{model}_int8_qdq.onnx").read_bytes()
        began = time.perf_counter()
        compile_model(data, target)
        figures[model] = time.perf_counter() - began
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    json.dump({"seconds": figures, "peak_bytes": 1024 * (own + children)}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
