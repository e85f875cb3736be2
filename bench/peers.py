"""Figures of the peer, and where they come from: `packages/client/.../comparison/peers.json` keeps them, with their method.

TFLite Micro with CMSIS-NN, int8-only build, gcc 12.2 -O2, MLPerf Tiny models; instruction counts between two symbols under QEMU
7.2 with a TCG plugin that counts exactly, flash and arena from the linked image and the recording allocator (November 2026).
`bench/README.md` tells how to measure a checkout of one's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinymlaas_client.comparison import Peer, peer_method, peer_name, peer_of

__all__ = ["REFERENCE_KERNELS", "Peer", "ReferenceFigures", "peer_method", "peer_name", "peer_of"]


@dataclass(frozen=True)
class ReferenceFigures:
    """Flash and arena in bytes, instructions of one inference."""

    flash_bytes: int
    arena_bytes: int
    instructions: int


# The same with TFLite Micro's reference kernels in place of CMSIS-NN, Cortex-M4: the executor that outputs are compared with.
REFERENCE_KERNELS = {
    "kws": ReferenceFigures(96_084, 22_772, 43_020_000),
    "ic": ReferenceFigures(145_184, 54_340, 107_290_000),
    "vww": ReferenceFigures(375_436, 100_660, 100_180_000),
    "ad": ReferenceFigures(298_216, 2_260, 1_952_000),
}
