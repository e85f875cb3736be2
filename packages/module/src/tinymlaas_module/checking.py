"""The independent checker of memory certificates: believes nothing, imports no compiler (spec section 10).

It takes the certificate as the compiler's claims and the module as the facts, and returns every contradiction it finds.
An empty list means: if the payload accesses memory as stated, it stays inside the arena, no live value is overwritten,
and arena, stack and flash are what the header says. That the payload does access memory as stated is for the Profiler
to witness, which runs it in a simulator that catches every access outside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from .certificate import Access, Buffer, BufferKind, Frame, MemoryCertificate
from .contents import Module, Tensor
from .intervals import ByteSet
from .layout import MAX_MEMORY_BYTES, PayloadKind, TensorKind, align_up

MAX_ITEMS = 100_000
MAX_BUFFERS = 4_096  # every pair that lives at the same time is compared
WRITABLE_SECTIONS = (".data", ".bss", ".sdata", ".sbss", ".tdata", ".tbss", ".got", ".plt")


@dataclass(frozen=True, slots=True)
class Violation:
    """A contradiction: the rule's id in the specification, what it is about, and the numbers."""

    rule: str
    subject: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule} {self.subject}: {self.detail}"


def check_certificate(certificate: MemoryCertificate, module: Module) -> list[Violation]:
    """Return every violation of rules IM-CERT-001 to IM-CERT-018; an empty list admits the module.

    Rules about the arena plan and the call graph hold for NATIVE payloads; for the others the runtime plans, and only the
    sums are checked. Refuses more than 4,096 buffers or 100,000 items in all, so that a hostile certificate costs seconds.
    """
    items = len(certificate.sections) + len(certificate.buffers) + len(certificate.steps) + len(certificate.frames)
    items += sum(len(step.reads) + len(step.writes) for step in certificate.steps)
    items += sum(len(frame.calls) for frame in certificate.frames)
    if items > MAX_ITEMS:
        return [Violation("IM-CERT-001", "certificate", f"{items} items, at most {MAX_ITEMS} are checked")]
    if len(certificate.buffers) > MAX_BUFFERS:
        count = len(certificate.buffers)
        return [Violation("IM-CERT-001", "certificate", f"{count} buffers, at most {MAX_BUFFERS} are checked")]
    violations = list(_check_numbers(certificate)) + list(_check_names(certificate))
    if violations:  # the other rules count on sane numbers and names
        return violations
    violations += _check_sections(certificate, module)
    violations += _check_sums(certificate, module)
    if module.header.kind is PayloadKind.NATIVE or certificate.buffers or certificate.steps:
        violations += _check_plan(certificate)
        violations += _check_overlaps(certificate)
        violations += _check_accesses(certificate)
        violations += _check_tensors(certificate, module)
    if module.header.kind is PayloadKind.NATIVE or certificate.frames:
        violations += _check_stack(certificate)
    return violations


def _check_numbers(certificate: MemoryCertificate) -> Iterator[Violation]:
    def wild(*numbers: int) -> bool:
        return any(not 0 <= number <= MAX_MEMORY_BYTES for number in numbers)

    if wild(certificate.arena_bytes, certificate.arena_alignment, certificate.stack_bytes):
        yield Violation("IM-CERT-001", "certificate", "a sum is negative or above 2^31-1")
    for section in certificate.sections:
        if wild(section.offset, section.size):
            yield Violation("IM-CERT-001", section.name, f"offset {section.offset}, {section.size} bytes")
    for buffer in certificate.buffers:
        if wild(buffer.offset, buffer.size, buffer.first_step, buffer.last_step) or buffer.size == 0:
            yield Violation("IM-CERT-001", buffer.name, f"offset {buffer.offset}, {buffer.size} bytes")
    for step in certificate.steps:
        for access in step.reads + step.writes:
            if wild(access.offset, access.size) or access.size == 0:
                yield Violation("IM-CERT-001", step.name, f"access at {access.offset}, {access.size} bytes")
    for frame in certificate.frames:
        if wild(frame.size):
            yield Violation("IM-CERT-001", frame.function, f"frame of {frame.size} bytes")


def _check_names(certificate: MemoryCertificate) -> Iterator[Violation]:
    named = {
        "section": [section.name for section in certificate.sections],
        "buffer": [buffer.name for buffer in certificate.buffers],
        "function": [frame.function for frame in certificate.frames],
    }
    for kind, names in named.items():
        for name, count in Counter(names).items():
            if count > 1 or not name:
                yield Violation("IM-CERT-002", name or kind, f"{kind} name is used {count} times or empty")


def _check_sections(certificate: MemoryCertificate, module: Module) -> Iterator[Violation]:
    payload = len(module.payload)
    total = sum(section.size for section in certificate.sections)
    if total != payload:
        yield Violation("IM-CERT-003", "sections", f"sum up to {total} bytes, the payload has {payload}")
    end = 0
    for section in sorted(certificate.sections, key=lambda item: (item.offset, item.size)):
        if section.offset < end or section.offset + section.size > payload:
            yield Violation(
                "IM-CERT-003", section.name, f"{section.offset}+{section.size} overlaps or leaves the payload"
            )
        end = section.offset + section.size
        if module.header.kind is PayloadKind.NATIVE and section.size and section.name.startswith(WRITABLE_SECTIONS):
            yield Violation("IM-CERT-004", section.name, f"{section.size} bytes that would need relocation or RAM")


