"""Byte layout of the inference module, format version 1 (spec/inference-module.md, sections 3 to 6)."""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum, IntFlag

MAGIC = b"\x89TIM\r\n\x1a\n"
FORMAT_VERSION = 1
NATIVE_ABI = 1
SIGNING_CONTEXT = b"TIM1-SIGNED-HEAD"

ALIGNMENT = 16
HEADER_BYTES = 128
SIGNED_FROM = 16
SECTION_ENTRY_BYTES = 48
TENSOR_BYTES = 48
GOLDEN_HEADER_BYTES = 32
SIGNATURE_RECORD_HEADER_BYTES = 16
NAME_BYTES = 32
VERSION_BYTES = 16
DIGEST_BYTES = 32
KEY_ID_BYTES = 8
ED25519_SIGNATURE_BYTES = 64

MAX_SECTIONS = 8
MAX_SECTION_BYTES = 1 << 28
MAX_MEMORY_BYTES = (1 << 31) - 1
MIN_ARENA_ALIGNMENT = 16
MAX_ARENA_ALIGNMENT = 4096
MAX_TENSORS = 32
MAX_RANK = 6
MAX_SIGNATURES = 4
MAX_SIGNATURE_BLOCK_BYTES = 8192
MAX_GOLDEN_VECTORS = 64
MAX_LSB = 255
NO_ARENA_OFFSET = 0xFFFFFFFF

ENVELOPE = struct.Struct("<8sIHH")
SIGNED_HEADER = struct.Struct("<HHHHHHIHHHHIIIIII32s16s16s")
SECTION_ENTRY = struct.Struct("<IIII32s")
TENSOR = struct.Struct("<BBBBIIfi6II")
GOLDEN_HEADER = struct.Struct("<HBBIff16s")
SIGNATURE_RECORD = struct.Struct("<HHI8s")


class PayloadKind(IntEnum):
    """What the payload section holds."""

    NATIVE = 1
    TFLITE = 2
    TFLITE_VELA = 3
    IREE_VMFB = 4
    SHARED_OBJECT = 5
    FPGA = 6
    FIRMWARE = 7


class Isa(IntEnum):
    """Instruction set of the payload; ``ANY`` for payloads that are not CPU code."""

    ANY = 0
    ARMV6_M = 1
    ARMV7_M = 2
    ARMV7E_M = 3
    ARMV8_M_MAIN = 4
    ARMV8_1_M_MAIN = 5
    RV32IMC = 6
    AARCH64 = 7
    X86_64 = 8
    RV64GC = 9

    @property
    def text(self) -> str:
        """Name used by targets, e.g. ``armv7e-m``."""
        return _ISA_TEXT[self]

    @classmethod
    def from_text(cls, text: str) -> Isa:
        """Return the ISA that targets call ``text``; raises ``ValueError`` for an unknown name."""
        for isa, name in _ISA_TEXT.items():
            if name == text:
                return isa
        raise ValueError(f"unknown ISA {text!r}; known: {', '.join(sorted(_ISA_TEXT.values()))}")


_ISA_TEXT = {
    Isa.ANY: "any",
    Isa.ARMV6_M: "armv6-m",
    Isa.ARMV7_M: "armv7-m",
    Isa.ARMV7E_M: "armv7e-m",
    Isa.ARMV8_M_MAIN: "armv8-m.main",
    Isa.ARMV8_1_M_MAIN: "armv8.1-m.main",
    Isa.RV32IMC: "rv32imc",
    Isa.AARCH64: "aarch64",
    Isa.X86_64: "x86-64",
    Isa.RV64GC: "rv64gc",
}


