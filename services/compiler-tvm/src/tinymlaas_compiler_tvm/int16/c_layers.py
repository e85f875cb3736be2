"""C for int16 convolutions and fully connected layers: matrix kernels, drivers through a ring of rows, depthwise planes."""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.c_text import kernel

# (acc * multiplier) >> 16 in 32 bits, shifted by the rest and rounded, halves upward; a word holds multiplier and shift.
SCALE16 = kernel(
    "scale16",
    """
typedef int32_t __attribute__((may_alias)) tim_i32;
static inline int32_t tim_clamp16(int32_t v, int32_t lo, int32_t hi) { return v < lo ? lo : v > hi ? hi : v; }
#if __ARM_FEATURE_SIMD32
static inline int32_t tim_scale16(int32_t acc, int32_t p) {
  int32_t t;
  __asm__("smulwt %0, %1, %2" : "=r"(t) : "r"(acc), "r"(p));
  return ((t >> (p & 31)) + 1) >> 1;
}
/* Halfwords of the even bytes, and of the odd ones. */
static inline int32_t tim_even(int32_t x) { int32_t r; __asm__("sxtb16 %0, %1" : "=r"(r) : "r"(x)); return r; }
static inline int32_t tim_odd(int32_t x) { int32_t r; __asm__("sxtb16 %0, %1, ror #8" : "=r"(r) : "r"(x)); return r; }
static inline int32_t tim_dual(int32_t x, int32_t w, int32_t acc) {
  __asm__("smlad %0, %1, %2, %0" : "+r"(acc) : "r"(x), "r"(w));
  return acc;
}
static inline int32_t tim_low(int32_t x, int32_t w, int32_t acc) {
  __asm__("smlabb %0, %1, %2, %0" : "+r"(acc) : "r"(x), "r"(w));
  return acc;
}
static inline int32_t tim_top(int32_t x, int32_t w, int32_t acc) {
  __asm__("smlatt %0, %1, %2, %0" : "+r"(acc) : "r"(x), "r"(w));
  return acc;
}
#elif LONG_MULTIPLY
static inline int32_t tim_scale16(int32_t acc, int32_t p) {
  return (((int32_t)(((int64_t)acc * (p & ~0xffff)) >> 32) >> (p & 31)) + 1) >> 1;
}
#else
static inline int32_t tim_scale16(int32_t acc, int32_t p) {
  int32_t m = p >> 16, t = (acc >> 16) * m + (int32_t)(((uint32_t)acc & 0xffff) * (uint32_t)m >> 16);
  return ((t >> (p & 31)) + 1) >> 1;
}
#endif
static inline int32_t tim_saturated16(int32_t v) {
#if __ARM_FEATURE_SIMD32
  int32_t r; __asm__("ssat %0, #16, %1" : "=r"(r) : "r"(v)); return r;
#else
  return tim_clamp16(v, -32768, 32767);
#endif
}
static inline int32_t tim_positive16(int32_t v) {
#if __ARM_FEATURE_SIMD32
  int32_t r; __asm__("usat %0, #15, %1" : "=r"(r) : "r"(v)); return r;
#else
  return tim_clamp16(v, 0, 32767);
#endif
}
#define tim_clamp_any(v, g) tim_saturated16(v)
#define tim_clamp_positive(v, g) tim_positive16(v)
#define tim_clamp_within(v, g) tim_clamp16(v, (g)->lo, (g)->hi)
typedef struct { int32_t channels, fours, ps, second, lo, hi; } tim_mm16_args;
""",
)

