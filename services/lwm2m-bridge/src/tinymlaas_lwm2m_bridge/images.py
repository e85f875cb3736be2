"""Module images seen from the bridge: the last check before they go out, and the shape of their tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from tinymlaas_module import KeyRing, parse, verify

from .core.ports import ArtifactSource


@dataclass(frozen=True)
class TensorSizes:
    """Bytes of each input and output tensor, in the order of the module's tensor table."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class SignedImages:
    """Checks structure and signature of images against the trusted public keys (Ed25519, 32 bytes each)."""

    def __init__(self, trusted_keys: Sequence[bytes]) -> None:
        self._keys = KeyRing.of(trusted_keys)

    def __call__(self, image: bytes) -> None:
        """Raise the module package's error where the image is malformed or not signed by a trusted key."""
        verify(parse(image), self._keys)


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
