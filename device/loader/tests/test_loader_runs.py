"""Opening, starting, invoking and self-testing modules through the C interface, with machine code of this host."""

from __future__ import annotations

import mmap
import platform
import struct
from dataclasses import replace
from typing import Any

import pytest

from tinymlaas_module import (
    DType,
    Executor,
    Golden,
    GoldenVector,
    Isa,
    ModuleContents,
    Numerics,
    NumericsClass,
    PayloadKind,
    SectionType,
    Tensor,
    TensorKind,
    identity,
    pack,
    parse,
    sign,
    strip,
)
from tinymlaas_module import corpus as im_corpus

needs_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="payloads of these tests are x86-64 machine code; this host is not"
)

# mov eax,[rdi]; add eax,0x01010101; mov [rdi+16],eax; xor eax,eax; ret: adds one to each of four bytes
ADD_ONE = bytes.fromhex("8b07 0501010101 894710 31c0 c3".replace(" ", ""))
FAIL_WITH_5 = bytes.fromhex("b805000000c3")
# inc dword [rdi+32]; mov eax,[rdi+32]; mov [rdi+16],eax; xor eax,eax; ret: counts its invocations
COUNT = bytes.fromhex("ff4720 8b4720 894710 31c0 c3".replace(" ", ""))
# movss xmm0,[rdi]; addss xmm0,xmm0; movss [rdi+16],xmm0; xor eax,eax; ret: doubles a float
DOUBLE = bytes.fromhex("f30f1007 f30f58c0 f30f114710 31c0 c3".replace(" ", ""))


