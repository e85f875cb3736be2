"""What the kernels of `sparse_asm` and `c_sparse` read: weights that are not zero, each with its distance from the one before.

Matrix layers: the bias, then groups of up to seven weights: a word of seven 4-bit gaps (zeros before each weight), then the
weights, a byte each. Bits 28-30 of the word tell how many of the seven are missing (the first ones, of the first group alone),
bit 31 that another group follows. Groups take whole words: 12 bytes for seven weights. A gap of more than 15 zeros holds
weights of zero. Fully connected layers: pairs (place, weight) of bytes, in windows of 256 places.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tinymlaas_compiler_tvm.int8.channels import Int64s, Layer
from tinymlaas_compiler_tvm.int8.long_streams import parameters
from tinymlaas_compiler_tvm.int8.lowering import words

GROUP = 7
# Weights that one turn of the loop of `sparse_asm.dense` takes, and places that a byte can name.
TURN = 8
WINDOW = 256
_MOST_GAP = 15


def unbiased(layer: Layer) -> Layer:
    """The layer as the epilogue of these kernels sees it: sums start at the bias."""
    return replace(layer, biases=np.zeros_like(layer.biases))


def entries(row: Int64s) -> list[tuple[int, int]]:
    """(zeros before it, weight) of each weight of a row [K] that is not zero, with zeros in between that bridge wide gaps.

    At least one entry.
    """
    found: list[tuple[int, int]] = []
    place = 0
    for index in np.flatnonzero(row).tolist():
        while index - place > _MOST_GAP:
            found.append((_MOST_GAP, 0))
            place += _MOST_GAP + 1
        found.append((index - place, int(row[index])))
        place = index + 1
    return found or [(0, 0)]


def entry_counts(weights: Int64s) -> Int64s:
    """How many entries each row of weights [channels, K] has."""
    return np.array([len(entries(row)) for row in weights], np.int64)


def _groups(row: Int64s) -> bytes:
    found = entries(row)
    first = (len(found) - 1) % GROUP + 1
    parts = []
    for start in range(first - GROUP, len(found), GROUP):
        missing = max(-start, 0)
        members = found[max(start, 0) : start + GROUP]
        word = missing << 28 | int(start + GROUP < len(found)) << 31
        for slot, (gap, _) in enumerate(members, missing):
            word |= gap << 4 * slot
        # The pointer steps over `missing % 4` bytes before a group that is not full, and over one after every group.
        weights = np.array([weight for _, weight in members], np.int8).tobytes()
        parts.append(words([word]) + b"\0" * (missing % 4) + weights + b"\0")
    return b"".join(parts)


def _parameters(layer: Layer, channel: int, portable: bool) -> bytes:
    return words(layer.portable_parameters(channel)) if portable else parameters(unbiased(layer), channel)


def channel_stream(layer: Layer, channel: int, portable: bool = False) -> bytes:
    """Bias, weights and parameters (for assembly, or `portable` C) of one output channel of a matrix layer; whole words."""
    data = words([int(layer.biases[channel])]) + _groups(layer.weights[channel])
    return data + _parameters(layer, channel, portable)


def dense_entries(row: Int64s) -> list[list[tuple[int, int]]]:
    """(place in its window, weight) of each weight of a row that is not zero, by windows; at least one a window."""
    windows = []
    for start in range(0, row.size, WINDOW):
        window = row[start : start + WINDOW]
        windows.append([(place, int(window[place])) for place in np.flatnonzero(window).tolist()] or [(0, 0)])
    return windows


def dense_stream(layer: Layer, channel: int, uniform: bool, portable: bool = False) -> bytes:
    """Bias, windows and, unless they are `uniform`, parameters of one output of a fully connected layer; whole words.

    Each window begins with a halfword: turns of the loop after the first, times 8, and weights that the first turn lacks.
    """
    parts = [words([int(layer.biases[channel])])]
    for window in dense_entries(layer.weights[channel]):
        turns = -(-len(window) // TURN)
        parts.append(np.uint16((turns - 1) * TURN + turns * TURN - len(window)).tobytes())
        parts.append(np.array([(place, weight & 255) for place, weight in window], np.uint8).tobytes())
    data = b"".join(parts)
    return data + b"\0" * (-len(data) % 4) + (b"" if uniform else _parameters(layer, channel, portable))
