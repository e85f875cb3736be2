"""Protobuf form of the memory certificate: ``tinymlaas.module.v1.MemoryCertificate`` to and from plain values."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from tinymlaas.module.v1 import certificate_pb2 as pb

from .certificate import Access, Buffer, BufferKind, CodeSection, Frame, MemoryCertificate, Step


class CertificateError(ValueError):
    """Bytes that are no memory certificate; the text says why."""


def decode_certificate(data: bytes) -> MemoryCertificate:
    """Return the certificate in a module's CERTIFICATE section; raises ``CertificateError`` for other bytes."""
    message = pb.MemoryCertificate()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise CertificateError(f"not a MemoryCertificate: {error}") from error
    return from_message(message)


def encode_certificate(certificate: MemoryCertificate) -> bytes:
    """Return the bytes of the CERTIFICATE section, the same for equal certificates."""
    return to_message(certificate).SerializeToString(deterministic=True)


def from_message(message: pb.MemoryCertificate) -> MemoryCertificate:
    """Return the plain value of ``message``; raises ``CertificateError`` for a buffer without a known kind."""
    return MemoryCertificate(
        sections=tuple(CodeSection(item.name, item.offset, item.bytes) for item in message.sections),
        arena_bytes=message.arena_bytes,
        arena_alignment=message.arena_alignment,
        stack_bytes=message.stack_bytes,
        stack_method=message.stack_method,
        buffers=tuple(
            Buffer(
                item.name,
                item.offset,
                item.bytes,
                item.first_step,
                item.last_step,
                _buffer_kind(item.name, int(item.kind)),
                item.in_place_of,
            )
            for item in message.buffers
        ),
        steps=tuple(
            Step(
                item.name,
                tuple(Access(access.buffer, access.offset, access.bytes) for access in item.reads),
                tuple(Access(access.buffer, access.offset, access.bytes) for access in item.writes),
            )
            for item in message.steps
        ),
        frames=tuple(Frame(item.function, item.bytes, tuple(item.calls)) for item in message.frames),
        entry_function=message.entry_function,
    )


def to_message(certificate: MemoryCertificate) -> pb.MemoryCertificate:
    """Return the message of a plain certificate; raises ``ValueError`` for numbers that do not fit their fields."""
    message = pb.MemoryCertificate(
        arena_bytes=certificate.arena_bytes,
        arena_alignment=certificate.arena_alignment,
        stack_bytes=certificate.stack_bytes,
        stack_method=certificate.stack_method,
        entry_function=certificate.entry_function,
    )
    for section in certificate.sections:
        message.sections.add(name=section.name, offset=section.offset, bytes=section.size)
    for buffer in certificate.buffers:
        message.buffers.add(
            name=buffer.name,
            offset=buffer.offset,
            bytes=buffer.size,
            first_step=buffer.first_step,
            last_step=buffer.last_step,
            kind=pb.MemoryCertificate.Buffer.Kind.ValueType(int(buffer.kind)),
            in_place_of=buffer.in_place_of,
        )
    for step in certificate.steps:
        added = message.steps.add(name=step.name)
        for access in step.reads:
            added.reads.add(buffer=access.buffer, offset=access.offset, bytes=access.size)
        for access in step.writes:
            added.writes.add(buffer=access.buffer, offset=access.offset, bytes=access.size)
    for frame in certificate.frames:
        message.frames.add(function=frame.function, bytes=frame.size, calls=frame.calls)
    return message


def _buffer_kind(name: str, number: int) -> BufferKind:
    try:
        return BufferKind(number)
    except ValueError:
        raise CertificateError(f"buffer {name[:64]!r} has kind {number}") from None