# Two pixels (patches of `second` bytes after each other) by two channels. Where there is no second pixel or channel, its result
# is written first, where the other one then comes to stand.
MATRIX = """
static NOINLINE void @NAME@(const int16_t *patch, const uint8_t *w, int16_t *out, const tim_mm16_args *g) {
  const tim_i32 *h = (const tim_i32 *)w;
  for (int32_t left = g->channels; left > 0; left -= 2, out += 2) {
    const tim_i32 *p = (const tim_i32 *)patch, *q = (const tim_i32 *)((const uint8_t *)patch + g->second);
    const tim_i32 *end = p + 2 * g->fours;
    int32_t a0 = h[0], b0 = h[1], a1 = a0, b1 = b0;
    h += 2;
    do {
@STEPS@
    } while (p != end);
    int32_t b = left > 1, pa = h[0], pb = h[1];
    int16_t *other = out + g->ps;
    other[b] = (int16_t)tim_clamp_@CLAMP@(tim_scale16(b1, pb), g);
    other[0] = (int16_t)tim_clamp_@CLAMP@(tim_scale16(a1, pa), g);
    out[b] = (int16_t)tim_clamp_@CLAMP@(tim_scale16(b0, pb), g);
    out[0] = (int16_t)tim_clamp_@CLAMP@(tim_scale16(a0, pa), g);
    h += 2;
  }
}
"""
MATRIX_STEP_DSP = """      {
        int32_t wa = h[@I2@], wb = h[@I2@ + 1], ae = tim_even(wa), ao = tim_odd(wa), be = tim_even(wb), bo = tim_odd(wb);
        int32_t x = p[@I2@], y = p[@I2@ + 1];
        a0 = tim_dual(x, ae, a0); b0 = tim_dual(x, be, b0); a0 = tim_dual(y, ao, a0); b0 = tim_dual(y, bo, b0);
        x = q[@I2@], y = q[@I2@ + 1];
        a1 = tim_dual(x, ae, a1); b1 = tim_dual(x, be, b1); a1 = tim_dual(y, ao, a1); b1 = tim_dual(y, bo, b1);
      }"""
MATRIX_STEP = """      {
        const int16_t *x = (const int16_t *)p + 4 * @I@, *y = (const int16_t *)q + 4 * @I@;
        const int8_t *a = (const int8_t *)(h + @I2@), *b = a + 4;
        int32_t x0 = x[0], y0 = y[0], wa = a[0], wb = b[0];
        a0 += x0 * wa; b0 += x0 * wb; a1 += y0 * wa; b1 += y0 * wb;
        x0 = x[1]; y0 = y[1]; wa = a[2]; wb = b[2];
        a0 += x0 * wa; b0 += x0 * wb; a1 += y0 * wa; b1 += y0 * wb;
        x0 = x[2]; y0 = y[2]; wa = a[1]; wb = b[1];
        a0 += x0 * wa; b0 += x0 * wb; a1 += y0 * wa; b1 += y0 * wb;
        x0 = x[3]; y0 = y[3]; wa = a[3]; wb = b[3];
        a0 += x0 * wa; b0 += x0 * wb; a1 += y0 * wa; b1 += y0 * wb;
      }"""

# One row by two channels.
ROW = """
static NOINLINE void @NAME@(const int16_t *row, const uint8_t *w, int16_t *out, const tim_mm16_args *g) {
  const tim_i32 *h = (const tim_i32 *)w;
  for (int32_t left = g->channels; left > 0; left -= 2, out += 2) {
    const tim_i32 *p = (const tim_i32 *)row, *end = p + 2 * g->fours;
    int32_t a0 = h[0], b0 = h[1];
    h += 2;
    do {
@STEPS@
    } while (p != end);
    out[left > 1] = (int16_t)tim_clamp_@CLAMP@(tim_scale16(b0, h[1]), g);
    out[0] = (int16_t)tim_clamp_@CLAMP@(tim_scale16(a0, h[0]), g);
    h += 2;
  }
}
"""
ROW_STEP_DSP = """      {
        int32_t wa = h[@I2@], wb = h[@I2@ + 1], x = p[@I2@], y = p[@I2@ + 1];
        a0 = tim_dual(x, tim_even(wa), a0); b0 = tim_dual(x, tim_even(wb), b0);
        a0 = tim_dual(y, tim_odd(wa), a0); b0 = tim_dual(y, tim_odd(wb), b0);
      }"""
ROW_STEP = """      {
        const int16_t *x = (const int16_t *)p + 4 * @I@;
        const int8_t *a = (const int8_t *)(h + @I2@), *b = a + 4;
        a0 += x[0] * a[0] + x[1] * a[2] + x[2] * a[1] + x[3] * a[3];
        b0 += x[0] * b[0] + x[1] * b[2] + x[2] * b[1] + x[3] * b[3];
      }"""

# The runs of one output pixel, put together at `t`.
_COPY_RUNS = """\
      for (int32_t r = c->kh; r; --r) {
        const int8_t *s = base + slot * c->row_bytes + x * c->col_step;
        for (int32_t n = c->runs; n; --n, s += c->run_step) {
          TIM_COPY(t, s, c->run);
          t += c->run;
        }
        slot += c->row_dilation;
        if (c->ring_rows && slot >= c->ring_rows) slot -= c->ring_rows;
      }"""

