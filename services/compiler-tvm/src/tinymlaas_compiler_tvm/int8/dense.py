"""FULLY_CONNECTED: one row by four channels in assembly (the row widened on DSP cores), a plain loop elsewhere."""

from __future__ import annotations

import numpy as np

from tinymlaas_compiler_tvm.int8 import (
    c_small,
    dsp_asm,
    long_asm,
    long_streams,
    small_dense,
    sparse,
    sparse_asm,
    sparse_streams,
)
from tinymlaas_compiler_tvm.int8.channels import Layer, make_layer
from tinymlaas_compiler_tvm.int8.lowering import Lowering, pointer, quantized, unsupported, words
from tinymlaas_compiler_tvm.int8.matrix import Family, braces, epilogue_of, family_of, pack_halfwords
from tinymlaas_compiler_tvm.int8.simple import as_planar
from tinymlaas_compiler_tvm.int8.small_streams import narrow_of
from tinymlaas_modelkit.graph import Op

_WIDEN = """
static NOINLINE void @NAME@(const int8_t *in, int32_t *out, int32_t k, int32_t padded) {
  int16_t *q = (int16_t *)tim_gather_run8(in, out, k >> 2), *end = (int16_t *)out + padded;
  in += k & ~3;
  int32_t rest = k & 3;
  if (rest) {
    q[0] = in[0];
    q[1] = rest > 2 ? in[2] : 0;
    q[2] = rest > 1 ? in[1] : 0;
    q[3] = 0;
    q += 4;
  }
  while (q != end) *q++ = 0;
}
"""


# The row grows over itself from its end: no scratch memory.
_WIDEN_OVER = """
void tim_widen_over(int8_t *, int32_t);
static NOINLINE void @NAME@(int8_t *row, int32_t k, int32_t padded) {
  int32_t whole = k & ~3, rest = k & 3;
  int16_t *q = (int16_t *)row + padded, *end = (int16_t *)row + whole;
  if (rest) {
    int8_t a = row[whole], b = rest > 1 ? row[whole + 1] : 0, c = rest > 2 ? row[whole + 2] : 0;
    while (q != end + 4) *--q = 0;
    end[0] = a;
    end[1] = c;
    end[2] = b;
    end[3] = 0;
    q = end;
  }
  while (q != end) *--q = 0;
  if (whole) tim_widen_over(row, whole >> 2);
}
"""


