"""The inference module (spec/inference-module.md): one file that holds everything a device and an auditor need."""

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

__all__ = [
    "CriticalFlag",
    "DType",
    "Executor",
    "Feature",
    "Golden",
    "GoldenVector",
    "Header",
    "Isa",
    "KeyRing",
    "Module",
    "ModuleContents",
    "ModuleError",
    "Numerics",
    "NumericsClass",
    "PayloadKind",
    "Reason",
    "Section",
    "SectionType",
    "Signature",
    "SignatureAlgorithm",
    "Tensor",
    "TensorKind",
    "digest",
    "identity",
    "key_id",
    "pack",
    "parse",
    "raw_public_key",
    "sign",
    "strip",
    "verify",
]
