"""Figures of the peer, and where they come from.

TFLite Micro with CMSIS-NN, int8-only build, gcc 12.2 -O2, MLPerf Tiny models; instruction counts between two symbols under QEMU
7.2 with a TCG plugin that counts exactly, flash and arena from the linked image and the recording allocator (November 2026).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PeerFigures:
    """Flash and arena in bytes, instructions of one inference."""

    flash_bytes: int
    arena_bytes: int
    instructions: int


CMSIS_NN = {
    ("kws", "cortex-m3"): PeerFigures(125_836, 22_820, 10_530_000),
    ("ic", "cortex-m3"): PeerFigures(165_592, 54_980, 41_850_000),
    ("vww", "cortex-m3"): PeerFigures(405_188, 100_708, 31_960_000),
    ("ad", "cortex-m3"): PeerFigures(304_552, 2_580, 956_000),
    ("kws", "cortex-m4"): PeerFigures(108_156, 22_820, 7_697_000),
    ("ic", "cortex-m4"): PeerFigures(150_488, 54_996, 29_860_000),
    ("vww", "cortex-m4"): PeerFigures(387_508, 100_708, 24_100_000),
    ("ad", "cortex-m4"): PeerFigures(306_024, 2_580, 583_000),
}