def _check_sums(certificate: MemoryCertificate, module: Module) -> Iterator[Violation]:
    header = module.header
    for subject, claimed, sealed in (
        ("arena_bytes", certificate.arena_bytes, header.arena_bytes),
        ("arena_alignment", certificate.arena_alignment, header.arena_alignment),
        ("stack_bytes", certificate.stack_bytes, header.stack_bytes),
    ):
        if claimed != sealed:
            yield Violation("IM-CERT-005", subject, f"certificate says {claimed}, header says {sealed}")


def _check_plan(certificate: MemoryCertificate) -> Iterator[Violation]:
    steps = len(certificate.steps)
    if not certificate.buffers or not steps:
        yield Violation("IM-CERT-006", "plan", f"{len(certificate.buffers)} buffers, {steps} steps")
        return
    for buffer in certificate.buffers:
        if buffer.offset + buffer.size > certificate.arena_bytes:
            yield Violation(
                "IM-CERT-006",
                buffer.name,
                f"{buffer.offset}+{buffer.size} leaves the arena of {certificate.arena_bytes}",
            )
        if buffer.offset % 4:
            yield Violation("IM-CERT-006", buffer.name, f"offset {buffer.offset} is not a multiple of 4")
        if not buffer.first_step <= buffer.last_step < steps:
            yield Violation(
                "IM-CERT-007", buffer.name, f"live in steps {buffer.first_step} to {buffer.last_step} of {steps}"
            )
        if buffer.kind is BufferKind.INPUT and buffer.first_step != 0:
            yield Violation("IM-CERT-013", buffer.name, f"an input is live from step 0, not {buffer.first_step}")
        if buffer.kind is BufferKind.OUTPUT and buffer.last_step != steps - 1:
            yield Violation(
                "IM-CERT-013", buffer.name, f"an output is live to step {steps - 1}, not {buffer.last_step}"
            )
    top = max(buffer.offset + buffer.size for buffer in certificate.buffers)
    if certificate.arena_bytes > align_up(top, max(certificate.arena_alignment, 1)):
        yield Violation("IM-CERT-015", "arena_bytes", f"{certificate.arena_bytes}, but the plan ends at {top}")


def _check_overlaps(certificate: MemoryCertificate) -> Iterator[Violation]:
    """Sweep over the steps with the live buffers sorted by offset."""
    by_name = {buffer.name: buffer for buffer in certificate.buffers}
    handed_over = {buffer.name for buffer in certificate.buffers if buffer.in_place_of}
    for name in sorted(handed_over):
        yield from _check_in_place(by_name[name], by_name, certificate)
    live: list[Buffer] = []
    for buffer in sorted(certificate.buffers, key=lambda item: (item.first_step, item.offset, item.name)):
        live = [other for other in live if other.last_step >= buffer.first_step]
        for other in live:
            if buffer.offset < other.offset + other.size and other.offset < buffer.offset + buffer.size:
                if buffer.in_place_of == other.name or other.in_place_of == buffer.name:
                    continue
                yield Violation(
                    "IM-CERT-008",
                    buffer.name,
                    f"{buffer.offset}+{buffer.size} overlaps {other.name} at {other.offset}+{other.size}, "
                    f"both live in step {max(buffer.first_step, other.first_step)}",
                )
        live.append(buffer)


def _check_in_place(buffer: Buffer, by_name: dict[str, Buffer], certificate: MemoryCertificate) -> Iterator[Violation]:
    other = by_name.get(buffer.in_place_of)
    if other is None or other is buffer:
        yield Violation("IM-CERT-009", buffer.name, f"takes the place of unknown buffer {buffer.in_place_of!r}")
        return
    if buffer.first_step != other.last_step:
        yield Violation(
            "IM-CERT-009",
            buffer.name,
            f"takes over from {other.name} in step {other.last_step}, but lives from step {buffer.first_step}",
        )
        return
    if buffer.offset < other.offset or buffer.offset + buffer.size > other.offset + other.size:
        yield Violation("IM-CERT-009", buffer.name, f"is not inside {other.name}, whose place it takes")
    if buffer.first_step >= len(certificate.steps):
        return  # reported as IM-CERT-007
    step = certificate.steps[buffer.first_step]
    reads_old = any(access.buffer == other.name for access in step.reads)
    writes_new = any(access.buffer == buffer.name for access in step.writes)
    if not (reads_old and writes_new):
        yield Violation(
            "IM-CERT-009", buffer.name, f"step {step.name!r} does not read {other.name} and write {buffer.name}"
        )


