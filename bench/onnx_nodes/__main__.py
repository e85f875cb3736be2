"""`python -m bench.onnx_nodes`: run the operator tests, print the tables, keep them in bench/results/onnx-node-tests.json."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from bench.onnx_nodes import cases, pool, report
from bench.onnx_nodes.float32 import float32_case
from bench.onnx_nodes.qdq import qdq_case
from bench.onnx_nodes.run import Outcome, run_case

# Each form's title, and what makes its case of one of ONNX's.
FORMS: dict[str, tuple[str, Callable[[cases.Case], cases.Case | None]]] = {
    "float": ("ONNX backend node tests on a Cortex-M4", lambda case: case),
    "float32": ("Those of doubles, asked in float32", float32_case),
    "qdq": ("The same in QDQ form, int8: within 1 step of the reference", qdq_case),
}
RESULTS = Path(__file__).resolve().parents[1] / "results" / "onnx-node-tests.json"


def measure(chosen: list[cases.Case], processes: int) -> list[Outcome]:
    """Outcomes in the order of the cases, with a line of progress."""
    outcomes = {}
    for outcome in pool.run_all(chosen, run_case, processes):
        outcomes[outcome.name] = outcome
        failed = sum(each.state == "failed" for each in outcomes.values())
        text = f"\r{len(outcomes)}/{len(chosen)} cases, {failed} failed  {outcome.name[:60]:60}"
        print(text, end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return [outcomes[case.name] for case in chosen]


def main() -> int:
    """0 if nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--operator",
        action="append",
        default=[],
        help="only this operator, whose rows replace those that are kept; may be repeated",
    )
    parser.add_argument("--case", action="append", default=[], help="only cases whose names contain this text")
    parser.add_argument("--form", choices=["all", *FORMS], default="all", help="only cases in this form")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="a line for each case that did not pass")
    arguments = parser.parse_args()
    chosen, left_out = cases.collect(arguments.operator)
    if arguments.case:
        chosen = [case for case in chosen if any(text in case.name for text in arguments.case)]
    forms = [form for form in FORMS if arguments.form in ("all", form)]
    made = {form: [each for case in chosen if (each := FORMS[form][1](case)) is not None] for form in forms}
    outcomes = measure([case for own in made.values() for case in own], arguments.processes)
    if arguments.verbose:
        for outcome in outcomes:
            if outcome.state != "passed":
                print(outcome.state, outcome.name, outcome.reason, outcome.detail)
    kept, start = [], 0
    for form, own in made.items():
        rows = report.by_operator(outcomes[start : start + len(own)], form)
        start += len(own)
        report.show(rows, left_out if form == "float" else [], FORMS[form][0])
        kept += rows
    if not arguments.case:
        everything = not arguments.operator and arguments.form == "all"
        report.write(kept, RESULTS, list(FORMS), merge=not everything)
    return int(any(outcome.state == "failed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
