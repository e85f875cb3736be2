"""`python -m bench.lwm2m [storm] [rollout] [fuzz]`: measure, print, keep in bench/results/lwm2m.json."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from bench.lwm2m import rollout, rows, storm
from bench.lwm2m.rows import Row
from bench.lwm2m.servers import bridge, leshan, missing_for_leshan

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "lwm2m.json"
PARTS = ("storm", "rollout", "fuzz")


def storms(console: Console, count: int) -> list[Row]:
    """The bridge and, where Java and Maven are here, Leshan's server, one after the other with the same devices."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, bridge(Path(folder)) as server:
        ours = storm.measure(server, count)
    peer = None
    if missing := missing_for_leshan():
        console.print(f"no Leshan beside it: {', '.join(missing)} missing", style="yellow")
    else:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder, leshan(ROOT, Path(folder)) as server:
            peer = storm.measure(server, count)

    def row(case: str, field: str, unit: str, method: str) -> Row:
        return Row(case, getattr(ours, field), unit, getattr(peer, field) if peer else None, method, "storm")

    fleet = f"{count:,} devices"
    return [
        row("registration storm", "storm_per_s", "registrations/s", f"{fleet}, third storm in a row, 256 under way"),
        row("registration storm, first", "cold_storm_per_s", "registrations/s", f"{fleet}, server just started"),
        row("registrations lost in storms", "missing", "devices", "without a location after three storms"),
        row("requests sent again in all", "resent", "requests", "no answer in 2 s"),
        row("registration", "storm_ms_each", "CPU ms", "third storm, all threads of the server; ours is stored"),
        row("update", "update_ms_each", "CPU ms", f"{fleet}, one update each; ours is stored"),
        row("steady updates", "steady_percent", "% of a core", f"{fleet}, lifetime 300 s, an update in 150 s each"),
        row("memory for a device", "bytes_each", "B resident", "growth in the first storm; a JVM's says little"),
    ]


def rollouts(console: Console, count: int) -> list[Row]:
    """A rollout through the gateway, with everything that can break breaking."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        found = asyncio.run(rollout.measure(ROOT, Path(folder), console, count))
    method = (
        f"{found.devices:,} devices, {found.module_bytes:,} B each, {found.link}, {found.reboots} reboots, "
        f"bridge and gateway killed {found.kills} times"
    )
    figures = {
        "rollout, active": (found.active, "devices"),
        "rollout, failed and safe": (found.failed_safely, "devices"),
        "rollout, stuck": (found.stuck, "devices"),
        "rollout, doubled": (found.doubled, "devices"),
        "rollout, time": (found.seconds, "s"),
        "rollout, gateway": (1000 * found.gateway_cpu_s / found.devices, "CPU ms for a device"),
        "rollout, bridge": (1000 * found.bridge_cpu_s / found.devices, "CPU ms for a device"),
        "rollout, bytes stored for each byte of the module": (found.overhead, "B/B"),
    }
    return [Row(case, value, unit, None, method, "rollout") for case, (value, unit) in figures.items()]


def fuzzing(inputs: int) -> list[Row]:
    """Every decoder on as many inputs as make `inputs` in all."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from lwm2m_fuzz import fuzz, targets

    chosen = targets()
    reports = [fuzz(target, -(-inputs // len(chosen)), seed=2) for target in chosen]
    for report in reports:
        for data, what in report.failures:
            print(f"{report.name}: {what}: {data[:200].hex()}", file=sys.stderr)
    total = sum(report.inputs for report in reports)
    method = f"{len(chosen)} decoders, seed 2, mutations of valid messages, 1 GiB of address space at most"
    return [
        Row("fuzz inputs", total, "inputs", None, method, "fuzz"),
        Row("fuzz failures", sum(len(report.failures) for report in reports), "inputs", None, method, "fuzz"),
        Row("fuzz, accepted", sum(report.accepted for report in reports), "inputs", None, method, "fuzz"),
        Row("fuzz, slowest input", 1000 * max(report.slowest_s for report in reports), "ms", None, method, "fuzz"),
    ]


def main() -> int:
    """Measure the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="*", default=[], help=f"which of {', '.join(PARTS)}; default: storm and rollout")
    parser.add_argument("--devices", type=int, default=storm.DEVICES, help="devices of the storm")
    parser.add_argument("--rollout", type=int, default=rollout.DEVICES, help="devices of the rollout")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="fuzzed inputs in all")
    arguments = parser.parse_args()
    if unknown := set(arguments.part) - set(PARTS):
        parser.error(f"unknown part {min(unknown)!r}; known: {', '.join(PARTS)}")
    console, failed = Console(width=200), False
    for part in arguments.part or ("storm", "rollout"):
        if part == "storm":
            found = storms(console, arguments.devices)
        elif part == "rollout":
            found = rollouts(console, arguments.rollout)
            failed |= any(row.value > 0 for row in found if row.case in ("rollout, stuck", "rollout, doubled"))
        else:
            found = fuzzing(arguments.inputs)
            failed |= found[1].value > 0
        rows.show(rows.merge(found, part, RESULTS), console)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
