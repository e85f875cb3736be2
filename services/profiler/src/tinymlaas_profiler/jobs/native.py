"""Job: run a native payload on the simulated CPU for each sample."""

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np

from tinymlaas_profiler.errors import ProfilerError
from tinymlaas_simulator import (
    CPUS,
    DoesNotFit,
    Fault,
    NativeRun,
    SimulatorError,
    qemu_release,
    run_native,
    run_native_in_qemu,
)


def run(request: dict[str, Any], blobs: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """Run payload `blobs[0]` on each sample; further blobs are input tensors, sample by sample.

    The report has the figures of every sample; instructions and estimated cycles per symbol, summed over all samples;
    bytes moved per symbol in the first sample, the one whose accesses are observed. The blobs given back are output
    tensors, sample by sample.
    """
    payload = blobs[0]
    offsets = [int(offset) for offset in request["input_offsets"]]
    spans = [(int(offset), int(size)) for offset, size in request["output_spans"]]
    samples = [blobs[1 + i : 1 + i + len(offsets)] for i in range(0, len(blobs) - 1, len(offsets))]
    figures: list[dict[str, int]] = []
    outputs: list[bytes] = []
    symbols = [(int(begin), int(end)) for begin, end in request["symbols"]]
    instructions = np.zeros(len(symbols), dtype=np.int64)
    cycles = np.zeros(len(symbols), dtype=np.int64)
    traffic: list[dict[str, int]] = []
    for index, sample in enumerate(samples):
        result = _run_sample(request, payload, dict(zip(offsets, sample, strict=True)), spans, index)
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
        instructions += [result.instructions_in(begin, end) for begin, end in symbols]
        cycles += [result.cycles_in(begin, end) for begin, end in symbols]
        if index == 0:
            moved = [result.traffic_in(begin, end) for begin, end in symbols]
            traffic = [asdict(entry) for entry in moved if entry is not None]
    counts = [
        {"instructions": int(executed), "estimated_cycles": int(spent), "traffic": moves}
        for executed, spent, moves in zip(instructions, cycles, traffic, strict=True)
    ]
    built_in = str(request["cpu"]) in CPUS
    emulator = f"unicorn {version('unicorn')}" if built_in else f"qemu {qemu_release()}"
    return {"samples": figures, "symbols": counts, "emulator": emulator}, outputs


def _run_sample(
    request: dict[str, Any], payload: bytes, inputs: dict[int, bytes], spans: list[tuple[int, int]], index: int
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
        return run_native(payload, **settings, check_accesses=index == 0)

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
