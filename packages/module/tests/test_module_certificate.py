"""The certificate checker catches each lie (IM-CERT-001 to IM-CERT-018), and says nothing about the truth."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from module_certificate import CERTIFICATE, module

from tinymlaas_module import (
    Access,
    Buffer,
    BufferKind,
    CertificateError,
    CodeSection,
    DType,
    Frame,
    Isa,
    MemoryCertificate,
    Module,
    ModuleContents,
    PayloadKind,
    Step,
    Tensor,
    TensorKind,
    check_certificate,
    decode_certificate,
    encode_certificate,
    pack,
    parse,
)


def rules(certificate: MemoryCertificate, checked: Module | None = None) -> set[str]:
    return {violation.rule for violation in check_certificate(certificate, checked or module())}


def test_a_true_certificate_has_no_violations() -> None:
    assert check_certificate(CERTIFICATE, module()) == []


def buffer(name: str, /, **changes: Any) -> MemoryCertificate:
    changed = tuple(replace(b, **changes) if b.name == name else b for b in CERTIFICATE.buffers)
    return replace(CERTIFICATE, buffers=changed)


def step(index: int, **changes: Any) -> MemoryCertificate:
    changed = tuple(replace(s, **changes) if i == index else s for i, s in enumerate(CERTIFICATE.steps))
    return replace(CERTIFICATE, steps=changed)


def sections(*parts: tuple[str, int, int]) -> MemoryCertificate:
    return replace(CERTIFICATE, sections=tuple(CodeSection(*part) for part in parts))


GHOST = Buffer("ghost", 192, 16, 1, 1, BufferKind.TENSOR)


def frame(name: str, **changes: Any) -> MemoryCertificate:
    changed = tuple(replace(f, **changes) if f.function == name else f for f in CERTIFICATE.frames)
    return replace(CERTIFICATE, frames=changed)


LIES: list[tuple[str, str, MemoryCertificate]] = [
    ("IM-CERT-001", "a negative size", buffer("conv", size=-1)),
    ("IM-CERT-001", "an empty buffer", buffer("conv", size=0)),
    ("IM-CERT-001", "an endless access", step(0, reads=(Access("input", 0, 1 << 40),))),
    ("IM-CERT-001", "a negative frame", frame("memcpy", size=-16)),
    ("IM-CERT-001", "a negative section", replace(CERTIFICATE, sections=(CodeSection(".text", 0, -1),))),
    ("IM-CERT-001", "a negative sum", replace(CERTIFICATE, stack_bytes=-1)),
    ("IM-CERT-002", "a name twice", buffer("conv", name="relu")),
    ("IM-CERT-002", "no name", frame("memcpy", function="")),
    ("IM-CERT-003", "a section forgotten", replace(CERTIFICATE, sections=CERTIFICATE.sections[:1])),
    ("IM-CERT-003", "sections overlap", sections((".text", 0, 400), (".rodata", 399, 112))),
    ("IM-CERT-003", "a section too small", sections((".text", 0, 399), (".rodata", 400, 112))),
    ("IM-CERT-004", "writable data", sections((".text", 0, 400), (".data", 400, 112))),
    ("IM-CERT-005", "a smaller arena than sealed", replace(CERTIFICATE, arena_bytes=240)),
    ("IM-CERT-005", "another alignment", replace(CERTIFICATE, arena_alignment=32)),
    ("IM-CERT-005", "another stack", replace(CERTIFICATE, stack_bytes=121)),
    ("IM-CERT-006", "a buffer beyond the arena", buffer("im2col", offset=196)),
    ("IM-CERT-006", "a misaligned buffer", buffer("im2col", offset=190, size=60)),
    ("IM-CERT-006", "no plan at all", replace(CERTIFICATE, buffers=(), steps=())),
    ("IM-CERT-007", "a life beyond the last step", buffer("relu", last_step=3)),
    ("IM-CERT-007", "a life that ends before it begins", buffer("im2col", first_step=2, last_step=1)),
    ("IM-CERT-008", "two live buffers in one place", buffer("im2col", offset=128)),
    ("IM-CERT-008", "a tensor over an input", buffer("conv", offset=32)),
    ("IM-CERT-008", "one byte too many", buffer("input", size=65)),
    ("IM-CERT-008", "in place without saying so", buffer("relu", in_place_of="")),
    ("IM-CERT-009", "in the place of nothing", buffer("relu", in_place_of="nobody")),
    ("IM-CERT-009", "in the place of itself", buffer("relu", in_place_of="relu")),
    ("IM-CERT-009", "taken over while still needed", buffer("conv", last_step=2)),
    ("IM-CERT-009", "larger than the place", buffer("relu", size=132)),
    ("IM-CERT-009", "taken over by a step that does not read it", step(1, reads=())),
    ("IM-CERT-010", "an access beyond the buffer", step(2, reads=(Access("relu", 64, 65),))),
    ("IM-CERT-010", "an access to no buffer", step(2, reads=(Access("scratch", 0, 4),))),
    ("IM-CERT-011", "an access after death", step(2, reads=(Access("relu", 0, 128), Access("input", 0, 64)))),
    ("IM-CERT-011", "an access before birth", step(0, writes=(*CERTIFICATE.steps[0].writes, Access("relu", 0, 8)))),
    ("IM-CERT-012", "a read of bytes never written", step(0, writes=(Access("im2col", 0, 64), Access("conv", 0, 120)))),
    ("IM-CERT-012", "a workspace that must be zero before", step(0, writes=(Access("conv", 0, 128),))),
    ("IM-CERT-013", "an output that dies early", buffer("output", last_step=1, first_step=1)),
    ("IM-CERT-013", "an output half written", step(2, writes=(Access("output", 0, 8),))),
    ("IM-CERT-013", "an input born late", buffer("input", first_step=1, last_step=1)),
    ("IM-CERT-014", "an output elsewhere than in the tensor table", buffer("output", offset=16)),
    ("IM-CERT-014", "an input smaller than its tensor", buffer("input", size=60)),
    ("IM-CERT-014", "an output that is no output", buffer("output", kind=BufferKind.TENSOR)),
    ("IM-CERT-016", "a call into the unknown", frame("memcpy", calls=("expf",))),
    ("IM-CERT-016", "recursion", frame("memcpy", calls=("conv",))),
    ("IM-CERT-016", "a function that calls itself", frame("memcpy", calls=("memcpy",))),
    ("IM-CERT-016", "an entry without frame", replace(CERTIFICATE, entry_function="main")),
    ("IM-CERT-016", "no method", replace(CERTIFICATE, stack_method="")),
    ("IM-CERT-016", "no frames", replace(CERTIFICATE, frames=())),
    ("IM-CERT-017", "a frame larger than the bound allows", frame("dense", size=84)),
    ("IM-CERT-018", "a buffer nobody uses", replace(CERTIFICATE, buffers=(*CERTIFICATE.buffers, GHOST))),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "lie", "certificate"), LIES, ids=[f"{rule} {lie}" for rule, lie, _ in LIES])
def test_each_lie_is_caught(rule: str, lie: str, certificate: MemoryCertificate) -> None:
    assert rule in rules(certificate)


def test_an_arena_larger_than_the_plan_is_a_lie_too() -> None:
    assert rules(replace(CERTIFICATE, arena_bytes=272), module(arena_bytes=272)) == {"IM-CERT-015"}


def test_the_header_may_not_promise_less_than_the_certificate() -> None:
    assert rules(CERTIFICATE, module(arena_bytes=240)) == {"IM-CERT-005"}
    assert rules(CERTIFICATE, module(stack_bytes=64)) == {"IM-CERT-005"}
    assert "IM-CERT-003" in rules(CERTIFICATE, module(payload=bytes(528)))


def test_a_larger_stack_bound_than_the_deepest_path_is_no_lie() -> None:
    assert rules(replace(CERTIFICATE, stack_bytes=200), module(stack_bytes=200)) == set()


def test_violations_name_rule_subject_and_numbers() -> None:
    (violation,) = check_certificate(frame("dense", size=84), module())
    assert str(violation) == "IM-CERT-017 stack_bytes: 120 claimed, the deepest path takes 124"


def test_payloads_whose_runtime_plans_are_held_to_the_sums_only() -> None:
    tensors = tuple(Tensor(kind, DType.INT8, (4,)) for kind in (TensorKind.INPUT, TensorKind.OUTPUT))
    contents = ModuleContents(
        name="m", version="1", kind=PayloadKind.TFLITE, payload=bytes(512), tensors=tensors, arena_bytes=256
    )
    sums = MemoryCertificate((CodeSection("model", 0, 512),), 256, 16, 0, "")
    checked = parse(pack(contents))
    assert check_certificate(sums, checked) == []
    assert rules(replace(sums, arena_bytes=128), checked) == {"IM-CERT-005"}
    assert rules(replace(sums, sections=()), checked) == {"IM-CERT-003"}


def test_a_certificate_of_absurd_size_is_refused_at_once() -> None:
    many = tuple(Buffer(f"b{i}", 0, 16, 0, 0, BufferKind.TENSOR) for i in range(5000))
    assert rules(replace(CERTIFICATE, buffers=many)) == {"IM-CERT-001"}
    steps = tuple(Step("s", (Access("input", 0, 1),) * 100) for _ in range(1001))
    assert rules(replace(CERTIFICATE, steps=steps)) == {"IM-CERT-001"}


def test_a_chain_of_calls_deeper_than_pythons_stack_is_followed() -> None:
    chain = tuple(Frame(f"f{i}", 1, (f"f{i + 1}",) if i < 4999 else ()) for i in range(5000))
    deep = replace(CERTIFICATE, frames=chain, entry_function="f0", stack_bytes=5000)
    assert rules(deep, module(stack_bytes=5000)) == set()
    assert rules(replace(deep, stack_bytes=4999), module(stack_bytes=4999)) == {"IM-CERT-017"}


def test_calls_that_branch_and_join_again_and_again_are_counted_once() -> None:
    frames = tuple(Frame(f"f{i}", 1, (f"f{i + 1}",) * 2 if i < 60 else ()) for i in range(61))
    certificate = replace(CERTIFICATE, frames=frames, entry_function="f0")
    assert rules(certificate) == set()


def test_the_protobuf_form_says_the_same() -> None:
    """IM-CERT-019."""
    data = encode_certificate(CERTIFICATE)
    assert decode_certificate(data) == CERTIFICATE
    assert encode_certificate(decode_certificate(data)) == data


@settings(max_examples=300, deadline=None, derandomize=True)
@given(at=st.integers(0, 400), data=st.binary(max_size=30))
def test_hostile_certificate_bytes_are_refused_or_checked(at: int, data: bytes) -> None:
    good = encode_certificate(CERTIFICATE)
    try:
        certificate = decode_certificate(good[:at] + data + good[at + len(data) :])
    except CertificateError:
        return
    assert isinstance(check_certificate(certificate, module()), list)


def test_the_checker_imports_no_compiler() -> None:
    """IM-CERT-020: what it judges must not be among what it is made of."""
    code = (
        "import sys; before = set(sys.modules); import tinymlaas_module.checking; "
        "print(sorted(m.split('.')[0] for m in set(sys.modules) - before))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("tvm", "numpy", "onnx", "ziglang", "tinymlaas_compiler", "tensorflow", "grpc"):
        assert f"'{name}" not in loaded


# --- the checker against brute force: simulate the arena byte by byte


@st.composite
def _plans(draw: st.DrawFn) -> tuple[MemoryCertificate, Module]:
    """A chain of steps whose buffers are placed at random: many plans are sound, many are not."""
    count = draw(st.integers(1, 5))
    arena = 64
    names = [f"t{i}" for i in range(count + 1)]
    sizes = [draw(st.sampled_from([4, 8, 16])) for _ in names]
    offsets = [draw(st.integers(0, 12)) * 4 for _ in names]
    buffers, steps = [], []
    for i, name in enumerate(names):
        kind = BufferKind.INPUT if i == 0 else BufferKind.OUTPUT if i == count else BufferKind.TENSOR
        last = min(i + draw(st.integers(0, 1)), count - 1) if i < count else count - 1
        buffers.append(Buffer(name, offsets[i], sizes[i], max(0, i - 1), max(last, i - 1, 0), kind))
    for i in range(count):
        steps.append(Step(f"s{i}", (Access(names[i], 0, sizes[i]),), (Access(names[i + 1], 0, sizes[i + 1]),)))
    certificate = MemoryCertificate(
        (CodeSection("code", 0, 32),), arena, 64, 8, "m", tuple(buffers), tuple(steps), (Frame("e", 8),), "e"
    )
    tensors = (
        Tensor(TensorKind.INPUT, DType.INT8, (sizes[0],), arena_offset=offsets[0]),
        Tensor(TensorKind.OUTPUT, DType.INT8, (sizes[-1],), arena_offset=offsets[-1]),
    )
    contents = ModuleContents(
        name="m", version="1", kind=PayloadKind.NATIVE, payload=bytes(32), tensors=tensors, arena_bytes=arena,
        arena_alignment=64, isa=Isa.RV32IMC, stack_bytes=8,
    )  # fmt: skip
    return certificate, parse(pack(contents))


def _runs_clean(certificate: MemoryCertificate) -> bool:
    """Execute the accesses on an arena of owner marks: a read finds the marks of its own buffer, or the plan is wrong."""
    owner: list[str] = [""] * certificate.arena_bytes
    by_name = {b.name: b for b in certificate.buffers}

    def mark(name: str) -> None:
        for at in range(by_name[name].offset, by_name[name].offset + by_name[name].size):
            owner[at] = name

    mark("t0")
    for current in certificate.steps:
        held = list(current.reads)
        for access in held:
            place = by_name[access.buffer]
            if any(owner[at] != access.buffer for at in range(place.offset, place.offset + place.size)):
                return False
        for access in current.writes:
            mark(access.buffer)
        for access in held:  # a kernel may read its input until its last output byte is written
            place = by_name[access.buffer]
            if any(owner[at] != access.buffer for at in range(place.offset, place.offset + place.size)):
                return False
    return True


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(plan=_plans())
def test_what_the_checker_admits_runs_without_overwriting_a_live_value(plan: tuple[MemoryCertificate, Module]) -> None:
    certificate, checked = plan
    if not check_certificate(certificate, checked):
        assert _runs_clean(certificate)


def test_the_brute_force_comparison_does_meet_admitted_plans() -> None:
    certificate, checked = find(_plans(), lambda plan: len(plan[0].steps) == 3 and not check_certificate(*plan))
    assert _runs_clean(certificate)
    assert check_certificate(certificate, checked) == []


def test_the_brute_force_execution_does_find_overwritten_values() -> None:
    clash = MemoryCertificate(
        (), 64, 16, 0, "m",
        (Buffer("t0", 0, 8, 0, 0, BufferKind.INPUT), Buffer("t1", 4, 8, 0, 0, BufferKind.OUTPUT)),
        (Step("s", (Access("t0", 0, 8),), (Access("t1", 0, 8),)),),
    )  # fmt: skip
    assert not _runs_clean(clash)