def lower_dense(state: Lowering, op: Op) -> None:
    """One step for a fully connected layer."""
    in_name, out_name = as_planar(state, op, str(op.inputs[0]), planar=False), op.outputs[0]
    quantized(state, op, in_name)
    filter_data = state.tensor(op.inputs[1]).data
    if filter_data is None:
        raise unsupported(op, "weights are not constant")
    layer = make_layer(state, op, filter_data.astype(np.int64))
    channels, k = layer.weights.shape
    rows = state.tensor(in_name).elements // k
    if rows * k != state.tensor(in_name).elements:
        raise unsupported(op, "input is no multiple of the weights' depth")
    source = state.place(in_name)
    macs = rows * channels * k
    family = family_of(state, layer)
    if family is Family.DSP and state.settings.scratch_free_dense:
        family = Family.LONG if long_streams.fits_fields(layer) else Family.PORTABLE
    if family is Family.SMALL and k >= small_dense.MOST_K:
        family = Family.PORTABLE
    if sparse.dense_pays(state, layer, rows, family):
        _sparse(state, op, in_name, layer, rows, macs)
        return
    if family is Family.PORTABLE:
        _portable(state, op, in_name, layer, rows, macs)
        return
    if family is Family.SMALL:
        _small(state, op, in_name, layer, rows, macs)
        return
    if family is Family.LONG:
        _long(state, op, in_name, layer, rows, macs)
        return
    padded = -(-k // 8) * 8
    eights = padded // 8
    # Twice a convolution's: there is one kernel for most layers, and few turns of its loop an output.
    unroll = max(u for u in range(1, 2 * state.unroll() + 1) if eights % u == 0)
    epilogue = epilogue_of(layer, family, uniform=True)
    kernel = dsp_asm.dense(unroll, epilogue)
    data = _stream(layer, padded, epilogue.uniform)
    stream = state.constant(data)
    over = rows == 1 and state.can_overwrite(in_name, state.tensor(in_name).nbytes)
    target = state.output(out_name)
    if over:
        scratch = source.buffer
        scratch.size = max(scratch.size, 2 * padded)
        widen = dsp_asm.widen_in_place()
        state.define("tim_widen_row", _WIDEN_OVER)
        widening = f"tim_widen_row({pointer(scratch)}, {k}, {padded});"
    else:
        scratch = state.program.workspace(2 * padded)
        widen = dsp_asm.gather_run(8)
        state.define("tim_widen", _WIDEN)
        widening = f"tim_widen({pointer(source.buffer)} + i * {k}, {pointer(scratch, 'int32_t')}, {k}, {padded});"
    for each in (kernel, widen):
        state.program.asm_kernels[each.name] = each
    arguments = (len(data), 2 * padded, *(layer.parameters(0) if epilogue.uniform else ()))
    prototype = f"void {kernel.name}(const int32_t *, const uint8_t *, int8_t *, const int32_t *);"
    body = (
        f"{prototype}\n  static const int32_t a[] = {braces(arguments)};\n"
        f"  for (int32_t i = 0; i < {rows}; ++i) {{\n"
        f"    {widening}\n"
        f"    {kernel.name}({pointer(scratch, 'int32_t')}, W({stream}), {pointer(target.buffer)} + i * {channels}, a);\n"
        "  }"
    )
    grown, workspaces = (scratch, []) if over else (None, [scratch])
    state.step("dense", op, body, [in_name], [out_name], workspaces, len(data), macs, grown=grown)


def _stream(layer: Layer, padded: int, uniform: bool) -> bytes:
    """Stream of `dsp_asm.dense`: four channels at a time, the last ones padded with channels of zeros.

    `uniform`: without the channels' parameters.
    """
    channels, k = layer.weights.shape
    total = -(-channels // 4) * 4
    weights = np.zeros((total, padded), np.int64)
    weights[:channels, :k] = layer.weights
    biases = np.zeros(total, np.int64)
    biases[:channels] = layer.biases
    parts = []
    for c in range(0, total, 4):
        b = [int(value) for value in biases[c : c + 4]]
        parts.append(words([256 * b[0] + b[1], 256 * b[2] + b[3], b[1], b[3]]))
        first, second = (pack_halfwords(weights[c + i], weights[c + i + 1]) for i in (0, 2))
        for start in range(0, 2 * padded, 16):
            parts += [first[start : start + 16], second[start : start + 16]]
        for channel in range(c, c if uniform else c + 4):
            parts.append(words(layer.parameters(channel if channel < channels else -1)))
    return b"".join(parts)


def _long(state: Lowering, op: Op, in_name: str, layer: Layer, rows: int, macs: int) -> None:
    """Two products a 64-bit multiply-accumulate, straight from the int8 row: no scratch memory."""
    channels, k = layer.weights.shape
    kernel = long_asm.dense(k, state.unroll(), epilogue_of(layer, Family.LONG))
    state.program.asm_kernels[kernel.name] = kernel
    data = long_streams.dense_stream(layer)
    stream = state.constant(data)
    # Four outputs are stored at a time: a row's last ones may pass its end, into what comes after it.
    source, target = state.place(in_name), state.output(op.outputs[0])
    prototype = f"void {kernel.name}(const int8_t *, const uint8_t *, int8_t *, const uint8_t *);"
    body = (
        f"{prototype}\n  for (int32_t i = 0; i < {rows}; ++i)\n"
        f"    {kernel.name}({pointer(source.buffer)} + i * {k}, W({stream}), {pointer(target.buffer)} + i * {channels}, "
        f"W({stream + len(data)}));"
    )
    state.step("dense", op, body, [in_name], [op.outputs[0]], [], len(data), macs)


def _sparse(state: Lowering, op: Op, in_name: str, layer: Layer, rows: int, macs: int) -> None:
    """Weights other than zero only, straight from the int8 row: no scratch memory."""
    channels, k = layer.weights.shape
    windows = -(-k // sparse_streams.WINDOW)
    if not state.machine.mainline:
        data = b"".join(sparse_streams.dense_stream(layer, channel, False, True) for channel in range(channels))
        stream = state.constant(data)
        state.use("sparse_dense")
        head, name, last = "", "tim_dense8", f"{channels}, {windows}, {layer.low}, {layer.high}"
    else:
        plain = sparse_streams.unbiased(layer)
        epilogue = epilogue_of(plain, Family.SPARSE, uniform=True)
        kernel = sparse_asm.dense(windows > 1, epilogue, state.machine.dsp)
        state.program.asm_kernels[kernel.name] = kernel
        data = b"".join(sparse_streams.dense_stream(layer, channel, epilogue.uniform) for channel in range(channels))
        stream = state.constant(data)
        parameters = long_streams.parameter_values(plain, 0) if epilogue.uniform else []
        arguments = (len(data), windows * sparse_streams.WINDOW, *parameters)
        head = (
            f"void {kernel.name}(const int8_t *, const uint8_t *, int8_t *, const int32_t *);\n"
            f"  static const int32_t a[] = {braces(arguments)};\n  "
        )
        name, last = kernel.name, "a"
    source, target = state.place(in_name), state.output(op.outputs[0])
    body = (
        f"{head}for (int32_t i = 0; i < {rows}; ++i)\n"
        f"    {name}({pointer(source.buffer)} + i * {k}, W({stream}), {pointer(target.buffer)} + i * {channels}, {last});"
    )
    state.step("dense" + sparse.SPARSE, op, body, [in_name], [op.outputs[0]], [], len(data), macs)


def _small(state: Lowering, op: Op, in_name: str, layer: Layer, rows: int, macs: int) -> None:
    channels, k = layer.weights.shape
    narrow = narrow_of(layer)
    chunk = small_dense.best_chunk(layer, 4 if state.settings.compact else 4 * state.unroll())
    rest = -(-(channels % small_dense.PASS) // 4) or small_dense.PASS // 4
    full, less = (
        small_dense.dense(count, chunk, narrow.shift, narrow.signed, narrow.uniform)
        for count in (small_dense.PASS // 4 if channels >= small_dense.PASS else rest, rest)
    )
    for each in (full, less):
        state.program.asm_kernels[each.name] = each
    name = f"tim_dense_{full.name[4:]}_{less.name[4:]}"
    state.define(
        name, c_small.DENSE_SMALL.replace("@FULL@", full.name).replace("@REST@", less.name), "small_dense_starts"
    )
    data = b"".join(small_dense.pass_stream(layer, c, chunk) for c in range(0, channels, small_dense.PASS))
    stream = state.constant(data)
    starts = state.program.workspace(8 * (k // chunk))
    source, target = state.place(in_name), state.output(op.outputs[0])
    parameters = small_dense.parameters(layer, 0) if narrow.uniform else []
    body = (
        f"static const {name}_desc d = {{{k}, {chunk}, {channels}, {braces(tuple(parameters) or (0,))}}};\n"
        f"  for (int32_t i = 0; i < {rows}; ++i)\n"
        f"    {name}(&d, {pointer(source.buffer)} + i * {k}, W({stream}), {pointer(target.buffer)} + i * {channels}, "
        f"{pointer(starts, 'int32_t')});"
    )
    state.step("dense", op, body, [in_name], [op.outputs[0]], [starts], len(data), macs)


def _portable(state: Lowering, op: Op, in_name: str, layer: Layer, rows: int, macs: int) -> None:
    channels, k = layer.weights.shape
    parts = []
    for channel in range(channels):
        parts.append(words([int(layer.biases[channel]), *layer.portable_parameters(channel)]))
        parts.append(layer.weights[channel].astype(np.int8).tobytes() + b"\0" * (-k % 4))
    data = b"".join(parts)
    stream = state.constant(data)
    source, target = state.place(in_name), state.output(op.outputs[0])
    state.use("dense_portable")
    body = (
        f"for (int32_t i = 0; i < {rows}; ++i)\n"
        f"    tim_dense({pointer(source.buffer)} + i * {k}, W({stream}), {pointer(target.buffer)} + i * {channels}, "
        f"{channels}, {k}, {layer.low}, {layer.high});"
    )
    state.step("dense", op, body, [in_name], [op.outputs[0]], [], len(data), macs)
