"""The memory certificate in the contract's form."""

from __future__ import annotations

from collections import Counter

from tinymlaas.module.v1 import certificate_pb2
from tinymlaas_compiler_tvm.native.codegen import PREFIX
from tinymlaas_compiler_tvm.parts import CompiledParts, MemoryCertificate, Range

# Of an inference module beside payload, certificate and golden vector: header, section table, tensors, signature, padding.
MODULE_BYTES = 640


def image_bytes(parts: CompiledParts, certificate: certificate_pb2.MemoryCertificate) -> int:
    """About what a module takes on a device: payload, certificate, a golden vector, and the format's tables."""
    golden = sum(tensor.bytes for tensor in (*parts.inputs, *parts.outputs))
    size: int = certificate.ByteSize()
    return len(parts.payload) + size + golden + MODULE_BYTES


def certificate_message(parts: CompiledParts) -> certificate_pb2.MemoryCertificate:
    """The memory certificate in the contract's form: buffers by name, accesses relative to them.

    Names are short (`t`ensor, `w`orkspace, `s`tep, and a number; kernels without the prefix of their symbols), since devices
    keep the certificate in flash, and each access and call repeats one; the model's own names can be some hundred bytes long.
    """
    evidence = parts.certificate
    functions = _short_names(evidence)
    names = [f"{buffer.kind[0]}{index}" for index, buffer in enumerate(evidence.buffers)]
    inputs = {tensor.offset for tensor in parts.inputs}
    outputs = {tensor.offset for tensor in parts.outputs}
    last = len(evidence.steps) - 1
    message = certificate_pb2.MemoryCertificate(
        sections=[
            certificate_pb2.MemoryCertificate.Section(name=".text", offset=0, bytes=evidence.code_bytes),
            certificate_pb2.MemoryCertificate.Section(
                name=".rodata", offset=evidence.code_bytes, bytes=evidence.payload_bytes - evidence.code_bytes
            ),
        ],
        arena_bytes=evidence.arena_bytes,
        arena_alignment=parts.arena_alignment,
        stack_bytes=evidence.stack_bytes,
        stack_method="stack-usage",
        frames=[
            certificate_pb2.MemoryCertificate.Frame(
                function=functions[name],
                bytes=size,
                calls=[functions[callee] for callee in evidence.stack_calls.get(name, ())],
            )
            for name, size in evidence.stack_frames.items()
        ],
        entry_function=functions[evidence.stack_chain[0]],
    )
    kinds = certificate_pb2.MemoryCertificate.Buffer
    for name, buffer in zip(names, evidence.buffers, strict=True):
        kind = kinds.KIND_WORKSPACE if buffer.kind == "workspace" else kinds.KIND_TENSOR
        if kind == kinds.KIND_TENSOR and buffer.first == 0 and buffer.offset in inputs:
            kind = kinds.KIND_INPUT
        elif kind == kinds.KIND_TENSOR and buffer.last == last and buffer.offset in outputs:
            kind = kinds.KIND_OUTPUT
        message.buffers.add(
            name=name,
            offset=buffer.offset,
            bytes=buffer.bytes,
            first_step=buffer.first,
            last_step=buffer.last,
            kind=kind,
        )
    for step in evidence.steps:
        message.steps.add(
            name=functions[step.symbol],
            reads=[_access(evidence, names, step.index, touched) for touched in step.reads],
            writes=[_access(evidence, names, step.index, touched) for touched in step.writes],
        )
    return message


def _short_names(evidence: MemoryCertificate) -> dict[str, str]:
    """What the certificate calls each function: those that are steps by their number, others without the common prefix.

    A function keeps its name where the short one is another's.
    """
    wanted = {name: name.removeprefix(PREFIX) for name in evidence.stack_frames}
    wanted |= {step.symbol: f"s{step.index}" for step in evidence.steps}
    counts = Counter([*wanted, *wanted.values()])
    return {name: short if counts[short] == 1 else name for name, short in wanted.items()}


def _access(
    evidence: MemoryCertificate, names: list[str], step: int, touched: Range
) -> certificate_pb2.MemoryCertificate.Access:
    for name, buffer in zip(names, evidence.buffers, strict=True):
        inside = buffer.offset <= touched.offset and touched.offset + touched.bytes <= buffer.offset + buffer.bytes
        if inside and buffer.first <= step <= buffer.last:
            offset = touched.offset - buffer.offset
            return certificate_pb2.MemoryCertificate.Access(buffer=name, offset=offset, bytes=touched.bytes)
    raise AssertionError(f"step {step} touches {touched}, which no live buffer holds")
