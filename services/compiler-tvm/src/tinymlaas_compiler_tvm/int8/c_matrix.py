"""C for convolutions and fully connected layers: drivers that walk images and call a matrix kernel, portable matrix kernels."""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.c_text import kernel

# Stream per channel pair: bias A, bias B, K pairs of int8 (A, B), K padded with zeros to a multiple of 4, then (multiplier,
# offset, negative * 32 + shift) twice. The patch holds K pairs of int8 (first pixel, second pixel); what stands in its padding
# is multiplied by zero.
PORTABLE_MM = kernel(
    "portable_mm",
    """
typedef struct { int32_t ps, cs, pairs, k, lo, hi; } tim_mm_args;
#define TIM_MM_STEP(i) { \\
      int32_t x0 = p[2 * i], x1 = p[2 * i + 1], wa = q[2 * i], wb = q[2 * i + 1]; \\
      a0 += x0 * wa; a1 += x1 * wa; b0 += x0 * wb; b1 += x1 * wb; }
static NOINLINE void tim_mm(const int8_t *patch, const uint8_t *w, int8_t *out, const tim_mm_args *g) {
  int32_t pairs = g->pairs, k = g->k, ps = g->ps, cs = g->cs;
  do {
    const int8_t *p = patch, *q = (const int8_t *)w + 8, *end = p + 2 * k;
    int32_t a0 = ((const int32_t *)w)[0], b0 = ((const int32_t *)w)[1], a1 = a0, b1 = b0;
    do {
      TIM_MM_STEP(0)
      TIM_MM_STEP(1)
      TIM_MM_STEP(2)
      TIM_MM_STEP(3)
      p += 8; q += 8;
    } while (p != end);
    const int32_t *m = (const int32_t *)q;
    out[0] = tim_requant(a0, m, g->lo, g->hi);
    out[ps] = tim_requant(a1, m, g->lo, g->hi);
    out += cs;
    out[0] = tim_requant(b0, m + 3, g->lo, g->hi);
    out[ps] = tim_requant(b1, m + 3, g->lo, g->hi);
    out += cs;
    w = (const uint8_t *)(m + 6);
  } while (--pairs);
}
""",
    "portable_requant",
)

# A pointwise layer over planes, in place where the channels do not grow: a pixel pair is read wholly before it is written.
PLANAR_DSP = """
typedef struct { int32_t args[4]; int32_t pixels, plane, groups; } @NAME@_desc;
static NOINLINE void @NAME@(const @NAME@_desc *d, const int8_t *in, int8_t *out, const uint8_t *w, int32_t *patch) {
  int32_t left = d->pixels;
  const int8_t *p = in;
  int8_t *o = out;
  int32_t ps = d->args[0];
  for (; left > 1; left -= 2) {
    tim_gather_planar(p, patch, d->groups, d->plane);
    @MM@(patch, w, o, d->args);
    p += 2;
    o += 2 * ps;
  }
  if (left) {
    int32_t last[4] = {0, d->args[1], d->args[2], d->args[3]};
    int32_t *q = patch;
    for (int32_t g = d->groups; g; --g) {
      int32_t c0 = p[0], c1 = p[d->plane], c2 = p[2 * d->plane], c3 = p[3 * d->plane];
      q[0] = q[2] = (c0 & 0xffff) | (int32_t)((uint32_t)c2 << 16);
      q[1] = q[3] = (c1 & 0xffff) | (int32_t)((uint32_t)c3 << 16);
      q += 4;
      p += 4 * d->plane;
    }
    @MM@(patch, w, o, last);
  }
}
"""

PLANAR_PORTABLE = """
typedef struct { tim_mm_args args; int32_t pixels, plane, channels; } @NAME@_desc;
static NOINLINE void @NAME@(const @NAME@_desc *d, const int8_t *in, int8_t *out, const uint8_t *w, int8_t *patch) {
  int32_t left = d->pixels, k = d->channels, ps = d->args.ps;
  tim_mm_args g = d->args;
  for (;;) {
    const int8_t *p = in;
    int8_t *q = patch, *end = patch + 2 * k;
    int32_t second = left > 1;
    if (!second) g.ps = 0;
    do { q[0] = p[0]; q[1] = p[second]; q += 2; p += d->plane; } while (q != end);
    tim_mm(patch, w, out, &g);
    if (left <= 2) return;
    left -= 2;
    in += 2;
    out += 2 * ps;
  }
}
"""