def contents(
    payload: bytes = ADD_ONE, dtype: DType = DType.UINT8, golden: Golden | None = None, **changes: Any
) -> ModuleContents:
    shape = (4 // dtype.size,)
    tensors = (
        Tensor(TensorKind.INPUT, dtype, shape, arena_offset=0),
        Tensor(TensorKind.OUTPUT, dtype, shape, arena_offset=16),
    )
    base = ModuleContents(
        name="host",
        version="1",
        kind=PayloadKind.NATIVE,
        payload=payload,
        tensors=tensors,
        arena_bytes=48,
        isa=Isa.X86_64,
        stack_bytes=64,
        security_counter=im_corpus.MINIMUM_COUNTER,
        golden=golden,
    )
    return replace(base, **changes)


def golden(numerics: Numerics, *pairs: tuple[bytes, bytes]) -> Golden:
    return Golden(numerics, tuple(GoldenVector((given,), (want,)) for given, want in pairs))


EXACT = Numerics(NumericsClass.BIT_EXACT, Executor.TFLITE)


class Board:
    """Executable memory with an image in it, an arena, and the platform description."""

    def __init__(self, loader: Any, image: bytes, **platform_changes: int) -> None:
        self.loader, self.ffi, self.lib = loader, loader.ffi, loader.lib
        self.memory = mmap.mmap(-1, 65536, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.memory[: len(image)] = image
        self.base = self.ffi.from_buffer("uint8_t[]", self.memory)
        self.size = len(image)
        (key_id, public_key) = next(iter(im_corpus.TRUSTED.keys.items()))
        self.key = self.ffi.new("tim_key *", {"id": key_id, "public_key": public_key})
        fields = {"keys": self.key, "key_count": 1, "kinds": 0x7E, "isas": 0x3FF, "features": 63, **platform_changes}
        self.platform = self.ffi.new("tim_platform *", fields)
        self.module = self.ffi.new("tim_module *")
        self.block = self.ffi.new("uint8_t[]", 8192)
        self.arena = self.block + (-int(self.ffi.cast("uintptr_t", self.block)) % 4096)

    def open(self, minimum_counter: int = im_corpus.MINIMUM_COUNTER) -> str:
        status = self.lib.tim_open(self.base, self.size, self.platform, minimum_counter, self.module)
        return str(self.loader.status(status))

    def start(self, arena_bytes: int = 48) -> str:
        return str(self.loader.status(self.lib.tim_start(self.module, self.arena, arena_bytes)))

    def self_test(self) -> str:
        return str(self.loader.status(self.lib.tim_self_test(self.module, self.ffi.NULL)))


def signed(made: ModuleContents) -> bytes:
    return sign(pack(made), im_corpus.SIGNER)


def started(loader: Any, made: ModuleContents) -> Board:
    board = Board(loader, signed(made))
    assert board.open() == "OK"
    assert board.start() == "OK"
    return board


@needs_x86
def test_a_module_computes_its_outputs_from_its_inputs_in_the_arena(loader: Any) -> None:
    """IM-EXEC-001, IM-EXEC-003."""
    board = started(loader, contents())
    board.ffi.memmove(board.lib.tim_input(board.module, 0), bytes([1, 2, 3, 250]), 4)
    assert board.lib.tim_invoke(board.module, board.ffi.NULL) == 0
    assert bytes(board.ffi.buffer(board.lib.tim_output(board.module, 0), 4)) == bytes([2, 3, 4, 251])
    assert board.lib.tim_input(board.module, 1) == board.ffi.NULL
    assert board.lib.tim_output(board.module, 1) == board.ffi.NULL


@needs_x86
def test_two_modules_take_turns_in_one_arena(loader: Any) -> None:
    """IM-EXEC-006: no state outside the arena."""
    first, second = started(loader, contents()), started(loader, contents(DOUBLE, DType.FLOAT32))
    assert second.lib.tim_start(second.module, first.arena, 48) == 0
    for _ in range(2):
        first.ffi.memmove(first.lib.tim_input(first.module, 0), bytes([9, 9, 9, 9]), 4)
        assert first.lib.tim_invoke(first.module, first.ffi.NULL) == 0
        assert bytes(first.ffi.buffer(first.lib.tim_output(first.module, 0), 4)) == bytes([10] * 4)
        second.ffi.memmove(second.lib.tim_input(second.module, 0), struct.pack("<f", 1.5), 4)
        assert second.lib.tim_invoke(second.module, second.ffi.NULL) == 0
        assert bytes(second.ffi.buffer(second.lib.tim_output(second.module, 0), 4)) == struct.pack("<f", 3.0)


@needs_x86
def test_the_error_of_a_payload_is_handed_on(loader: Any) -> None:
    board = started(loader, contents(FAIL_WITH_5))
    error = board.ffi.new("int32_t *")
    assert loader.status(board.lib.tim_invoke(board.module, error)) == "PAYLOAD_ERROR"
    assert error[0] == 5


def test_a_module_is_not_run_before_it_has_an_arena(loader: Any) -> None:
    board = Board(loader, signed(contents()))
    assert board.open() == "OK"
    assert board.lib.tim_input(board.module, 0) == board.ffi.NULL
    assert loader.status(board.lib.tim_invoke(board.module, board.ffi.NULL)) == "NOT_STARTED"
    assert board.self_test() == "GOLDEN_ABSENT"


def test_an_arena_must_be_large_enough_and_aligned(loader: Any) -> None:
    """IM-EXEC-002."""
    board = Board(loader, signed(contents(arena_alignment=4096)))
    assert board.open() == "OK"
    assert board.start(47) == "ARENA_TOO_SMALL"
    assert board.start(48) == "OK"
    off = board.lib.tim_start(board.module, board.arena + 2048, 48)
    assert loader.status(off) == "MISALIGNED"
    assert loader.status(board.lib.tim_start(board.module, board.ffi.NULL, 48)) == "MISALIGNED"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kinds": 1 << 2}, "TARGET_UNSUPPORTED"),
        ({"isas": 1 << 3}, "TARGET_UNSUPPORTED"),
        ({"stack_bytes": 63}, "STACK_TOO_SMALL"),
        ({"stack_bytes": 64}, "OK"),
        ({"key_count": 0}, "KEY_UNKNOWN"),
    ],
)
def test_a_platform_takes_only_what_it_can_run(loader: Any, change: dict[str, int], reason: str) -> None:
    """IM-LOAD-003."""
    assert Board(loader, signed(contents()), **change).open() == reason


def test_missing_cpu_features_are_refused(loader: Any) -> None:
    image = im_corpus.pack(im_corpus.native_contents())
    assert Board(loader, sign(image, im_corpus.SIGNER), features=1).open() == "TARGET_UNSUPPORTED"
    assert Board(loader, sign(image, im_corpus.SIGNER), features=3).open() == "OK"


def test_an_older_security_counter_is_a_downgrade(loader: Any) -> None:
    """IM-SIGN-006."""
    board = Board(loader, signed(contents()))
    assert board.open(im_corpus.MINIMUM_COUNTER + 1) == "DOWNGRADE"
    assert board.open(im_corpus.MINIMUM_COUNTER) == "OK"


def test_the_head_alone_is_judged_as_soon_as_it_is_there(loader: Any) -> None:
    """IM-LOAD-002: a refused module costs no flash."""
    image = signed(contents())
    board = Board(loader, image[: parse(image).payload_offset])
    size = board.lib.tim_head_bytes(board.base)
    assert size == parse(image).payload_offset
    assert board.lib.tim_check_head(board.base, size, board.platform, 0) == 0
    assert loader.status(board.lib.tim_check_head(board.base, size, board.platform, 99)) == "DOWNGRADE"
    assert loader.status(board.lib.tim_check_head(board.base, size - 16, board.platform, 0)) == "TRUNCATED"
    board.memory[40] ^= 2
    assert loader.status(board.lib.tim_check_head(board.base, size, board.platform, 0)) == "SIGNATURE_INVALID"


