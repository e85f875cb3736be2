"""Values that describe an inference module; no bytes, no files."""

from __future__ import annotations

from dataclasses import dataclass, field

from .layout import (
    CriticalFlag,
    DType,
    Executor,
    Feature,
    Isa,
    NumericsClass,
    PayloadKind,
    SectionType,
    SignatureAlgorithm,
    TensorKind,
    align_up,
    is_member,
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of the module.

    ``shape`` has 0 to 6 dimensions, each at least 1. ``scale`` is 0 for a tensor that is not quantized.
    ``arena_offset`` is in bytes from the arena's start, or ``None`` where the payload's runtime decides.
    """

    kind: TensorKind
    dtype: DType
    shape: tuple[int, ...]
    scale: float = 0.0
    zero_point: int = 0
    arena_offset: int | None = None

    @property
    def size(self) -> int:
        """Bytes of the tensor's elements."""
        count = 1
        for dimension in self.shape:
            count *= dimension
        return count * self.dtype.size


@dataclass(frozen=True, slots=True)
class Numerics:
    """Numerics class, always relative to a named executor.

    ``lsb`` belongs to WITHIN_LSB (1 to 255), ``rtol`` ``atol`` to WITHIN_TOLERANCE:
    |got - want| <= atol + rtol * |want|.
    """

    numerics_class: NumericsClass
    executor: Executor
    lsb: int = 0
    rtol: float = 0.0
    atol: float = 0.0


@dataclass(frozen=True, slots=True)
class GoldenVector:
    """Bytes of all inputs and of all expected outputs, in tensor table order."""

    inputs: tuple[bytes, ...]
    outputs: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Golden:
    """Golden vectors (1 to 64) with the class in which outputs are compared."""

    numerics: Numerics
    vectors: tuple[GoldenVector, ...]


@dataclass(frozen=True, slots=True)
class ModuleContents:
    """Everything that ``pack`` needs.

    ``entry_offset`` counts from the payload's start, without Thumb bit. ``arena_bytes``, ``arena_alignment``,
    ``stack_bytes`` are what the payload needs while it runs. ``manifest`` and ``certificate`` are protobuf bytes,
    opaque here. ``stateful`` means that the arena must keep its contents between invocations.
    """

    name: str
    version: str
    kind: PayloadKind
    payload: bytes
    tensors: tuple[Tensor, ...]
    arena_bytes: int
    isa: Isa = Isa.ANY
    features: Feature = field(default_factory=lambda: Feature(0))
    entry_offset: int = 0
    arena_alignment: int = 16
    stack_bytes: int = 0
    security_counter: int = 0
    golden: Golden | None = None
    manifest: bytes = b""
    certificate: bytes = b""
    stateful: bool = False


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed header of a module, checked."""

    critical_flags: CriticalFlag
    optional_flags: int
    kind: PayloadKind
    isa: Isa
    features: Feature
    abi_version: int
    input_count: int
    output_count: int
    entry_offset: int
    arena_bytes: int
    arena_alignment: int
    stack_bytes: int
    security_counter: int
    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Section:
    """A row of the section table; ``data`` is ``None`` when the section was left out of this image."""

    type: int
    flags: int
    size: int
    digest: bytes
    offset: int | None
    data: bytes | None

    @property
    def name(self) -> str:
        """Name of the section type, or its number for types of later formats."""
        return SectionType(self.type).name if is_member(SectionType, self.type) else f"SECTION_{self.type}"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature record; ``algorithm`` is a number because records of unknown algorithms are kept, not judged."""

    algorithm: SignatureAlgorithm | int
    key_id: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Module:
    """A parsed module whose structure is sound; whether it is genuine is for ``verify`` to say."""

    header: Header
    sections: tuple[Section, ...]
    tensors: tuple[Tensor, ...]
    golden: Golden | None
    signatures: tuple[Signature, ...]
    signed_head: bytes
    image_bytes: int

    def section(self, kind: SectionType) -> Section | None:
        """Return the table row of a section type, or ``None`` when the module never had one."""
        return next((section for section in self.sections if section.type == kind), None)

    def _data(self, kind: SectionType) -> bytes | None:
        section = self.section(kind)
        return None if section is None else section.data

    @property
    def payload(self) -> bytes:
        """Payload bytes."""
        return self._data(SectionType.PAYLOAD) or b""

    @property
    def manifest(self) -> bytes | None:
        """Manifest bytes, or ``None`` when left out."""
        return self._data(SectionType.MANIFEST)

    @property
    def certificate(self) -> bytes | None:
        """Memory certificate bytes, or ``None`` when left out."""
        return self._data(SectionType.CERTIFICATE)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Input tensors in table order."""
        return tuple(tensor for tensor in self.tensors if tensor.kind is TensorKind.INPUT)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Output tensors in table order."""
        return tuple(tensor for tensor in self.tensors if tensor.kind is TensorKind.OUTPUT)

    @property
    def payload_offset(self) -> int:
        """Bytes from the image's start to the payload."""
        section = self.section(SectionType.PAYLOAD)
        if section is None or section.offset is None:
            raise ValueError("not made by parse: a module without payload")
        return section.offset

    @property
    def overhead_bytes(self) -> int:
        """Bytes beside payload and droppable sections: head, signatures, tensor table, padding."""
        payload = self.section(SectionType.PAYLOAD)
        tensors = self.section(SectionType.TENSORS)
        if payload is None or tensors is None:
            raise ValueError("not made by parse: a module without payload or tensor table")
        return self.payload_offset + align_up(payload.size) - payload.size + align_up(tensors.size)