def _check_accesses(certificate: MemoryCertificate) -> Iterator[Violation]:
    by_name = {buffer.name: buffer for buffer in certificate.buffers}
    written = {buffer.name: ByteSet() for buffer in certificate.buffers}
    for buffer in certificate.buffers:
        if buffer.kind is BufferKind.INPUT:
            written[buffer.name].add(0, buffer.size)
    used: set[str] = set()
    for index, step in enumerate(certificate.steps):
        # A step's own writes count for its reads of workspaces only: a tensor must have been made by an earlier step.
        for access in step.writes:
            if _is_workspace(by_name, access):
                written[access.buffer].add(access.offset, access.offset + access.size)
        for access in step.reads + step.writes:
            used.add(access.buffer)
            yield from _check_access(index, step.name, access, by_name)
        for access in step.reads:
            known = written.get(access.buffer)
            if known is not None and not known.covers(access.offset, access.offset + access.size):
                yield Violation(
                    "IM-CERT-012",
                    access.buffer,
                    f"step {index} ({step.name}) reads {access.offset}+{access.size}, not all of which was written",
                )
        for access in step.writes:
            if access.buffer in written:
                written[access.buffer].add(access.offset, access.offset + access.size)
    for buffer in certificate.buffers:
        if buffer.kind is BufferKind.OUTPUT and not written[buffer.name].covers(0, buffer.size):
            yield Violation("IM-CERT-013", buffer.name, "an output is not written completely")
        if buffer.kind is not BufferKind.INPUT and buffer.name not in used:
            yield Violation("IM-CERT-018", buffer.name, "no step accesses it")


def _is_workspace(by_name: dict[str, Buffer], access: Access) -> bool:
    buffer = by_name.get(access.buffer)
    return buffer is not None and buffer.kind is BufferKind.WORKSPACE


def _check_access(index: int, step: str, access: Access, by_name: dict[str, Buffer]) -> Iterator[Violation]:
    buffer = by_name.get(access.buffer)
    if buffer is None:
        yield Violation("IM-CERT-010", access.buffer or step, f"step {index} ({step}) accesses an unknown buffer")
        return
    if access.offset + access.size > buffer.size:
        yield Violation(
            "IM-CERT-010",
            buffer.name,
            f"step {index} ({step}) accesses {access.offset}+{access.size} of {buffer.size} bytes",
        )
    if not buffer.first_step <= index <= buffer.last_step:
        yield Violation(
            "IM-CERT-011",
            buffer.name,
            f"accessed in step {index} ({step}), live in steps {buffer.first_step} to {buffer.last_step}",
        )


def _check_tensors(certificate: MemoryCertificate, module: Module) -> Iterator[Violation]:
    for tensor_kind, buffer_kind in ((TensorKind.INPUT, BufferKind.INPUT), (TensorKind.OUTPUT, BufferKind.OUTPUT)):
        free = {buffer.offset: buffer for buffer in certificate.buffers if buffer.kind is buffer_kind}
        tensors: list[Tensor] = [tensor for tensor in module.tensors if tensor.kind is tensor_kind]
        for index, tensor in enumerate(tensors):
            buffer = None if tensor.arena_offset is None else free.pop(tensor.arena_offset, None)
            if buffer is None or tensor.size > buffer.size:
                yield Violation(
                    "IM-CERT-014",
                    f"{tensor_kind.name.lower()} {index}",
                    f"{tensor.size} bytes at {tensor.arena_offset} have no {buffer_kind.name} buffer there",
                )
        for buffer in free.values():
            yield Violation("IM-CERT-014", buffer.name, f"an {buffer_kind.name} buffer without tensor in the module")


def _check_stack(certificate: MemoryCertificate) -> Iterator[Violation]:
    frames = {frame.function: frame for frame in certificate.frames}
    if not certificate.stack_method:
        yield Violation("IM-CERT-016", "stack_method", "how the frames were obtained is not said")
    unknown = [
        (frame.function, callee) for frame in certificate.frames for callee in frame.calls if callee not in frames
    ]
    for function, callee in unknown:
        yield Violation("IM-CERT-016", function, f"calls {callee}, which has no frame")
    if certificate.entry_function not in frames:
        yield Violation("IM-CERT-016", certificate.entry_function or "entry_function", "the entry has no frame")
        return
    if unknown:
        return
    depth = _deepest(certificate.entry_function, frames)
    if depth is None:
        yield Violation("IM-CERT-016", certificate.entry_function, "the call graph is recursive: no bound")
    elif certificate.stack_bytes < depth:
        yield Violation(
            "IM-CERT-017", "stack_bytes", f"{certificate.stack_bytes} claimed, the deepest path takes {depth}"
        )


def _deepest(entry: str, frames: dict[str, Frame]) -> int | None:
    """Return the bytes of the deepest path from ``entry``, or ``None`` when a cycle is reachable. Needs no recursion."""
    depth: dict[str, int] = {}
    open_functions: set[str] = set()
    work: list[tuple[str, bool]] = [(entry, False)]
    while work:
        function, leaving = work.pop()
        frame = frames[function]
        if leaving:
            open_functions.discard(function)
            depth[function] = frame.size + max((depth[callee] for callee in frame.calls), default=0)
        elif function not in depth:
            if function in open_functions:
                return None
            open_functions.add(function)
            work.append((function, True))
            for callee in frame.calls:
                if callee in open_functions:
                    return None
                work.append((callee, False))
    return depth[entry]