# Convolution by way of `conv_common`, whose pixels are bytes: two output pixels in row order a run of the matrix kernel.
CONVOLUTION = """
static NOINLINE void @NAME@(const tim_conv *c, const tim_mm16_args *args, const int8_t *in, int16_t *out,
                            const uint8_t *w, int8_t *ring, int8_t *patch) {
  int32_t y = 0, x = 0, filled = 0, left = c->oh * c->ow;
  const int8_t *base = c->ring_rows ? ring : in;
  tim_mm16_args g = *args;
  for (; left > 0; left -= 2) {
    if (left == 1) { g.ps = 0; g.second = 0; }
    for (int32_t half = 0; half <= (left > 1); ++half) {
      int32_t row = y * c->row_step;
      if (c->ring_rows)
        for (; filled < row + (c->kh - 1) * c->row_dilation + 1; ++filled) tim_ring_row(c, in, ring, filled);
      int32_t slot = c->ring_rows ? row % c->ring_rows : row;
      int8_t *t = patch + half * g.second;
@RUNS@
      if (++x == c->ow) { x = 0; ++y; }
    }
    @MM@((const int16_t *)patch, w, out, &g);
    out += 2 * c->out_ps;
  }
}
""".replace("@RUNS@", _COPY_RUNS)

# The same for `dsp_asm.four_by_two`: words of four pixels alternate in the patch. Pixels that are over go one at a time.
CONVOLUTION_DSP = """
static NOINLINE void @NAME@(const tim_conv *c, const int32_t *args, const int8_t *in, int16_t *out,
                            const uint8_t *w, int8_t *ring, int32_t *patch) {
  int32_t y = 0, x = 0, filled = 0, left = c->oh * c->ow, g[3] = {args[0], args[1], args[2]};
  const int8_t *base = c->ring_rows ? ring : in;
  while (left > 0) {
    int32_t n = left > 3 ? 4 : 1;
    if (n == 1) g[0] = 0;
    for (int32_t i = 0; i < n; ++i) {
      int32_t row = y * c->row_step;
      if (c->ring_rows)
        for (; filled < row + (c->kh - 1) * c->row_dilation + 1; ++filled) tim_ring_row(c, in, ring, filled);
      int32_t slot = c->ring_rows ? row % c->ring_rows : row;
@GATHER@
      if (++x == c->ow) { x = 0; ++y; }
    }
    @MM@(patch, w, (int8_t *)out, g);
    out += n * c->out_ps;
    left -= n;
  }
}
"""
# Runs of whole words go straight to their places; others are put together behind the patch first.
GATHER_WORDS = """      int32_t *q = patch + i;
      for (int32_t r = c->kh; r; --r) {
        const int8_t *s = base + slot * c->row_bytes + x * c->col_step;
        for (int32_t n = c->runs; n; --n, s += c->run_step) q = tim_spread16(q, s, c->groups);
        slot += c->row_dilation;
        if (c->ring_rows && slot >= c->ring_rows) slot -= c->ring_rows;
      }"""
GATHER_BYTES = """      int8_t *t = (int8_t *)(patch + 4 * c->groups);
@RUNS@
      tim_spread16(patch + i, (const int8_t *)(patch + 4 * c->groups), c->groups);""".replace("@RUNS@", _COPY_RUNS)
SPREAD16 = kernel(
    "spread16",
    """
typedef struct { int32_t v; } __attribute__((packed, may_alias)) tim_any_word;
static inline int32_t *tim_spread16(int32_t *q, const int8_t *from, int32_t words) {
  const tim_any_word *s = (const tim_any_word *)from;
  for (; words >= 4; words -= 4, q += 16, s += 4) {
    q[0] = s[0].v;
    q[4] = s[1].v;
    q[8] = s[2].v;
    q[12] = s[3].v;
  }
  for (; words > 0; --words, q += 4, ++s) *q = s->v;
  return q;
}
""",
)

DEPTHWISE_COMMON = kernel(
    "depthwise16_common",
    """
typedef struct {
  int32_t channels, ih, iw, oh, ow, kh, kw, sh, sw, dh, dw, top, left, rows, pitch, lo, hi, record;
} tim_depthwise16_desc;
""",
    "scale16",
)