class Feature(IntFlag):
    """CPU features that the payload needs."""

    THUMB2 = 1
    DSP = 2
    FPU_SP = 4
    FPU_DP = 8
    MVE = 16
    MVE_FP = 32

    @classmethod
    def from_texts(cls, texts: list[str] | tuple[str, ...]) -> Feature:
        """Return the bits for target feature names such as ``fpu-sp``; raises ``ValueError`` for an unknown name."""
        bits = cls(0)
        for text in texts:
            try:
                bits |= cls[text.replace("-", "_").upper()]
            except KeyError:
                raise ValueError(f"unknown CPU feature {text!r}") from None
        return bits

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the set bits as targets write them, e.g. ``("dsp", "fpu-sp")``."""
        return tuple((bit.name or "").lower().replace("_", "-") for bit in Feature if bit in self)


ALL_FEATURES = 63


class CriticalFlag(IntFlag):
    """Header flags that a loader must understand."""

    STATEFUL = 1


ALL_CRITICAL_FLAGS = 1


class SectionType(IntEnum):
    """Section types of format version 1, in file order."""

    PAYLOAD = 1
    TENSORS = 2
    GOLDEN = 3
    MANIFEST = 4
    CERTIFICATE = 5


class SectionFlag(IntFlag):
    """Section table flags."""

    CRITICAL = 1
    DROPPABLE = 2


ALL_SECTION_FLAGS = 3
SECTION_FLAGS: dict[int, int] = {
    SectionType.PAYLOAD: SectionFlag.CRITICAL,
    SectionType.TENSORS: SectionFlag.CRITICAL,
    SectionType.GOLDEN: SectionFlag.DROPPABLE,
    SectionType.MANIFEST: SectionFlag.DROPPABLE,
    SectionType.CERTIFICATE: SectionFlag.DROPPABLE,
}


class DType(IntEnum):
    """Element types of tensors at the module's border."""

    INT8 = 1
    UINT8 = 2
    INT16 = 3
    UINT16 = 4
    INT32 = 5
    UINT32 = 6
    INT64 = 7
    FLOAT32 = 8
    FLOAT16 = 9
    BOOL = 10

    @property
    def size(self) -> int:
        """Bytes per element."""
        return _DTYPE_SIZE[self]


_DTYPE_SIZE = {
    DType.INT8: 1,
    DType.UINT8: 1,
    DType.INT16: 2,
    DType.UINT16: 2,
    DType.INT32: 4,
    DType.UINT32: 4,
    DType.INT64: 8,
    DType.FLOAT32: 4,
    DType.FLOAT16: 2,
    DType.BOOL: 1,
}
QUANTIZED_RANGE: dict[DType, tuple[int, int]] = {
    DType.INT8: (-128, 127),
    DType.UINT8: (0, 255),
    DType.INT16: (-32768, 32767),
    DType.UINT16: (0, 65535),
    DType.INT32: (-(1 << 31), (1 << 31) - 1),
}
LSB_TYPES = frozenset({DType.INT8, DType.UINT8, DType.INT16, DType.UINT16, DType.INT32, DType.UINT32})


class TensorKind(IntEnum):
    """Role of a tensor record."""

    INPUT = 1
    OUTPUT = 2


class NumericsClass(IntEnum):
    """How outputs relate to the named reference executor."""

    BIT_EXACT = 1
    WITHIN_LSB = 2
    WITHIN_TOLERANCE = 3


class Executor(IntEnum):
    """Reference executor that made the expected outputs."""

    TFLITE = 1
    ONNX = 2


class SignatureAlgorithm(IntEnum):
    """Algorithms of signature records; others may follow Ed25519 as a second record."""

    ED25519 = 1


def align_up(value: int, alignment: int = ALIGNMENT) -> int:
    """Return ``value`` rounded up to a multiple of ``alignment``."""
    return -(-value // alignment) * alignment


def section_digest(data: bytes) -> bytes:
    """Return the first 32 bytes of SHA-512: the hash that Ed25519 needs anyway, so a loader carries one hash."""
    return hashlib.sha512(data).digest()[:DIGEST_BYTES]


def is_member(enumeration: type[IntEnum], value: int) -> bool:
    """Return whether ``value`` is one of the enumeration's numbers."""
    return any(value == member.value for member in enumeration)
