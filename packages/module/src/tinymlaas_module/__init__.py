"""The inference module (spec/inference-module.md): one file that holds everything a device and an auditor need."""

from .certificate import Access, Buffer, BufferKind, CodeSection, Frame, MemoryCertificate, Step
from .checking import Violation, check_certificate
from .confidence import TENTHS, confidence, tenth
from .contents import (
    Golden,
    GoldenVector,
    Header,
    Module,
    ModuleContents,
    Numerics,
    Section,
    Signature,
    Tensor,
)
from .errors import ModuleError, Reason
from .firmware import Application, application_of, base_firmware, link_firmware, linked_module
from .fit import DeviceMemory, FitResult, RegionFit, Requirement, fit
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
)
from .packing import pack, strip
from .parsing import parse
from .signing import KeyRing, digest, identity, key_id, raw_public_key, sign, verify
from .wire import CertificateError, decode_certificate, encode_certificate

__all__ = [
    "TENTHS",
    "Access",
    "Application",
    "Buffer",
    "BufferKind",
    "CertificateError",
    "CodeSection",
    "CriticalFlag",
    "DType",
    "DeviceMemory",
    "Executor",
    "Feature",
    "FitResult",
    "Frame",
    "Golden",
    "GoldenVector",
    "Header",
    "Isa",
    "KeyRing",
    "MemoryCertificate",
    "Module",
    "ModuleContents",
    "ModuleError",
    "Numerics",
    "NumericsClass",
    "PayloadKind",
    "Reason",
    "RegionFit",
    "Requirement",
    "Section",
    "SectionType",
    "Signature",
    "SignatureAlgorithm",
    "Step",
    "Tensor",
    "TensorKind",
    "Violation",
    "application_of",
    "base_firmware",
    "check_certificate",
    "confidence",
    "decode_certificate",
    "digest",
    "encode_certificate",
    "fit",
    "identity",
    "key_id",
    "link_firmware",
    "linked_module",
    "pack",
    "parse",
    "raw_public_key",
    "sign",
    "strip",
    "tenth",
    "verify",
]