# Two neighbouring channels at a time, whose values share a word: their padded plane stands in scratch, so that the output may
# be written over what was read. Stream: two biases, two parameters, a word of two weights for each tap.
DEPTHWISE_PAIRS = """
static NOINLINE void @NAME@_three(const tim_depthwise16_desc *d, const tim_i32 *h, const tim_i32 *row, int16_t *out) {
  int32_t w0 = h[4], w1 = h[5], w2 = h[6], w3 = h[7], w4 = h[8], w5 = h[9], w6 = h[10], w7 = h[11], w8 = h[12];
  int32_t step = d->dh * d->pitch;
  for (int32_t y = d->oh; y; --y, row += d->sh * d->pitch) {
    const tim_i32 *s = row;
    for (int32_t x = d->ow; x; --x, s += d->sw, out += d->channels) {
      int32_t a = h[0], b = h[1], v;
      const tim_i32 *t = s + step, *u = t + step;
      v = s[0]; a = tim_low(v, w0, a); b = tim_top(v, w0, b);
      v = s[1]; a = tim_low(v, w1, a); b = tim_top(v, w1, b);
      v = s[2]; a = tim_low(v, w2, a); b = tim_top(v, w2, b);
      v = t[0]; a = tim_low(v, w3, a); b = tim_top(v, w3, b);
      v = t[1]; a = tim_low(v, w4, a); b = tim_top(v, w4, b);
      v = t[2]; a = tim_low(v, w5, a); b = tim_top(v, w5, b);
      v = u[0]; a = tim_low(v, w6, a); b = tim_top(v, w6, b);
      v = u[1]; a = tim_low(v, w7, a); b = tim_top(v, w7, b);
      v = u[2]; a = tim_low(v, w8, a); b = tim_top(v, w8, b);
      out[0] = (int16_t)tim_clamp_@CLAMP@(tim_scale16(a, h[2]), d);
      out[1] = (int16_t)tim_clamp_@CLAMP@(tim_scale16(b, h[3]), d);
    }
  }
}
static NOINLINE void @NAME@(const tim_depthwise16_desc *d, const int16_t *in, int16_t *out, const uint8_t *w, tim_i32 *scratch) {
  int32_t pitch = d->pitch, inside = d->channels >> 1;
  for (int32_t i = 0; i < d->rows * pitch; ++i) scratch[i] = 0;
  for (int32_t c = 0; c < d->channels; c += 2, w += d->record) {
    const tim_i32 *p = (const tim_i32 *)(in + c);
    tim_i32 *q = scratch + d->top * pitch + d->left;
    for (int32_t y = d->ih; y; --y, q += pitch - d->iw)
      for (int32_t x = d->iw; x; --x, p += inside) *q++ = *p;
    const tim_i32 *h = (const tim_i32 *)w, *row = scratch;
    if (d->kh == 3 && d->kw == 3 && d->dw == 1) {
      @NAME@_three(d, h, row, out + c);
      continue;
    }
    int16_t *o = out + c;
    for (int32_t y = d->oh; y; --y, row += d->sh * pitch) {
      const tim_i32 *s = row;
      for (int32_t x = d->ow; x; --x, s += d->sw, o += d->channels) {
        const tim_i32 *t = s, *k = h + 4;
        int32_t a = h[0], b = h[1];
        for (int32_t i = d->kh; i; --i, t += d->dh * pitch)
          for (int32_t j = 0; j < d->kw; ++j, ++k) {
            int32_t v = t[j * d->dw];
            a = tim_low(v, *k, a);
            b = tim_top(v, *k, b);
          }
        o[0] = (int16_t)tim_clamp_@CLAMP@(tim_scale16(a, h[2]), d);
        o[1] = (int16_t)tim_clamp_@CLAMP@(tim_scale16(b, h[3]), d);
      }
    }
  }
}
"""

