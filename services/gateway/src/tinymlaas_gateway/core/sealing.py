"""From verified parts to a sealed module: proto messages to the module format's values. Pure but for Ed25519, which is
deterministic: the same parts and key give the same bytes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import tinymlaas_module as tim
from tinymlaas.module.v1 import certificate_pb2, manifest_pb2
from tinymlaas.plugin.v1 import compiler_pb2, profiler_pb2
from tinymlaas.type.v1 import target_pb2, tensor_pb2

# What a device image leaves behind; the certificate stays, because the bridge checks it once more.
DROPPED = (tim.SectionType.MANIFEST,)

_DTYPES = {
    tensor_pb2.DATA_TYPE_FLOAT32: tim.DType.FLOAT32,
    tensor_pb2.DATA_TYPE_INT8: tim.DType.INT8,
    tensor_pb2.DATA_TYPE_UINT8: tim.DType.UINT8,
    tensor_pb2.DATA_TYPE_INT16: tim.DType.INT16,
    tensor_pb2.DATA_TYPE_INT32: tim.DType.INT32,
    tensor_pb2.DATA_TYPE_INT64: tim.DType.INT64,
    tensor_pb2.DATA_TYPE_BOOL: tim.DType.BOOL,
}
_KINDS = {
    target_pb2.PAYLOAD_KIND_NATIVE: tim.PayloadKind.NATIVE,
    target_pb2.PAYLOAD_KIND_TFLITE: tim.PayloadKind.TFLITE,
    target_pb2.PAYLOAD_KIND_TFLITE_VELA: tim.PayloadKind.TFLITE_VELA,
    target_pb2.PAYLOAD_KIND_IREE_VMFB: tim.PayloadKind.IREE_VMFB,
    target_pb2.PAYLOAD_KIND_SHARED_OBJECT: tim.PayloadKind.SHARED_OBJECT,
    target_pb2.PAYLOAD_KIND_FPGA: tim.PayloadKind.FPGA,
}
_EXECUTORS = {tensor_pb2.REFERENCE_ONNX: tim.Executor.ONNX, tensor_pb2.REFERENCE_TFLITE: tim.Executor.TFLITE}


class SealError(Exception):
    """Parts that no module can be made of; the plugin's fault. The text says which."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed module and the image that goes to devices; digests are sha256 hex."""

    image: bytes
    device_image: bytes

    @property
    def sha256(self) -> str:
        """Digest of the sealed file: the module's id."""
        return hashlib.sha256(self.image).hexdigest()

    @property
    def device_sha256(self) -> str:
        """Digest of the device image."""
        return hashlib.sha256(self.device_image).hexdigest()

    @property
    def requirement(self) -> tim.Requirement:
        """What the device image needs on a device."""
        return tim.Requirement.of(tim.parse(self.device_image))


def module_text(text: str, limit: int) -> str:
    """Make a model id fit for the module header: printable ASCII without blanks, 1 to ``limit`` characters."""
    return re.sub(r"[^!-~]", "-", text)[:limit] or "-"


def numerics(value: tensor_pb2.Numerics) -> tim.Numerics:
    """Return the numerics class as the module format writes it; raises SealError for one that it has not."""
    try:
        return tim.Numerics(
            numerics_class=tim.NumericsClass(getattr(value, "class")),
            executor=_EXECUTORS[value.reference],
            lsb=value.lsb if getattr(value, "class") == tensor_pb2.Numerics.CLASS_WITHIN_LSB else 0,
            rtol=value.rtol if getattr(value, "class") == tensor_pb2.Numerics.CLASS_WITHIN_TOLERANCE else 0.0,
            atol=value.atol if getattr(value, "class") == tensor_pb2.Numerics.CLASS_WITHIN_TOLERANCE else 0.0,
        )
    except (KeyError, ValueError):
        raise SealError("the numerics class or its reference is not one that this platform knows") from None


def tensors(parts: compiler_pb2.CompileResult) -> tuple[tim.Tensor, ...]:
    """Return the tensor table; arena offsets only for native payloads, elsewhere the runtime decides."""
    native = parts.payload_kind == target_pb2.PAYLOAD_KIND_NATIVE
    table = []
    for kind, specs in ((tim.TensorKind.INPUT, parts.inputs), (tim.TensorKind.OUTPUT, parts.outputs)):
        for spec in specs:
            if spec.dtype not in _DTYPES:
                raise SealError(f"tensor {spec.name[:64]!r} has an element type that modules cannot hold")
            table.append(
                tim.Tensor(
                    kind=kind,
                    dtype=_DTYPES[spec.dtype],
                    shape=tuple(spec.shape),
                    scale=spec.scale,
                    zero_point=spec.zero_point,
                    arena_offset=spec.arena_offset if native else None,
                )
            )
    return tuple(table)


