"""Profile a native payload: exact instructions, stack, arena, outputs; claims compared with what was seen."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinymlaas.plugin.v1 import compiler_pb2
from tinymlaas.type.v1 import measurement_pb2, target_pb2
from tinymlaas_profiler.errors import ProfilerError
from tinymlaas_profiler.measurements import measure, sha256
from tinymlaas_profiler.tensors import Sample, check_samples, grouped, tensor_bytes
from tinymlaas_profiler.worker import JobResult, Limits, run_job
from tinymlaas_simulator import CPUS, CYCLE_ASSUMPTIONS, QEMU_CPUS, Cpu, find_qemu, qemu_missing

MAX_SAMPLES = 1024
INSTRUCTION_LIMIT = 4_000_000_000
CLAIMED_METRICS = {"arena_bytes": measurement_pb2.METRIC_ARENA_BYTES, "stack_bytes": measurement_pb2.METRIC_STACK_BYTES}


@dataclass(frozen=True)
class Profile:
    """What a payload did: figures, cost of each operator, output tensors of each sample."""

    measurements: tuple[measurement_pb2.Measurement, ...]
    operators: tuple[measurement_pb2.OperatorProfile, ...]
    outputs: tuple[tuple[bytes, ...], ...]


def simulated_cpus() -> Mapping[str, Cpu]:
    """Give the CPUs that can be run here: the built-in ones and, where QEMU is installed, those that only it has."""
    return {**QEMU_CPUS, **CPUS} if find_qemu() is not None else CPUS


def supported_target(target: target_pb2.Target) -> bool:
    """Tell whether payloads for this target can be run."""
    cpu = simulated_cpus().get(target.cpu)
    return cpu is not None and cpu.isa == target.isa


def profile_native(
    parts: compiler_pb2.CompileResult,
    payload: bytes,
    target: target_pb2.Target,
    samples: Sequence[Sample],
    *,
    limits: Limits | None = None,
) -> Profile:
    """Run a native payload on the simulated CPU of `target` for each sample (1 to 1024), in a child process.

    The payload gets exactly the arena and stack that `parts` claims, and RAM and flash of the target. Raises
    ProfilerError: CLAIM_REFUTED (payload larger or stack deeper than claimed), DOES_NOT_FIT, PAYLOAD_FAULT (with kind,
    address and pc), PAYLOAD_INVALID, INPUT_INVALID, TARGET_UNSUPPORTED, PAYLOAD_CRASH, DEADLINE_EXCEEDED.
    """
    _check(parts, payload, target, samples)
    request = {
        "cpu": target.cpu,
        "entry_offset": parts.entry_offset,
        "arena_bytes": parts.arena_bytes,
        "stack_bytes": parts.stack_bytes,
        "ram_bytes": memory_bytes(target, target_pb2.MemoryRegion.KIND_RAM),
        "flash_bytes": memory_bytes(target, target_pb2.MemoryRegion.KIND_FLASH),
        "instruction_limit": INSTRUCTION_LIMIT,
        "input_offsets": [spec.arena_offset for spec in parts.inputs],
        "output_spans": [[spec.arena_offset, tensor_bytes(spec)] for spec in parts.outputs],
        "ranges": _ranges(parts),
    }
    blobs = [payload, *(tensor for sample in samples for tensor in sample)]
    result = run_job("native", request, blobs, limits=limits or Limits(), crash_reason="PAYLOAD_CRASH")
    return _profile(parts, payload, target, samples, result)


def memory_bytes(target: target_pb2.Target, kind: "target_pb2.MemoryRegion.Kind.ValueType") -> int:
    """Give the bytes of the largest region of that kind that a module may use: free where known, else total."""
    sizes = [
        region.free_bytes if region.HasField("free_bytes") else region.total_bytes
        for region in target.memory_regions
        if region.kind == kind
    ]
    if not sizes:
        name = target_pb2.MemoryRegion.Kind.Name(kind)
        raise ProfilerError(
            "TARGET_UNSUPPORTED", f"the target has no {name}", metadata={"constraint": "memory_regions", "value": name}
        )
    return int(max(sizes))


def _check(
    parts: compiler_pb2.CompileResult, payload: bytes, target: target_pb2.Target, samples: Sequence[Sample]
) -> None:
    if target.cpu in QEMU_CPUS and target.cpu not in simulated_cpus():
        missing = qemu_missing()
        raise ProfilerError("TARGET_UNSUPPORTED", str(missing), metadata=missing.metadata, help=missing.help)
    if not supported_target(target):
        raise ProfilerError(
            "TARGET_UNSUPPORTED",
            f"no simulated CPU for {target.cpu!r} with {target.isa!r}",
            metadata={"constraint": "cpu", "value": target.cpu},
        )
    if parts.payload_kind != target_pb2.PAYLOAD_KIND_NATIVE or parts.loader_abi != 1:
        raise ProfilerError(
            "PAYLOAD_INVALID",
            "not a native payload of ABI 1",
            metadata={"where": "parts", "detail": f"loader_abi {parts.loader_abi}"},
        )
    if len(payload) != parts.payload_bytes or bytes.fromhex(sha256(payload)) != parts.payload_sha256:
        raise ProfilerError(
            "CLAIM_REFUTED",
            "the payload is not the one that the parts describe",
            metadata={"claim": "payload_bytes", "claimed": str(parts.payload_bytes), "measured": str(len(payload))},
        )
    if not 1 <= len(samples) <= MAX_SAMPLES:
        raise ProfilerError(
            "LIMIT_EXCEEDED",
            f"{len(samples)} samples; 1 to {MAX_SAMPLES} are served",
            metadata={"limit": "samples", "value": str(MAX_SAMPLES)},
        )
    if not parts.inputs or not parts.outputs:
        raise ProfilerError("PAYLOAD_INVALID", "a payload has inputs and outputs", metadata={"where": "parts"})
    for spec in (*parts.inputs, *parts.outputs):
        if spec.arena_offset % 4 or spec.arena_offset + tensor_bytes(spec) > parts.arena_bytes:
            raise ProfilerError(
                "PAYLOAD_INVALID",
                f"tensor {spec.name!r} does not lie in the arena",
                metadata={"where": spec.name, "detail": f"offset {spec.arena_offset}"},
            )
    for symbol in parts.symbols:
        if symbol.offset + symbol.bytes > len(payload):
            raise ProfilerError(
                "PAYLOAD_INVALID",
                f"symbol {symbol.symbol!r} does not lie in the payload",
                metadata={"where": symbol.symbol},
            )
    check_samples(samples, parts.inputs)


def _profile(
    parts: compiler_pb2.CompileResult,
    payload: bytes,
    target: target_pb2.Target,
    samples: Sequence[Sample],
    result: JobResult,
) -> Profile:
    figures = result.report["samples"]
    outputs = grouped(result.blobs, len(parts.outputs))
    check_samples(outputs, parts.outputs)
    inputs_digest = sha256(b"".join(tensor for sample in samples for tensor in sample))
    subjects = [sha256(payload), inputs_digest]
    conditions = {"cpu": target.cpu, "samples": str(len(samples)), "aggregate": "max"}
    conditions |= {"emulator": str(result.report["emulator"])}
    simulated, estimated = measurement_pb2.METHOD_SIMULATED, measurement_pb2.METHOD_ESTIMATED

    def worst(name: str) -> int:
        return max(int(figure[name]) for figure in figures)

    # Where no costs of instructions are documented, no cycles are told.
    assumption = CYCLE_ASSUMPTIONS.get(target.cpu)
    assumed = {**conditions, "assumption": assumption or ""}
    measurements = [
        measure(
            measurement_pb2.METRIC_INSTRUCTIONS,
            worst("instructions"),
            simulated,
            subjects=subjects,
            conditions=conditions,
        ),
        measure(
            measurement_pb2.METRIC_STACK_BYTES,
            worst("stack_bytes"),
            simulated,
            subjects=subjects,
            conditions={**conditions, "claimed": str(parts.stack_bytes), "meaning": "lowest stack byte written"},
        ),
        measure(
            measurement_pb2.METRIC_ARENA_BYTES,
            worst("arena_high_water"),
            simulated,
            subjects=subjects,
            conditions={**conditions, "claimed": str(parts.arena_bytes), "meaning": "highest arena byte touched"},
        ),
        measure(
            measurement_pb2.METRIC_FLASH_BYTES,
            len(payload),
            measurement_pb2.METHOD_LINKED,
            subjects=subjects[:1],
            conditions={"part": "payload"},
        ),
    ]
    if assumption is not None:
        cycles = worst("estimated_cycles")
        measurements.insert(
            1, measure(measurement_pb2.METRIC_CYCLES, cycles, estimated, subjects=subjects, conditions=assumed)
        )
    if target.clock_hz and assumption is not None:
        seconds = worst("estimated_cycles") / target.clock_hz
        measurements.append(
            measure(
                measurement_pb2.METRIC_LATENCY_SECONDS,
                seconds,
                estimated,
                subjects=subjects,
                conditions={**assumed, "clock_hz": str(target.clock_hz)},
            )
        )
    return Profile(
        tuple(measurements),
        _operators(parts, result.report["costs"]),
        tuple(tuple(sample) for sample in outputs),
    )


def _owners(parts: compiler_pb2.CompileResult) -> dict[tuple[str, str], int]:
    """The nodes that have code, numbered in the order of their symbols."""
    nodes = dict.fromkeys((symbol.node, symbol.operator) for symbol in parts.symbols if symbol.node)
    return {node: number for number, node in enumerate(nodes)}


def _ranges(parts: compiler_pb2.CompileResult) -> list[tuple[int, int, int | None]]:
    """Code ranges with their owners; a symbol without a node is shared, and its cost belongs to the node that called it."""
    owners = _owners(parts)
    return [
        (symbol.offset, symbol.offset + symbol.bytes, owners.get((symbol.node, symbol.operator)))
        for symbol in parts.symbols
    ]


def _operators(
    parts: compiler_pb2.CompileResult, costs: Sequence[Mapping[str, Any]]
) -> tuple[measurement_pb2.OperatorProfile, ...]:
    """What each node cost in the first sample, then shared code (bytes only), then what was spent outside of all nodes."""
    owners = _owners(parts)
    sizes: Counter[tuple[str, str]] = Counter()
    for symbol in parts.symbols:
        sizes[symbol.node, symbol.operator] += symbol.bytes
    shared = [key for key in sizes if key not in owners]
    found = [
        _profile_of(node, operator, sizes[node, operator], cost)
        for (node, operator), cost in zip(owners, costs, strict=False)
    ]
    found += [
        measurement_pb2.OperatorProfile(node=node, operator=operator, flash_bytes=sizes[node, operator])
        for node, operator in shared
    ]
    if parts.symbols and int(costs[-1]["instructions"]):
        found.append(_profile_of("", "outside", 0, costs[-1]))
    return tuple(found)


def _profile_of(node: str, operator: str, size: int, cost: Mapping[str, Any]) -> measurement_pb2.OperatorProfile:
    moved = cost["traffic"]
    return measurement_pb2.OperatorProfile(
        node=node,
        operator=operator,
        instructions=int(cost["instructions"]),
        flash_bytes=size,
        estimated_cycles=int(cost["estimated_cycles"]),
        traffic=measurement_pb2.MemoryTraffic(**{f"{name}_bytes": int(count) for name, count in moved.items()}),
    )
