"""Module images seen from the bridge: the last check before they go out, and the shape of their tensors."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path as FilePath

import structlog

from tinymlaas_module import KeyRing, Module, ModuleError, PayloadKind, Requirement, linked_module, parse, verify
from tinymlaas_module import Reason as ModuleReason
from tinymlaas_module.layout import section_digest

from .core.errors import BridgeError, Reason
from .core.evidence import proven_requirement
from .core.ports import ArtifactSource

log = structlog.get_logger("tinymlaas.bridge.images")


@dataclass(frozen=True)
class TensorSizes:
    """Bytes of each input and output tensor, in the order of the module's tensor table."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class SignedImages:
    """Checks images before they go out: structure, section digests, signature by a trusted key, memory certificate.

    Keys are given as hex, and in a file with one a line that is read at each check, because it may appear after the bridge
    was started and may be changed when keys are rotated. Without either, only signatures can't be checked here; devices
    check them in any case.
    """

    def __init__(self, keys_hex: str = "", keys_file: FilePath | None = None) -> None:
        self._keys = _keys(keys_hex.replace(",", " "))
        self._file = keys_file
        if not self.checks_signatures:
            log.warning("no trusted keys are set: the bridge checks modules but not who signed them; devices do")

    @property
    def checks_signatures(self) -> bool:
        """True where keys are set."""
        return bool(self._keys) or self._file is not None

    def __call__(self, image: bytes) -> Requirement:
        """What the image needs, as its evidence proves; the order is structure, signature, certificate.

        Raises the module package's error where the image is malformed or not signed by a trusted key, and
        CERTIFICATE_MISSING or CERTIFICATE_INVALID where native code comes without sound proof of the memory it uses. Of a
        firmware package both the package and the module linked into it are checked.
        """
        module = parse(image)
        self._check_origin(module)
        if module.header.kind is not PayloadKind.FIRMWARE:
            return proven_requirement(module)
        linked = linked_module(module)
        self._check_origin(linked)
        return replace(proven_requirement(linked), image_bytes=module.image_bytes)

    def _check_origin(self, module: Module) -> None:
        if self.checks_signatures:
            verify(module, KeyRing.of(self._trusted()))
            return
        for section in module.sections:
            if section.data is not None and section_digest(section.data) != section.digest:
                raise ModuleError(ModuleReason.DIGEST_MISMATCH, f"section {section.name}", section=section.name)

    def _trusted(self) -> list[bytes]:
        if self._file is None:
            return self._keys
        try:
            text = self._file.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise BridgeError(
                Reason.KEYS_MISSING, f"the file of trusted keys can't be read: {type(error).__name__}"
            ) from error
        return self._keys + _keys(text)


def _keys(text: str) -> list[bytes]:
    try:
        keys = [bytes.fromhex(word) for word in text.split()]
    except ValueError as error:
        raise BridgeError(Reason.KEYS_MISSING, "a trusted key is not hex") from error
    if any(len(key) != 32 for key in keys):
        raise BridgeError(Reason.KEYS_MISSING, "a trusted key has not 32 bytes")
    return keys


class TensorShapes:
    """Tensor sizes of modules by digest, read from the artifact store once."""

    def __init__(self, artifacts: ArtifactSource, remembered: int = 256) -> None:
        self._artifacts = artifacts
        self._remembered = remembered
        self._known: OrderedDict[str, TensorSizes] = OrderedDict()

    async def sizes(self, digest: str) -> TensorSizes:
        """Sizes of a module's tensors; errors of the store and of the parser pass through."""
        known = self._known.get(digest)
        if known is None:
            module = parse(await self._artifacts.read(digest))
            known = TensorSizes(tuple(t.size for t in module.inputs), tuple(t.size for t in module.outputs))
            self._known[digest] = known
            if len(self._known) > self._remembered:
                self._known.popitem(last=False)
        return known
