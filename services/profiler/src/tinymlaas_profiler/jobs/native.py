"""Job: run a native payload on the simulated CPU for each sample."""

from collections.abc import Sequence
from dataclasses import asdict, astuple
from importlib.metadata import version
from typing import Any

from tinymlaas_profiler.errors import ProfilerError
from tinymlaas_simulator import (
    CPUS,
    CodeRange,
    Cost,
    DoesNotFit,
    Fault,
    NativeRun,
    SimulatorError,
    Traffic,
    qemu_release,
    run_native,
    run_native_in_qemu,
)


def run(request: dict[str, Any], blobs: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """Run payload `blobs[0]` on each sample; further blobs are input tensors, sample by sample.

    The report has the figures of every sample, and what each owner of code cost in the first one, whose accesses are
    observed; the last cost is that of all other code. The blobs given back are output tensors, sample by sample.
    """
    payload = blobs[0]
    offsets = [int(offset) for offset in request["input_offsets"]]
    spans = [(int(offset), int(size)) for offset, size in request["output_spans"]]
    samples = [blobs[1 + i : 1 + i + len(offsets)] for i in range(0, len(blobs) - 1, len(offsets))]
    figures: list[dict[str, int]] = []
    outputs: list[bytes] = []
    ranges = [CodeRange(int(begin), int(end), owner) for begin, end, owner in request["ranges"]]
    costs: Sequence[Cost] = ()
    for index, sample in enumerate(samples):
        result = _run_sample(request, payload, dict(zip(offsets, sample, strict=True)), spans, index, ranges)
        if result.return_value != 0:
            raise ProfilerError(
                "PAYLOAD_FAULT",
                f"the payload returned {result.return_value}",
                metadata={"kind": "PAYLOAD_ERROR", "returned": str(result.return_value), "sample": str(index)},
            )
        outputs.extend(result.outputs)
        figures.append(
            {
                "instructions": result.instructions,
                "estimated_cycles": result.estimated_cycles,
                "stack_bytes": result.stack_peak_bytes,
                "arena_high_water": result.arena_high_water,
            }
        )
        if index == 0:
            costs = result.costs or _own_costs(result, ranges)
    built_in = str(request["cpu"]) in CPUS
    emulator = f"unicorn {version('unicorn')}" if built_in else f"qemu {qemu_release()}"
    return {"samples": figures, "costs": [asdict(cost) for cost in costs], "emulator": emulator}, outputs


def _own_costs(run: NativeRun, ranges: Sequence[CodeRange]) -> list[Cost]:
    """What each owner's own code cost, where the emulator does not tell who called shared code: that goes to the rest."""
    sums = [[0] * 7 for _ in range(1 + max((item.owner + 1 for item in ranges if item.owner is not None), default=0))]
    whole = run.traffic_in(0, 2 * len(run.executed))
    sums[-1] = [run.instructions, run.estimated_cycles, *(astuple(whole) if whole else [0] * 5)]
    for item in ranges:
        if item.owner is None:
            continue
        moved = run.traffic_in(item.begin, item.end)
        cost = [run.instructions_in(item.begin, item.end), run.cycles_in(item.begin, item.end)]
        cost += astuple(moved) if moved else [0] * 5
        sums[item.owner] = [a + b for a, b in zip(sums[item.owner], cost, strict=True)]
        sums[-1] = [a - b for a, b in zip(sums[-1], cost, strict=True)]
    return [Cost(count, cycles, Traffic(*moved)) for count, cycles, *moved in sums]


def _run_sample(
    request: dict[str, Any],
    payload: bytes,
    inputs: dict[int, bytes],
    spans: list[tuple[int, int]],
    index: int,
    ranges: Sequence[CodeRange],
) -> NativeRun:
    stack_claim = int(request["stack_bytes"])

    def attempt(stack_limit: int) -> NativeRun:
        settings: dict[str, Any] = {
            "cpu": str(request["cpu"]),
            "entry_offset": int(request["entry_offset"]),
            "arena_bytes": int(request["arena_bytes"]),
            "stack_limit": stack_limit,
            "inputs": inputs,
            "outputs": spans,
            "ram_bytes": int(request["ram_bytes"]),
            "flash_bytes": int(request["flash_bytes"]),
            "instruction_limit": int(request["instruction_limit"]),
            "check_relocation": index == 0,
        }
        if settings["cpu"] not in CPUS:
            return run_native_in_qemu(payload, **settings)
        return run_native(payload, **settings, check_accesses=index == 0, ranges=ranges if index == 0 else ())

    try:
        return attempt(stack_claim)
    except DoesNotFit as error:
        raise ProfilerError(error.reason, str(error), metadata=error.metadata, help=error.help) from error
    except Fault as fault:
        if fault.reason == "STACK_OVERFLOW":
            raise _stack_claim_refuted(request, stack_claim, attempt) from fault
        raise ProfilerError("PAYLOAD_FAULT", str(fault), metadata={**fault.metadata, "sample": str(index)}) from fault
    except SimulatorError as error:
        kept = ("TARGET_UNSUPPORTED", "DEADLINE_EXCEEDED")
        reason = {"EMULATOR_MISSING": "TARGET_UNSUPPORTED", "EMULATOR_FAILED": "WORKER_CRASH"}.get(error.reason)
        reason = reason or (error.reason if error.reason in kept else "PAYLOAD_INVALID")
        raise ProfilerError(reason, str(error), metadata=error.metadata, help=error.help) from error


def _stack_claim_refuted(request: dict[str, Any], claimed: int, attempt: Any) -> ProfilerError:
    """Measure the true stack need with all RAM that is left, for the error's numbers."""
    room = (int(request["ram_bytes"]) - int(request["arena_bytes"])) // 16 * 16 - 16
    measured = f"more than {room}"
    if room > claimed:
        try:
            measured = str(attempt(room).stack_peak_bytes)
        except Fault as fault:
            if fault.reason != "STACK_OVERFLOW":
                measured = f"more than {claimed}"
    return ProfilerError(
        "CLAIM_REFUTED",
        f"the payload's stack is deeper than the claimed {claimed} bytes",
        metadata={"claim": "stack_bytes", "claimed": str(claimed), "measured": measured},
    )
