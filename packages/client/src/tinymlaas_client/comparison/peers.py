"""Figures of the peer, TFLite Micro with CMSIS-NN, for models that it was measured with.

They are kept in `peers.json` with the way they were obtained; `bench/README.md` tells how to measure them again.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Peer:
    """Flash (program and model) and arena in bytes, instructions of one inference, on `cpu`; its stack is not known."""

    cpu: str
    flash_bytes: int
    arena_bytes: int
    instructions: int


def peer_name() -> str:
    """What the peer is called."""
    return str(_document()["name"])


def peer_method() -> str:
    """How its figures were obtained."""
    return str(_document()["method"])


def peer_of(model: str, cpu: str) -> Peer | None:
    """The peer's figures for a model of MLPerf Tiny (kws, ic, vww, ad), None where it was not measured.

    A CPU that it was not measured on is compared with the one whose instruction set comes nearest, which `cpu` names:
    Cortex-M7 and M33 with the M4, M0+ with the M3 (which has more instructions: in the peer's favour).
    """
    document = _document()
    for name in (cpu, document["stand_ins"].get(cpu)):
        figures = document["figures"].get(model, {}).get(name)
        if figures is not None:
            return Peer(name, **figures)
    return None


def known_model(sha256: str) -> str | None:
    """The name of a model file by its digest (hex), None for one that the peer was not measured with."""
    name = _document()["models"].get(sha256)
    return None if name is None else str(name)


@functools.cache
def _document() -> dict[str, Any]:
    text = resources.files("tinymlaas_client.comparison").joinpath("peers.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document
