"""From arena figures of the 64-bit host to those of a 32-bit microcontroller.

The interpreter's arena has two parts. The head holds activations, planned from tensor sizes alone: the same on every
target
with the same kernels. The tail holds the interpreter's own objects, many of them pointers: smaller where pointers
have four
bytes. Four kinds of these objects are counted by the recording allocator and have a layout that TFLite Micro's C
headers
(tensorflow/lite/c/common.h, built with TF_LITE_STATIC_MEMORY) fix for both widths:

  TfLiteEvalTensor             data, dims, type                                             24 B to 12 B
  TfLiteTensor                 quantization, params, data, dims, bytes, types, flag         64 B to 40 B
  quantization of a TfLiteTensor  scale, zero_point, dimension and an array of one integer  24 + 8 B to 12 + 8 B
  NodeAndRegistration          six pointers and a size of TfLiteNode, one pointer           64 B to 32 B

The rest of the tail (what kernels keep, scratch handles, the allocators) mixes pointers with integers: smaller
pointers make
none of it larger. How much smaller it gets was measured: for the MLPerf Tiny models on a Cortex-M4 with the reference
kernels
the arena is 22,772 B (KWS), 54,340 B (IC), 100,660 B (VWW) and 2,260 B (AD), so the rest is 0.91, 0.87, 0.97 and 0.43
of that on
the host. So

  upper = needed arena - savings of eval tensors and nodes       (both are there while the arena is planned, at its fullest)
  lower = head + counted objects at 32-bit size + a third of the rest

The figure given is the upper bound, by method ESTIMATED, with the lower bound beside it. It holds for the reference
kernels;
optimized kernels (CMSIS-NN) ask for scratch on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinymlaas_compiler_tflm.interpreter import ArenaReport

ALIGNMENT = 16
REST_SHRINKS_TO = 3
"""Divisor of the lower bound for what the allocator does not count by kind."""

# Bytes of one object with 64-bit and with 32-bit pointers, by the allocator's name for its kind.
_EVAL = "TfLiteEvalTensor data"
_NODE = "NodeAndRegistration struct"
_TENSOR = "Persistent TfLiteTensor data"
_QUANTIZATION = "Persistent TfLiteTensor quantization data"
_SIZES = {_EVAL: (24, 12), _NODE: (64, 32), _TENSOR: (64, 40), _QUANTIZATION: (16, 10)}
"""For quantization data the mean of its two objects (24 and 8 B, 12 and 8 B), which come in pairs."""


@dataclass(frozen=True)
class Arena32:
    """Bounds for the arena of a 32-bit target with the reference kernels, in bytes; `upper` is a multiple of 16."""

    lower: int
    upper: int


def estimate_32_bit(report: ArenaReport) -> Arena32:
    """Bounds for 32-bit pointers from a report of the 64-bit host, as the module's text derives them."""
    needed = report.smallest or report.total
    records = {r.name: r for r in report.records}
    sure = sum(_saved(records[name].count, name) for name in (_EVAL, _NODE) if name in records)
    counted = {name: records[name].count for name in _SIZES if name in records}
    small = sum(count * _SIZES[name][1] for name, count in counted.items())
    large = sum(records[name].used for name in counted)
    lower = report.head + small + max(report.tail - large, 0) // REST_SHRINKS_TO
    upper = -(-max(needed - sure, report.head) // ALIGNMENT) * ALIGNMENT
    return Arena32(min(lower, upper), upper)


def _saved(count: int, name: str) -> int:
    wide, narrow = _SIZES[name]
    return count * (wide - narrow)
