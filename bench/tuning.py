"""`python -m bench.tuning`: what each level of `tune` brings on the models of zoo/, from an empty database.

Runs in the environment of compiler-tvm. With `--write-database` the variants that the highest level found become the ones that
compiler-tvm ships for the class of the core and the objective; others stay.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from tinymlaas_compiler_tvm import TargetSpec, tune
from tinymlaas_compiler_tvm.compile import compile_graph, tuned
from tinymlaas_compiler_tvm.int8.variants import DATABASE, kernel_class
from tinymlaas_compiler_tvm.options import Options
from tinymlaas_compiler_tvm.target import machine_for
from tinymlaas_compiler_tvm.way import Way
from tinymlaas_modelkit.onnx_reader import read_onnx

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "services" / "compiler-tvm" / "src" / "tinymlaas_compiler_tvm" / "int8" / DATABASE
MODELS = ("kws", "ic", "vww", "ad", "sww")
TARGETS = {
    "cortex-m4": TargetSpec("cortex-m4", "armv7e-m", ("thumb2", "dsp", "fpu-sp")),
    "cortex-m3": TargetSpec("cortex-m3", "armv7-m", ("thumb2",)),
    "cortex-m0plus": TargetSpec("cortex-m0plus", "armv6-m", ("thumb2",)),
}


def heard(what: str, share: float) -> None:
    """A line of progress."""
    print(f"\r{100 * share:3.0f}% {what:70}", end="", file=sys.stderr, flush=True)


def main() -> int:
    """Print a line a model and level."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--target", choices=list(TARGETS), default="cortex-m4")
    parser.add_argument("--objective", choices=["balanced", "latency", "flash", "ram"], default="balanced")
    parser.add_argument("--levels", nargs="+", type=int, choices=list(tune.LEVELS), default=list(tune.LEVELS))
    parser.add_argument("--write-database", action="store_true")
    arguments = parser.parse_args()
    target = TARGETS[arguments.target]
    machine = machine_for(target)
    best: dict[str, int] = {}
    print(f"{arguments.target}, {arguments.objective}")
    print(f"{'model':8}{'tune':>6}{'instructions':>14}{'payload B':>11}{'layers changed':>16}{'seconds':>9}")
    for name in arguments.models:
        graph = read_onnx((ROOT / "zoo" / name / f"{name}_int8_qdq.onnx").read_bytes(), foreign=True)
        options = Options(objective=arguments.objective)
        plain = tune.count(compile_graph(Way(graph, target, options, variants={})), machine.cpu)
        print(f"{name:8}{0:6}{plain.instructions:14,}{plain.payload_bytes:11,}{0:16}{'':>9}", flush=True)
        for level in sorted(arguments.levels):
            began = time.perf_counter()
            options = Options(objective=arguments.objective, tune=level)
            chosen, parts = tuned(Way(graph, target, options, variants={}), heard)
            found = tune.count(parts, machine.cpu)
            seconds = time.perf_counter() - began
            print(
                f"\r{name:8}{level:6}{found.instructions:14,}{found.payload_bytes:11,}{len(chosen):16}{seconds:9.0f}",
                flush=True,
            )
        best |= chosen
    if arguments.write_database:
        database = json.loads(SHIPPED.read_text(encoding="utf-8"))
        database.setdefault(kernel_class(machine), {}).setdefault(arguments.objective, {}).update(best)
        SHIPPED.write_text(json.dumps(database, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
