"""C drivers of the kernels in `small_asm`: four pixels at a time through planes or a ring of rows, planes one by one."""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.c_text import kernel

SMALL_COMMON = kernel(
    "small_common",
    """
int32_t *tim_pack4s(const int8_t *pixel, int32_t *patch, int32_t n, const int32_t *args);
/* Distances of pixels and of channels in the output, bytes of the patch and of the stream. */
typedef struct { int32_t ps, cs, patch, stream; } tim_small_args;
/* The kernel's arguments for so many pixels: those that are missing are the last one again. */
static inline void tim_small_outputs(const tim_small_args *g, int32_t left, int32_t *args) {
  args[0] = g->patch;
  args[1] = g->stream;
  args[2] = left > 1 ? g->ps : 0;
  args[3] = left > 2 ? 2 * g->ps : args[2];
  args[4] = left > 3 ? 3 * g->ps : args[3];
  args[5] = g->cs;
}
""",
)

PLANAR_SMALL = """
void @MM4@(const int32_t *, const uint8_t *, int8_t *, const int32_t *);
void @MM2@(const int32_t *, const uint8_t *, int8_t *, const int32_t *);
typedef struct { tim_small_args args; int32_t pixels, plane, channels; } @NAME@_desc;
static NOINLINE void @NAME@(const @NAME@_desc *d, const int8_t *in, int8_t *out, const uint8_t *w, int32_t *patch) {
  for (int32_t left = d->pixels; left > 0; left -= 4) {
    int32_t args[6], pixels[4] = {left > 1, left > 2 ? 2 : left > 1, left > 3 ? 3 : left - 1, d->plane};
    int32_t *end = tim_pack4s(in, patch, d->channels, pixels);
    while (end != patch + d->args.patch / 4) *end++ = 0;
    tim_small_outputs(&d->args, left, args);
    if (left > 2) @MM4@(patch, w, out, args);
    else @MM2@(patch, w, out, args);
    in += 4;
    out += 4 * d->args.ps;
  }
}
"""

CONV_SMALL = """
void @MM4@(const int32_t *, const uint8_t *, int8_t *, const int32_t *);
void @MM2@(const int32_t *, const uint8_t *, int8_t *, const int32_t *);
static NOINLINE void @NAME@(const tim_conv *c, const tim_small_args *g, const int8_t *in, int8_t *out,
                             const uint8_t *w, int8_t *ring, int32_t *patch) {
  int32_t y = 0, x = 0, filled = 0;
  const int8_t *base = c->ring_rows ? ring : in;
  for (int32_t left = c->oh * c->ow; left > 0; left -= 4, out += 4 * c->out_ps) {
    int32_t slots[4], columns[4], args[6];
    for (int32_t i = 0; i < 4; ++i) {
      int32_t row = y * c->row_step;
      if (c->ring_rows) {
        for (; filled < row + (c->kh - 1) * c->row_dilation + 1; ++filled) tim_ring_row(c, in, ring, filled);
        while (row >= c->ring_rows) row -= c->ring_rows;
      }
      slots[i] = row;
      columns[i] = x * c->col_step;
      /* Pixels past the last one are the last one again. */
      if (i + 1 < left && ++x == c->ow) { x = 0; ++y; }
    }
    int32_t *q = patch;
    for (int32_t r = c->kh; r; --r) {
      int32_t at[4];
      for (int32_t i = 0; i < 4; ++i) {
        at[i] = slots[i] * c->row_bytes + columns[i];
        slots[i] += c->row_dilation;
        if (c->ring_rows && slots[i] >= c->ring_rows) slots[i] -= c->ring_rows;
      }
      const int8_t *pixel = base + at[0];
      int32_t pixels[4] = {at[1] - at[0], at[2] - at[0], at[3] - at[0], 1};
      for (int32_t n = c->runs; n; --n, pixel += c->run_step) q = tim_pack4s(pixel, q, c->run, pixels);
    }
    while (q != patch + g->patch / 4) *q++ = 0;
    tim_small_outputs(g, left, args);
    if (left > 2) @MM4@(patch, w, out, args);
    else @MM2@(patch, w, out, args);
  }
}
"""

# One padded plane of words at a time behind the block of the channel's weights and parameters, so that it may write over
# what it has read.
DEPTHWISE_SMALL = """
void @KERNEL@(const int32_t *, const int32_t *, int8_t *, int32_t);
void @WIDEN@(const int8_t *, int32_t *, int32_t);
typedef struct { int32_t channels, ih, in_plane, oh, out_plane, words, first, zero, parameters; } @NAME@_desc;
static NOINLINE void @NAME@(const @NAME@_desc *d, const int8_t *in, int8_t *out, const int8_t *w, int32_t *scratch) {
  int32_t *plane = scratch + 16;
  for (int32_t i = 0; i < d->words; ++i) plane[i] = d->zero;
  for (int32_t c = d->channels; c; --c) {
    for (int32_t i = 0; i < 9; ++i) scratch[i] = w[i];
    for (int32_t i = 0; i < d->parameters; ++i) scratch[9 + i] = ((const int32_t *)w)[3 + i];
    w += 12 + 4 * d->parameters;
    @WIDEN@(in, plane + d->first, d->ih);
    @KERNEL@(plane, scratch, out, d->oh);
    in += d->in_plane;
    out += d->out_plane;
  }
}
"""

# Stream of four channels: a word of weights a k, then bias, multiplier, offset, negative * 32 + shift of each.
DENSE_SMALL = """
void @SUMS@(const int8_t *, const uint8_t *, int32_t *, const int8_t *);
static NOINLINE void @NAME@(const int8_t *x, const uint8_t *w, int8_t *out, int32_t channels, int32_t k,
                             int32_t lo, int32_t hi) {
  for (int32_t left = channels; left > 0; left -= 4) {
    int32_t sums[4];
    @SUMS@(x, w, sums, x + k);
    w += 4 * k;
    for (int32_t i = 0; i < 4; ++i, w += 16) {
      const int32_t *p = (const int32_t *)w;
      int32_t acc = (i & 1 ? sums[i] : sums[i] >> 8) + p[0];
      if (i < left) *out++ = tim_requant(acc, p + 1, lo, hi);
    }
  }
}
"""