# One channel at a time. Stream: bias, parameter, a weight for each tap, padding to 4 bytes.
DEPTHWISE_SINGLE = """
static NOINLINE void @NAME@_three(const tim_depthwise16_desc *d, const int32_t *h, const int16_t *row, int16_t *out) {
  const int8_t *k = (const int8_t *)(h + 2);
  int32_t w0 = k[0], w1 = k[1], w2 = k[2], w3 = k[3], w4 = k[4], w5 = k[5], w6 = k[6], w7 = k[7], w8 = k[8];
  int32_t step = d->dh * d->pitch;
  for (int32_t y = d->oh; y; --y, row += d->sh * d->pitch) {
    const int16_t *s = row;
    for (int32_t x = d->ow; x; --x, s += d->sw, out += d->channels) {
      const int16_t *t = s + step, *u = t + step;
      int32_t acc = h[0] + s[0] * w0 + s[1] * w1 + s[2] * w2 + t[0] * w3 + t[1] * w4 + t[2] * w5;
      acc += u[0] * w6 + u[1] * w7 + u[2] * w8;
      *out = (int16_t)tim_clamp_@CLAMP@(tim_scale16(acc, h[1]), d);
    }
  }
}
static NOINLINE void @NAME@(const tim_depthwise16_desc *d, const int16_t *in, int16_t *out, const uint8_t *w, int16_t *scratch) {
  int32_t pitch = d->pitch;
  for (int32_t i = 0; i < d->rows * pitch; ++i) scratch[i] = 0;
  for (int32_t c = 0; c < d->channels; ++c, w += d->record) {
    const int16_t *p = in + c, *row = scratch;
    int16_t *q = scratch + d->top * pitch + d->left;
    for (int32_t y = d->ih; y; --y, q += pitch - d->iw)
      for (int32_t x = d->iw; x; --x, p += d->channels) *q++ = *p;
    const int32_t *h = (const int32_t *)w;
    if (d->kh == 3 && d->kw == 3 && d->dw == 1) {
      @NAME@_three(d, h, row, out + c);
      continue;
    }
    int16_t *o = out + c;
    for (int32_t y = d->oh; y; --y, row += d->sh * pitch) {
      const int16_t *s = row;
      for (int32_t x = d->ow; x; --x, s += d->sw, o += d->channels) {
        const int16_t *t = s;
        const int8_t *k = (const int8_t *)(h + 2);
        int32_t acc = h[0];
        for (int32_t i = d->kh; i; --i, t += d->dh * pitch)
          for (int32_t j = 0; j < d->kw; ++j) acc += t[j * d->dw] * *k++;
        *o = (int16_t)tim_clamp_@CLAMP@(tim_scale16(acc, h[1]), d);
      }
    }
  }
}
"""

# Any form, 64-bit accumulators, as the reference has it: grouped and batched convolutions, and sums that may pass 32 bits.
GENERAL = kernel(
    "conv16_general",
    """
typedef struct {
  int32_t images, ih, iw, channels, oh, ow, out_channels, kh, kw, depth, per_group, sh, sw, dh, dw, top, left, lo, hi, record;
} tim_conv16_general_desc;
static NOINLINE void tim_conv16_general(const tim_conv16_general_desc *d, const int16_t *in, int16_t *out, const uint8_t *stream) {
  for (int32_t n = d->images; n; --n, in += d->ih * d->iw * d->channels)
    for (int32_t y = 0; y < d->oh; ++y)
      for (int32_t x = 0; x < d->ow; ++x) {
        const uint8_t *w = stream;
        for (int32_t o = 0; o < d->out_channels; ++o, w += d->record) {
          const int32_t *h = (const int32_t *)w;
          const int8_t *q = (const int8_t *)(h + 4);
          int64_t acc = (int64_t)(((uint64_t)(uint32_t)h[1] << 32) | (uint32_t)h[0]);
          int32_t first = o / d->per_group * d->depth;
          for (int32_t ky = 0; ky < d->kh; ++ky)
            for (int32_t kx = 0; kx < d->kw; ++kx, q += d->depth) {
              int32_t r = y * d->sh - d->top + ky * d->dh, c = x * d->sw - d->left + kx * d->dw;
              if (r < 0 || r >= d->ih || c < 0 || c >= d->iw) continue;
              const int16_t *s = in + (r * d->iw + c) * d->channels + first;
              for (int32_t i = 0; i < d->depth; ++i) acc += s[i] * q[i];
            }
          acc = (acc * h[2] + ((int64_t)1 << (h[3] - 1))) >> h[3];
          *out++ = (int16_t)(acc < d->lo ? d->lo : acc > d->hi ? d->hi : (int32_t)acc);
        }
      }
}
""",
)