# Convolution: rows of the input, padded, stand in a ring (or the input itself is the ring when nothing is padded and the
# output goes elsewhere); two output pixels in row order share one run of the matrix kernel.
CONV_COMMON = kernel(
    "conv_common",
    """
typedef struct {
  int32_t ih, iw, channels, ps, cs;     /* input: rows, columns, channels, bytes between pixels and channels */
  int32_t oh, ow;
  int32_t pad_top, left, right;         /* rows and bytes of padding */
  int32_t row_bytes, ring_rows, zero;   /* ring_rows 0: the input is the ring */
  int32_t row_step, col_step;           /* ring rows and bytes an output row and column */
  int32_t kh, row_dilation, runs, run_step, run;
  int32_t groups;                       /* K / 4, rounded up */
  int32_t out_ps;
} tim_conv;
static inline void tim_fill(int8_t *d, int32_t value, int32_t n) { for (; n > 0; --n) *d++ = (int8_t)value; }
/* Row `row` of the padded image, to a slot of the ring. */
static NOINLINE void tim_slot_row(const tim_conv *c, const int8_t *in, int8_t *d, int32_t row) {
  int32_t y = row - c->pad_top;
  if (y < 0 || y >= c->ih) { tim_fill(d, c->zero, c->row_bytes); return; }
  tim_fill(d, c->zero, c->left);
  d += c->left;
  const int8_t *s = in + y * c->iw * c->ps;
  int32_t bytes = c->iw * c->channels;
  if (c->cs == 1) {
    TIM_COPY(d, s, bytes);
    d += bytes;
  } else {
    for (int32_t x = c->iw; x; --x, s += c->ps) {
      const int8_t *t = s;
      for (int32_t k = c->channels; k; --k, t += c->cs) *d++ = *t;
    }
  }
  tim_fill(d, c->zero, c->right);
}
static inline void tim_ring_row(const tim_conv *c, const int8_t *in, int8_t *ring, int32_t row) {
  tim_slot_row(c, in, ring + row % c->ring_rows * c->row_bytes, row);
}
""",
)

CONV_DSP = """
static NOINLINE void @NAME@(const tim_conv *c, const int32_t *args, const int8_t *in, int8_t *out,
                             const uint8_t *w, int8_t *ring, int32_t *patch) {
  int32_t y = 0, x = 0, filled = 0, left = c->oh * c->ow;
  const int8_t *base = c->ring_rows ? ring : in;
  int32_t last[4] = {0, args[1], args[2], args[3]};
  while (left > 0) {
    for (int32_t half = 0; half < 2; ++half) {
      int32_t row = y * c->row_step;
      if (c->ring_rows)
        for (; filled < row + (c->kh - 1) * c->row_dilation + 1; ++filled) tim_ring_row(c, in, ring, filled);
      int32_t slot = c->ring_rows ? row % c->ring_rows : row;
      int32_t *q = patch + 2 * half;
@GATHER@
      if (left > 1 || half) {
        if (++x == c->ow) { x = 0; ++y; }
        if (half == 0) --left;
      } else {
        args = last;
      }
    }
    --left;
    @MM@(patch, w, out, args);
    out += 2 * c->out_ps;
  }
}
"""

GATHER_RUNS = """
      for (int32_t r = c->kh; r; --r) {
        const int8_t *s = base + slot * c->row_bytes + x * c->col_step;
        q = tim_gather_run16(s, q, c->groups);
        slot += 1;
        if (slot == c->ring_rows) slot = 0;
      }
"""

GATHER_BYTES = """
      int8_t *t = (int8_t *)(patch + 4 * c->groups);
      for (int32_t r = c->kh; r; --r) {
        const int8_t *s = base + slot * c->row_bytes + x * c->col_step;
        for (int32_t n = c->runs; n; --n) {
          TIM_COPY(t, s, c->run);
          t += c->run;
          s += c->run_step;
        }
        slot += c->row_dilation;
        if (c->ring_rows && slot >= c->ring_rows) slot -= c->ring_rows;
      }
      tim_gather_run16((int8_t *)(patch + 4 * c->groups), q, c->groups);
"""

CONV_PORTABLE = """
static NOINLINE void tim_conv_run(const tim_conv *c, const tim_mm_args *args, const int8_t *in, int8_t *out,
                                  const uint8_t *w, int8_t *ring, int8_t *patch) {
  int32_t y = 0, x = 0, filled = 0, left = c->oh * c->ow;
  const int8_t *base = c->ring_rows ? ring : in;
  tim_mm_args g = *args;
  while (left > 0) {
    if (left == 1) g.ps = 0;
    for (int32_t half = 0; half < 2; ++half) {
      int32_t row = y * c->row_step;
      if (c->ring_rows)
        for (; filled < row + (c->kh - 1) * c->row_dilation + 1; ++filled) tim_ring_row(c, in, ring, filled);
      int32_t slot = c->ring_rows ? row % c->ring_rows : row;
      int8_t *q = patch + half;
      for (int32_t r = c->kh; r; --r) {
        const int8_t *s = base + slot * c->row_bytes + x * c->col_step;
        for (int32_t n = c->runs; n; --n) {
          for (int32_t i = 0; i < c->run; ++i) { *q = s[i]; q += 2; }
          s += c->run_step;
        }
        slot += c->row_dilation;
        if (c->ring_rows && slot >= c->ring_rows) slot -= c->ring_rows;
      }
      if (left > 1 || half) {
        if (++x == c->ow) { x = 0; ++y; }
        if (half == 0) --left;
      }
    }
    --left;
    tim_mm(patch, w, out, &g);
    out += 2 * c->out_ps;
  }
}
"""

DENSE_PORTABLE = kernel(
    "dense_portable",
    """
/* Stream per channel: bias, multiplier, offset, negative, K weights, padding to 4 bytes. */
static NOINLINE void tim_dense(const int8_t *x, const uint8_t *w, int8_t *out, int32_t channels, int32_t k,
                               int32_t lo, int32_t hi) {
  do {
    const int32_t *h = (const int32_t *)w;
    const int8_t *p = x, *end = x + k, *q = (const int8_t *)(h + 4);
    int32_t acc = h[0];
    do acc += *p++ * *q++; while (p != end);
    *out++ = tim_requant(acc, h + 1, lo, hi);
    w += 16 + ((k + 3) & ~3);
  } while (--channels);
}
""",
    "portable_requant",
)