GOLDEN_CASES = [
    (EXACT, DType.UINT8, bytes([2, 3, 4, 5]), "OK"),
    (EXACT, DType.UINT8, bytes([2, 3, 4, 6]), "SELF_TEST_FAILED"),
    (Numerics(NumericsClass.WITHIN_LSB, Executor.TFLITE, lsb=2), DType.UINT8, bytes([4, 1, 4, 5]), "OK"),
    (Numerics(NumericsClass.WITHIN_LSB, Executor.TFLITE, lsb=2), DType.UINT8, bytes([5, 3, 4, 5]), "SELF_TEST_FAILED"),
    (Numerics(NumericsClass.WITHIN_LSB, Executor.ONNX, lsb=1), DType.INT8, bytes([1, 4, 4, 5]), "OK"),
    (Numerics(NumericsClass.WITHIN_LSB, Executor.ONNX, lsb=1), DType.INT16, struct.pack("<2h", 0x303, 0x503), "OK"),
    (Numerics(NumericsClass.WITHIN_LSB, Executor.ONNX, lsb=1), DType.UINT16, struct.pack("<2H", 0x301, 0x505), "OK"),
    (Numerics(NumericsClass.WITHIN_LSB, Executor.ONNX, lsb=1), DType.INT16, struct.pack("<2h", 0x300, 0x504), "SELF_TEST_FAILED"),
    (Numerics(NumericsClass.WITHIN_LSB, Executor.ONNX, lsb=1), DType.INT32, struct.pack("<i", 0x05040301), "OK"),
    (Numerics(NumericsClass.WITHIN_LSB, Executor.ONNX, lsb=1), DType.UINT32, struct.pack("<I", 0x05040303), "OK"),
    (Numerics(NumericsClass.WITHIN_LSB, Executor.ONNX, lsb=1), DType.INT32, struct.pack("<i", -(1 << 31)), "SELF_TEST_FAILED"),
    (Numerics(NumericsClass.WITHIN_LSB, Executor.ONNX, lsb=1), DType.UINT32, struct.pack("<I", 0xFFFFFFFF), "SELF_TEST_FAILED"),
]  # fmt: skip


@needs_x86
@pytest.mark.parametrize(("numerics", "dtype", "want", "verdict"), GOLDEN_CASES)
def test_the_self_test_compares_integers_in_the_declared_class(
    loader: Any, numerics: Numerics, dtype: DType, want: bytes, verdict: str
) -> None:
    """IM-LOAD-005, IM-GOLD-003."""
    board = started(loader, contents(dtype=dtype, golden=golden(numerics, (bytes([1, 2, 3, 4]), want))))
    assert board.self_test() == verdict


FLOAT_CASES = [
    (1.0, 2.0, "OK"),
    (1.0, 2.001, "OK"),
    (1.0, 2.01, "SELF_TEST_FAILED"),
    (-1000.0, -2000.9, "OK"),
    (0.0, 0.0005, "OK"),
    (0.0, 0.002, "SELF_TEST_FAILED"),
    (float("inf"), float("inf"), "OK"),
    (float("inf"), 1.0, "SELF_TEST_FAILED"),
    (1.0, float("nan"), "SELF_TEST_FAILED"),
    (float("nan"), 1.0, "SELF_TEST_FAILED"),
]


@needs_x86
@pytest.mark.parametrize(("given", "want", "verdict"), FLOAT_CASES)
def test_the_self_test_compares_floats_within_the_tolerance(
    loader: Any, given: float, want: float, verdict: str
) -> None:
    numerics = Numerics(NumericsClass.WITHIN_TOLERANCE, Executor.ONNX, rtol=1e-3, atol=1e-3)
    vector = (struct.pack("<f", given), struct.pack("<f", want))
    board = started(loader, contents(DOUBLE, DType.FLOAT32, golden(numerics, vector)))
    assert board.self_test() == verdict