def certificate_of(parts: compiler_pb2.CompileResult, payload_bytes: int) -> certificate_pb2.MemoryCertificate:
    """Return the compiler's certificate, or for an interpreted payload without one the plain sums that were verified."""
    if parts.HasField("certificate") or parts.payload_kind == target_pb2.PAYLOAD_KIND_NATIVE:
        return parts.certificate
    return certificate_pb2.MemoryCertificate(
        sections=[certificate_pb2.MemoryCertificate.Section(name="payload", offset=0, bytes=payload_bytes)],
        arena_bytes=parts.arena_bytes,
        arena_alignment=max(parts.arena_alignment, 16),
        stack_bytes=parts.stack_bytes,
        stack_method="runtime",
    )


def contents(
    *,
    name: str,
    version: str,
    parts: compiler_pb2.CompileResult,
    payload: bytes,
    golden: tim.Golden | None = None,
    manifest: manifest_pb2.Manifest | None = None,
    security_counter: int = 1,
) -> tim.ModuleContents:
    """Return the module's contents; raises SealError for parts that no module can hold."""
    if parts.payload_kind not in _KINDS:
        raise SealError("the payload kind cannot be installed as a module")
    native = parts.payload_kind == target_pb2.PAYLOAD_KIND_NATIVE
    try:
        return tim.ModuleContents(
            name=module_text(name, 31),
            version=module_text(version, 15),
            kind=_KINDS[parts.payload_kind],
            payload=payload,
            tensors=tensors(parts),
            arena_bytes=parts.arena_bytes,
            isa=tim.Isa.from_text(parts.isa) if native else tim.Isa.ANY,
            features=tim.Feature.from_texts(list(parts.required_features)) if native else tim.Feature(0),
            entry_offset=parts.entry_offset if native else 0,
            arena_alignment=max(parts.arena_alignment, 16),
            stack_bytes=parts.stack_bytes,
            security_counter=security_counter,
            golden=golden,
            manifest=manifest.SerializeToString(deterministic=True) if manifest is not None else b"",
            certificate=certificate_of(parts, len(payload)).SerializeToString(deterministic=True),
        )
    except ValueError as error:
        raise SealError(str(error)) from error


def certificate_faults(parts: compiler_pb2.CompileResult, payload: bytes) -> list[str]:
    """Check the parts' memory certificate with the independent checker; return what does not hold, with rule ids.

    Raises SealError for parts that no module can hold at all.
    """
    try:
        module = tim.parse(tim.pack(contents(name="check", version="0", parts=parts, payload=payload)))
        certificate = tim.decode_certificate(module.certificate or b"")
    except (tim.ModuleError, tim.CertificateError) as error:
        raise SealError(str(error)) from error
    violations = tim.check_certificate(certificate, module)
    return [f"{item.rule} {item.subject}: {item.detail}" for item in violations[:8]]


def seal(
    *,
    name: str,
    version: str,
    parts: compiler_pb2.CompileResult,
    payload: bytes,
    golden_inputs: profiler_pb2.InputSet,
    golden_outputs: profiler_pb2.InputSet,
    manifest: manifest_pb2.Manifest,
    security_counter: int,
    key: Ed25519PrivateKey,
) -> Sealed:
    """Pack, sign and strip. Golden inputs and expected outputs are paired sample by sample.

    Raises SealError for parts that break the module format: whatever a plugin said that no loader would take.
    """
    vectors = tuple(
        tim.GoldenVector(tuple(given.tensors), tuple(expected.tensors))
        for given, expected in zip(golden_inputs.samples, golden_outputs.samples, strict=True)
    )
    try:
        image = tim.pack(
            contents(
                name=name,
                version=version,
                parts=parts,
                payload=payload,
                golden=tim.Golden(numerics(parts.numerics), vectors),
                manifest=manifest,
                security_counter=security_counter,
            )
        )
        image = tim.sign(image, key)
        return Sealed(image, tim.strip(image, DROPPED))
    except tim.ModuleError as error:
        raise SealError(str(error)) from error
