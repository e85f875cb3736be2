"""Tensor records and golden vectors: the two sections that a loader walks itself."""

from __future__ import annotations

import struct

from . import layout
from .contents import Golden, GoldenVector, Header, Numerics, Tensor
from .errors import ModuleError, Reason
from .layout import DType, Executor, NumericsClass, PayloadKind, TensorKind, align_up, is_member


def parse_tensors(header: Header, table: bytes) -> tuple[Tensor, ...]:
    """Return the tensor records; raises ``ModuleError`` (TENSORS_INVALID) for the first that contradicts itself.

    ``table`` holds exactly ``input_count + output_count`` records of 48 bytes, inputs first.
    """
    tensors: list[Tensor] = []
    for index in range(header.input_count + header.output_count):
        role = TensorKind.INPUT if index < header.input_count else TensorKind.OUTPUT
        tensor = _tensor(table[index * layout.TENSOR_BYTES : (index + 1) * layout.TENSOR_BYTES], index, role)
        if header.kind is PayloadKind.NATIVE:
            offset = tensor.arena_offset
            if offset is None or offset % 4 or offset + tensor.size > header.arena_bytes:
                raise _invalid_tensor(index, f"{tensor.size} bytes at arena offset {offset}")
            for other in tensors:
                if other.kind is role and other.arena_offset is not None:
                    apart = offset + tensor.size <= other.arena_offset or other.arena_offset + other.size <= offset
                    if not apart:
                        raise _invalid_tensor(index, "overlaps a tensor of the same kind")
        elif tensor.arena_offset is not None:
            raise _invalid_tensor(index, "arena offset in a payload whose runtime decides it")
        tensors.append(tensor)
    return tuple(tensors)


def _invalid_tensor(index: int, why: str) -> ModuleError:
    return ModuleError(Reason.TENSORS_INVALID, f"tensor {index}: {why}", tensor=index)


def _tensor(record: bytes, index: int, role: TensorKind) -> Tensor:
    fields = layout.TENSOR.unpack(record)
    kind, dtype_number, rank, flags, size, offset, scale, zero_point = fields[:8]
    dims: tuple[int, ...] = fields[8:14]
    reserved: int = fields[14]
    (scale_bits,) = struct.unpack_from("<I", record, 12)
    if kind != role or not is_member(DType, dtype_number) or rank > layout.MAX_RANK or flags or reserved:
        raise _invalid_tensor(index, f"kind {kind}, dtype {dtype_number}, rank {rank}, flags {flags}")
    dtype = DType(dtype_number)
    if any(dimension == 0 for dimension in dims[:rank]) or any(dims[rank:]):
        raise _invalid_tensor(index, f"shape {dims} with rank {rank}")
    tensor = Tensor(role, dtype, dims[:rank], scale, zero_point, None if offset == layout.NO_ARENA_OFFSET else offset)
    if tensor.size != size or size > layout.MAX_MEMORY_BYTES:
        raise _invalid_tensor(index, f"{size} bytes for shape {tensor.shape} of {dtype.name}")
    if not _finite_and_positive_or_zero(scale_bits):
        raise _invalid_tensor(index, "scale is negative or not finite")
    if scale_bits == 0:
        quantized_well = zero_point == 0
    else:
        low, high = layout.QUANTIZED_RANGE.get(dtype, (1, 0))
        quantized_well = low <= zero_point <= high
    if not quantized_well:
        raise _invalid_tensor(index, f"zero point {zero_point}, scale {scale} for {dtype.name}")
    return tensor


def _finite_and_positive_or_zero(bits: int) -> bool:
    """Judge an IEEE 754 binary32 by its bits, as a loader without floating point does: +0 up to the largest finite."""
    return bits < 0x7F800000


def vector_bytes(tensors: tuple[Tensor, ...]) -> int:
    """Return the bytes of one golden vector: every tensor padded to 16."""
    return sum(align_up(tensor.size) for tensor in tensors)


def parse_golden(data: bytes, tensors: tuple[Tensor, ...]) -> Golden:
    """Return the golden section; raises ``ModuleError`` (GOLDEN_INVALID) when it does not match the tensor table."""
    if len(data) < layout.GOLDEN_HEADER_BYTES:
        raise ModuleError(Reason.GOLDEN_INVALID, f"{len(data)} bytes are less than its header")
    count, class_number, executor, lsb, rtol, atol, reserved = layout.GOLDEN_HEADER.unpack_from(data)
    rtol_bits, atol_bits = struct.unpack_from("<II", data, 8)
    if (
        not 1 <= count <= layout.MAX_GOLDEN_VECTORS
        or not is_member(NumericsClass, class_number)
        or not is_member(Executor, executor)
        or any(reserved)
    ):
        raise ModuleError(Reason.GOLDEN_INVALID, f"{count} vectors, class {class_number}, executor {executor}")
    numerics = Numerics(NumericsClass(class_number), Executor(executor), lsb, rtol, atol)
    _check_numerics(numerics, rtol_bits, atol_bits, tensors)
    if len(data) != layout.GOLDEN_HEADER_BYTES + count * vector_bytes(tensors):
        raise ModuleError(Reason.GOLDEN_INVALID, f"{len(data)} bytes for {count} vectors of {vector_bytes(tensors)}")
    offset = layout.GOLDEN_HEADER_BYTES
    vectors: list[GoldenVector] = []
    for _ in range(count):
        values: dict[TensorKind, list[bytes]] = {TensorKind.INPUT: [], TensorKind.OUTPUT: []}
        for tensor in tensors:
            end = offset + tensor.size
            values[tensor.kind].append(data[offset:end])
            offset = align_up(end)
            if any(data[end:offset]):
                raise ModuleError(Reason.GOLDEN_INVALID, "padding inside a vector is not zero")
        vectors.append(GoldenVector(tuple(values[TensorKind.INPUT]), tuple(values[TensorKind.OUTPUT])))
    return Golden(numerics, tuple(vectors))


def _check_numerics(numerics: Numerics, rtol_bits: int, atol_bits: int, tensors: tuple[Tensor, ...]) -> None:
    outputs = {tensor.dtype for tensor in tensors if tensor.kind is TensorKind.OUTPUT}
    without_tolerance = rtol_bits == 0 and atol_bits == 0
    if numerics.numerics_class is NumericsClass.BIT_EXACT:
        sound = numerics.lsb == 0 and without_tolerance
    elif numerics.numerics_class is NumericsClass.WITHIN_LSB:
        sound = 1 <= numerics.lsb <= layout.MAX_LSB and without_tolerance and bool(outputs & layout.LSB_TYPES)
    else:
        finite = _finite_and_positive_or_zero(rtol_bits) and _finite_and_positive_or_zero(atol_bits)
        sound = numerics.lsb == 0 and finite and not without_tolerance and DType.FLOAT32 in outputs
    if not sound:
        raise ModuleError(Reason.GOLDEN_INVALID, f"numerics {numerics} for outputs {sorted(d.name for d in outputs)}")
