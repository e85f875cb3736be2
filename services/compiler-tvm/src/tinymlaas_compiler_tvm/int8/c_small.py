"""C drivers of the kernels in `small_asm`: three pixels at a time, sums in assembly, requantization in C."""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.c_text import kernel

SMALL_COMMON = kernel(
    "small_common",
    """
/* Bytes of a pair's weights, distances of pixels and of channels, pairs, words of a pixel's patch, clamp. */
typedef struct { int32_t weights, ps, cs, pairs, k, lo, hi; } tim_small_args;
static NOINLINE int32_t *tim_pack3(const int8_t *const *pixels, int32_t *q, int32_t n, int32_t step) {
  const int8_t *a = pixels[0], *b = pixels[1], *c = pixels[2];
  do {
    q[0] = *a;
    q[1] = *b;
    q[2] = *c;
    q += 3;
    a += step;
    b += step;
    c += step;
  } while (--n);
  return q;
}
""",
    "portable_requant",
)

# Stream of a channel pair: weights as halfwords, padded to a word, then bias, multiplier, offset, negative * 32 + shift of both.
SMALL_MM = """
void @SUMS@(const int32_t *, const uint8_t *, int32_t *, const int32_t *);
static NOINLINE void @NAME@(const int32_t *patch, const uint8_t *w, int8_t *out, const tim_small_args *g, int32_t pixels) {
  int32_t pairs = g->pairs, second = pixels > 1 ? g->ps : 0, third = pixels > 2 ? 2 * g->ps : second;
  do {
    int32_t sums[6], *s = sums;
    @SUMS@(patch, w, sums, patch + 3 * g->k);
    const int32_t *p = (const int32_t *)(w + g->weights);
    s[0] >>= 8;
    s[1] >>= 8;
    s[2] >>= 8;
    do {
      out[0] = tim_requant(s[0] + p[0], p + 1, g->lo, g->hi);
      out[second] = tim_requant(s[1] + p[0], p + 1, g->lo, g->hi);
      out[third] = tim_requant(s[2] + p[0], p + 1, g->lo, g->hi);
      out += g->cs;
      p += 4;
      s += 3;
    } while (s != sums + 6);
    w = (const uint8_t *)p;
  } while (--pairs);
}
"""

PLANAR_SMALL = """
typedef struct { tim_small_args args; int32_t pixels, plane, channels; } @NAME@_desc;
static NOINLINE void @NAME@(const @NAME@_desc *d, const int8_t *in, int8_t *out, const uint8_t *w, int32_t *patch) {
  for (int32_t left = d->pixels; left > 0; left -= 3) {
    const int8_t *pixels[3] = {in, in + (left > 1), in + (left > 2 ? 2 : left - 1)};
    tim_pack3(pixels, patch, d->channels, d->plane);
    @MM@(patch, w, out, &d->args, left);
    in += 3;
    out += 3 * d->args.ps;
  }
}
"""

CONV_SMALL = """
static NOINLINE void @NAME@(const tim_conv *c, const tim_small_args *args, const int8_t *in, int8_t *out,
                             const uint8_t *w, int8_t *ring, int32_t *patch) {
  int32_t y = 0, x = 0, filled = 0;
  const int8_t *base = c->ring_rows ? ring : in;
  for (int32_t left = c->oh * c->ow; left > 0; left -= 3, out += 3 * c->out_ps) {
    int32_t slots[3], columns[3];
    for (int32_t i = 0; i < 3; ++i) {
      int32_t row = y * c->row_step;
      if (c->ring_rows)
        for (; filled < row + (c->kh - 1) * c->row_dilation + 1; ++filled) tim_ring_row(c, in, ring, filled);
      slots[i] = c->ring_rows ? row % c->ring_rows : row;
      columns[i] = x * c->col_step;
      /* Pixels past the last one are the last one again. */
      if (i + 1 < left && ++x == c->ow) { x = 0; ++y; }
    }
    int32_t *q = patch;
    for (int32_t r = c->kh; r; --r) {
      const int8_t *pixels[3];
      for (int32_t i = 0; i < 3; ++i) {
        pixels[i] = base + slots[i] * c->row_bytes + columns[i];
        slots[i] += c->row_dilation;
        if (c->ring_rows && slots[i] >= c->ring_rows) slots[i] -= c->ring_rows;
      }
      for (int32_t n = c->runs; n; --n) {
        q = tim_pack3(pixels, q, c->run, 1);
        for (int32_t i = 0; i < 3; ++i) pixels[i] += c->run_step;
      }
    }
    @MM@(patch, w, out, args, left);
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