@needs_x86
def test_every_golden_vector_is_run_and_the_failing_one_is_named(loader: Any) -> None:
    vectors = [(bytes([i] * 4), bytes([i + 1] * 4)) for i in range(5)]
    vectors[3] = (vectors[3][0], bytes(4))
    board = started(loader, contents(golden=golden(EXACT, *vectors)))
    failed = board.ffi.new("uint32_t *")
    assert loader.status(board.lib.tim_self_test(board.module, failed)) == "SELF_TEST_FAILED"
    assert failed[0] == 3
    assert board.lib.tim_golden_count(board.module) == 5
    assert bytes(board.ffi.buffer(board.lib.tim_golden_tensor(board.module, 2, 0), 4)) == bytes([2] * 4)
    assert board.lib.tim_golden_tensor(board.module, 5, 0) == board.ffi.NULL
    assert board.lib.tim_golden_tensor(board.module, 0, 2) == board.ffi.NULL


@needs_x86
def test_a_stateful_module_starts_from_a_zeroed_arena_and_keeps_it(loader: Any) -> None:
    """IM-EXEC-006: STATEFUL."""
    counted = [(bytes(4), struct.pack("<I", n)) for n in (1, 2, 3)]
    made = contents(COUNT, DType.UINT32, golden(EXACT, *counted), stateful=True)
    board = started(loader, made)
    assert board.self_test() == "OK"
    assert board.self_test() == "OK"
    assert board.lib.tim_invoke(board.module, board.ffi.NULL) == 0
    assert bytes(board.ffi.buffer(board.lib.tim_output(board.module, 0), 4)) == struct.pack("<I", 1)


def test_images_without_golden_vectors_open_but_cannot_be_self_tested(loader: Any) -> None:
    image = strip(signed(contents(golden=golden(EXACT, (bytes(4), bytes([1] * 4))))), [SectionType.GOLDEN])
    board = Board(loader, image)
    assert board.open() == "OK"
    assert board.start() == "OK"
    assert board.self_test() == "GOLDEN_ABSENT"


def test_payloads_of_other_kinds_open_and_are_left_to_the_firmware(loader: Any) -> None:
    board = Board(loader, sign(pack(im_corpus.tflite_contents()), im_corpus.SIGNER))
    assert board.open() == "OK"
    assert board.start(2048) == "OK"
    assert loader.status(board.lib.tim_invoke(board.module, board.ffi.NULL)) == "KIND_NOT_EXECUTABLE"
    assert board.self_test() == "KIND_NOT_EXECUTABLE"
    assert board.lib.tim_input(board.module, 0) == board.ffi.NULL
    good, near = struct.pack("<f", 10.0), struct.pack("<f", 10.001)
    assert board.lib.tim_golden_matches(board.module, 0, 0, good)
    assert board.lib.tim_golden_matches(board.module, 0, 0, near)
    assert not board.lib.tim_golden_matches(board.module, 0, 0, struct.pack("<f", 10.1))
    assert board.lib.tim_golden_matches(board.module, 0, 1, bytes([0, 1, 1]))
    assert not board.lib.tim_golden_matches(board.module, 0, 1, bytes([0, 1, 0]))
    assert not board.lib.tim_golden_matches(board.module, 0, 2, bytes(4))


def test_header_and_tensor_table_are_readable_without_protobuf(loader: Any) -> None:
    """IM-SECT-010."""
    image = sign(pack(im_corpus.native_contents()), im_corpus.SIGNER)
    board = Board(loader, image)
    assert board.open() == "OK"
    module, python = board.module, parse(image)
    assert board.ffi.string(module.name) == python.header.name.encode()
    assert board.ffi.string(module.version) == python.header.version.encode()
    assert (module.arena_bytes, module.stack_bytes) == (python.header.arena_bytes, python.header.stack_bytes)
    assert board.lib.tim_arena_bytes(module) == python.header.arena_bytes
    assert module.security_counter == python.header.security_counter
    tensor = board.ffi.new("tim_tensor *")
    assert board.lib.tim_input_info(module, 1, tensor) == 0
    want = python.inputs[1]
    assert (tensor.dtype, tensor.rank, tensor.dims[0]) == (want.dtype, 1, want.shape[0])
    assert (tensor.bytes, tensor.arena_offset, tensor.scale, tensor.zero_point) == (6, 16, 0.25, 0)
    assert loader.status(board.lib.tim_input_info(module, 2, tensor)) == "ARGUMENT_INVALID"
    assert board.lib.tim_output_info(module, 0, tensor) == 0
    assert tensor.zero_point == 5
    found = board.ffi.new("uint8_t[32]")
    board.lib.tim_identity(module, found)
    assert "im1:" + bytes(found).hex() == identity(python)


def test_statuses_have_the_same_numbers_and_names_in_python(loader: Any) -> None:
    from tinymlaas_module import Reason

    assert {reason.name for reason in Reason} == {loader.status(reason.value) for reason in Reason}
    assert all(loader.status(reason.value) == reason.name for reason in Reason)
    assert loader.status(999) == "UNKNOWN"
