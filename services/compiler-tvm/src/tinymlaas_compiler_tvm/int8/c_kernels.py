"""C kernels: drivers that walk images and call a matrix kernel, portable matrix kernels, and the smaller operators.

The C is freestanding, includes nothing and has no static data but constants. Templates use `@WORD@` marks; what is put there is
generated (names, numbers), never text of a model.
"""

from __future__ import annotations

from tinymlaas_compiler_tvm.native.program import CKernel


def _kernel(name: str, text: str, *needs: str) -> CKernel:
    return CKernel(name, text.strip() + "\n", needs)


REQUANT = _kernel(
    "requant",
    """
#if LONG_MULTIPLY
static inline int32_t tim_high(int32_t x, int32_t m) { return (int32_t)(((int64_t)x * m) >> 32); }
#else
/* The high word out of four 16 by 16 products; exact for 0 <= m < 2**31. */
static inline int32_t tim_high(int32_t x, int32_t m) {
  int32_t xh = x >> 16, mh = m >> 16;
  uint32_t xl = (uint32_t)x & 0xffff, ml = (uint32_t)m & 0xffff;
  int32_t u = xh * (int32_t)ml + (int32_t)((xl * ml) >> 16);
  uint32_t v = xl * (uint32_t)mh + ((uint32_t)u & 0xffff);
  return xh * mh + (u >> 16) + (int32_t)(v >> 16);
}
#endif
static inline int32_t tim_clamp(int32_t v, int32_t lo, int32_t hi) { return v < lo ? lo : v > hi ? hi : v; }
""",
)

# Portable requantization by (multiplier, offset, negative * 32 + shift); acc is not yet multiplied by 256.
PORTABLE_REQUANT = _kernel(
    "portable_requant",
    """
static inline int8_t tim_requant(int32_t acc, const int32_t *p, int32_t lo, int32_t hi) {
  int32_t t = tim_high(acc * 256, p[0]) + p[1] - ((acc >> 31) & (p[2] >> 5));
  return (int8_t)tim_clamp(t >> (p[2] & 31), lo, hi);
}
""",
    "requant",
)

# Stream per channel pair: bias A, bias B, K pairs of int8 (A, B), K padded with zeros to a multiple of 4, then (multiplier,
# offset, negative * 32 + shift) twice. The patch holds K pairs of int8 (first pixel, second pixel); what stands in its padding
# is multiplied by zero.
PORTABLE_MM = _kernel(
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
CONV_COMMON = _kernel(
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
static NOINLINE void tim_ring_row(const tim_conv *c, const int8_t *in, int8_t *ring, int32_t row) {
  int32_t slot = row % c->ring_rows, y = row - c->pad_top;
  int8_t *d = ring + slot * c->row_bytes;
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

COPY_FAST = _kernel(
    "copy",
    """
/* Cores that allow unaligned word access: four bytes at a time, then the rest. */
typedef struct { uint32_t v; } __attribute__((packed, may_alias)) tim_word;
static inline void TIM_COPY(int8_t *d, const int8_t *s, int32_t n) {
  for (; n >= 4; n -= 4, d += 4, s += 4) ((tim_word *)d)->v = ((const tim_word *)s)->v;
  for (; n > 0; --n) *d++ = *s++;
}
""",
)
COPY_BYTES = _kernel(
    "copy",
    """
static inline void TIM_COPY(int8_t *d, const int8_t *s, int32_t n) { for (; n > 0; --n) *d++ = *s++; }
""",
)

DENSE_PORTABLE = _kernel(
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

# Depthwise, any kernel, over planes: one padded plane in scratch at a time, so that it may write over what it has read.
DEPTHWISE_PORTABLE = _kernel(
    "depthwise_portable",
    """
typedef struct {
  int32_t channels, multiplier, ih, iw, oh, ow, kh, kw, sh, sw, dh, dw, top, left, rows, pitch, zero, lo, hi, record;
} tim_depthwise_desc;
/* One plane of the most frequent kernel, 3 by 3. */
static NOINLINE int8_t *tim_depthwise_plane(const tim_depthwise_desc *d, const int32_t *h, const int8_t *row, int8_t *out) {
  const int8_t *q = (const int8_t *)(h + 4);
  int32_t w0 = q[0], w1 = q[1], w2 = q[2], w3 = q[3], w4 = q[4], w5 = q[5], w6 = q[6], w7 = q[7], w8 = q[8];
  int32_t step = d->dh * d->pitch, across = d->sw, down = d->sh * d->pitch;
  for (int32_t y = d->oh; y; --y, row += down) {
    const int8_t *a = row, *b = row + step, *c = b + step;
    for (int32_t x = d->ow; x; --x, a += across, b += across, c += across) {
      int32_t acc = h[0] + a[0] * w0 + a[1] * w1 + a[2] * w2 + b[0] * w3 + b[1] * w4 + b[2] * w5;
      acc += c[0] * w6 + c[1] * w7 + c[2] * w8;
      *out++ = tim_requant(acc, h + 1, d->lo, d->hi);
    }
  }
  return out;
}
static NOINLINE void tim_depthwise(const tim_depthwise_desc *d, const int8_t *in, int8_t *out, const uint8_t *w, int8_t *scratch) {
  int32_t pitch = d->pitch, repeat = d->multiplier;
  tim_fill(scratch, d->zero, d->rows * pitch);
  for (int32_t c = 0; c < d->channels; ++c) {
    if (repeat == d->multiplier) {
      int8_t *s = scratch + d->top * pitch + d->left;
      for (int32_t y = d->ih; y; --y) {
        TIM_COPY(s, in, d->iw);
        in += d->iw;
        s += pitch;
      }
    }
    if (--repeat == 0) repeat = d->multiplier;
    const int32_t *h = (const int32_t *)w;
    const int8_t *row = scratch;
    if (d->kh == 3 && d->kw == 3 && d->dw == 1) {
      out = tim_depthwise_plane(d, h, row, out);
      w += d->record;
      continue;
    }
    for (int32_t y = d->oh; y; --y, row += d->sh * pitch) {
      const int8_t *s = row;
      for (int32_t x = d->ow; x; --x, s += d->sw) {
        const int8_t *q = (const int8_t *)(h + 4), *r = s;
        int32_t acc = h[0];
        for (int32_t ky = d->kh; ky; --ky, r += d->dh * pitch) {
          const int8_t *t = r;
          for (int32_t kx = d->kw; kx; --kx, t += d->dw) acc += *t * *q++;
        }
        *out++ = tim_requant(acc, h + 1, d->lo, d->hi);
      }
    }
    w += d->record;
  }
}
""",
    "portable_requant",
    "conv_common",
)

FILL16 = _kernel(
    "fill16",
    """
static inline void tim_fill16(int32_t *d, int32_t word, int32_t n) { for (; n > 0; --n) *d++ = word; }
""",
)

POOL = _kernel(
    "pool",
    """
typedef struct { int32_t ih, iw, channels, ips, ics, oh, ow, ops, ocs, kh, kw, sh, sw, top, left, lo, hi; } tim_pool_desc;
static inline int32_t tim_mean(int32_t sum, int32_t n) { return sum > 0 ? (sum + n / 2) / n : -((-sum + n / 2) / n); }
static NOINLINE void tim_pool(const tim_pool_desc *d, const int8_t *in, int8_t *out, int32_t average) {
  for (int32_t c = 0; c < d->channels; ++c) {
    for (int32_t y = 0; y < d->oh; ++y) {
      int32_t y0 = y * d->sh - d->top, y1 = y0 + d->kh;
      if (y0 < 0) y0 = 0;
      if (y1 > d->ih) y1 = d->ih;
      for (int32_t x = 0; x < d->ow; ++x) {
        int32_t x0 = x * d->sw - d->left, x1 = x0 + d->kw;
        if (x0 < 0) x0 = 0;
        if (x1 > d->iw) x1 = d->iw;
        int32_t sum = 0, best = -128;
        for (int32_t i = y0; i < y1; ++i) {
          const int8_t *s = in + (i * d->iw + x0) * d->ips + c * d->ics;
          for (int32_t j = x0; j < x1; ++j, s += d->ips) { sum += *s; best = *s > best ? *s : best; }
        }
        int32_t v = average ? tim_mean(sum, (y1 - y0) * (x1 - x0)) : best;
        out[(y * d->ow + x) * d->ops + c * d->ocs] = (int8_t)tim_clamp(v, d->lo, d->hi);
      }
    }
  }
}
""",
    "requant",
)

FIXED_POINT = _kernel(
    "fixed_point",
    """
/* The reference's fixed point: doubling high multiply and rounding shift (half away from zero). */
static inline int32_t tim_mulq(int32_t a, int32_t b) { return (int32_t)(((int64_t)a * b + (1 << 30)) >> 31); }
static inline int32_t tim_divpot(int32_t x, int32_t e) {
  int32_t mask = (int32_t)((1u << e) - 1), rest = x & mask;
  return (x >> e) + (rest > (mask >> 1) + (x < 0));
}
static inline int32_t tim_mbqm(int32_t x, int32_t m, int32_t shift) {
  return shift > 0 ? tim_mulq((int32_t)((uint32_t)x << shift), m) : tim_divpot(tim_mulq(x, m), -shift);
}
""",
)

ADD_LINEAR = _kernel(
    "add_linear",
    """
typedef struct { int32_t n, alpha, beta, gamma, shift, lo, hi; } tim_add_desc;
static NOINLINE void tim_add(const tim_add_desc *d, const int8_t *a, const int8_t *b, int8_t *out) {
  int32_t alpha = d->alpha, beta = d->beta, gamma = d->gamma, shift = d->shift, lo = d->lo, hi = d->hi;
  const int8_t *end = a + d->n;
  do {
    int32_t v = (*a++ * alpha + *b++ * beta + gamma) >> shift;
    *out++ = (int8_t)tim_clamp(v, lo, hi);
  } while (a != end);
}
""",
    "requant",
)

ADD_EXACT = _kernel(
    "add_exact",
    """
typedef struct { int32_t n, z1, z2, m1, s1, m2, s2, mo, so, zo, lo, hi, sign; } tim_add_exact_desc;
static NOINLINE void tim_add_exact(const tim_add_exact_desc *d, const int8_t *a, const int8_t *b, int8_t *out) {
  for (int32_t i = d->n; i; --i) {
    int32_t x = tim_mbqm((*a++ - d->z1) * (1 << 20), d->m1, d->s1);
    int32_t y = tim_mbqm((*b++ - d->z2) * (1 << 20), d->m2, d->s2);
    int32_t v = tim_mbqm(x + d->sign * y, d->mo, d->so) + d->zo;
    *out++ = (int8_t)tim_clamp(v, d->lo, d->hi);
  }
}
""",
    "requant",
    "fixed_point",
)

MUL = _kernel(
    "mul",
    """
typedef struct { int32_t n, z1, z2, m, s, zo, lo, hi; } tim_mul_desc;
static NOINLINE void tim_mul(const tim_mul_desc *d, const int8_t *a, const int8_t *b, int8_t *out) {
  for (int32_t i = d->n; i; --i) {
    int32_t v = tim_mbqm((*a++ - d->z1) * (*b++ - d->z2), d->m, d->s) + d->zo;
    *out++ = (int8_t)tim_clamp(v, d->lo, d->hi);
  }
}
""",
    "requant",
    "fixed_point",
)

TABLE = _kernel(
    "table",
    """
static NOINLINE void tim_table(const uint8_t *table, const int8_t *in, int8_t *out, int32_t n) {
  for (; n; --n) *out++ = (int8_t)table[(uint8_t)*in++];
}
""",
)

SOFTMAX = _kernel(
    "softmax",
    """
/* exps[i]: exp of the scaled difference -i in Q0.31; differences of `count` and more contribute nothing. */
typedef struct { int32_t rows, n, count; } tim_softmax_desc;
static inline int32_t tim_clz(uint32_t x) { int32_t n = 0; while (!(x & 0x80000000u)) { x <<= 1; ++n; } return n; }
static inline int32_t tim_half_sum(int32_t a, int32_t b) {
  int64_t s = (int64_t)a + b;
  return (int32_t)((s + (s >= 0 ? 1 : -1)) / 2);
}
static inline int32_t tim_shl_sat(int32_t x, int32_t e) {
  int32_t limit = 0x7fffffff >> e;
  return x > limit ? 0x7fffffff : x < -limit - 1 ? (int32_t)0x80000000 : (int32_t)((uint32_t)x << e);
}
static NOINLINE void tim_softmax(const tim_softmax_desc *d, const int32_t *exps, const int8_t *in, int8_t *out) {
  for (int32_t row = d->rows; row; --row, in += d->n, out += d->n) {
    int32_t top = -128, sum = 0;
    for (int32_t i = 0; i < d->n; ++i) top = in[i] > top ? in[i] : top;
    for (int32_t i = 0; i < d->n; ++i) if (top - in[i] < d->count) sum += tim_divpot(exps[top - in[i]], 12);
    int32_t headroom = tim_clz((uint32_t)sum);
    int32_t x = (int32_t)(((uint32_t)sum << headroom) - 0x80000000u);
    int32_t half = tim_half_sum(x, 0x7fffffff);
    int32_t r = 1515870810 + tim_mulq(half, -1010580540);
    for (int32_t i = 0; i < 3; ++i) r += tim_shl_sat(tim_mulq(r, (1 << 29) - tim_mulq(half, r)), 2);
    int32_t scale = tim_shl_sat(r, 1), over = 12 - headroom;
    for (int32_t i = 0; i < d->n; ++i) {
      int32_t v = -128;
      if (top - in[i] < d->count) v += tim_divpot(tim_mulq(scale, exps[top - in[i]]), over + 31 - 8);
      out[i] = (int8_t)(v > 127 ? 127 : v);
    }
  }
}
""",
    "fixed_point",
)

RELAYOUT = _kernel(
    "relayout",
    """
/* Copy of a tensor of up to four dimensions with any strides on both sides, in bytes. */
typedef struct { int32_t n[4], is[4], os[4]; } tim_relayout_desc;
static NOINLINE void tim_relayout(const tim_relayout_desc *d, const int8_t *in, int8_t *out) {
  for (int32_t i = 0; i < d->n[0]; ++i)
    for (int32_t j = 0; j < d->n[1]; ++j)
      for (int32_t k = 0; k < d->n[2]; ++k) {
        const int8_t *s = in + i * d->is[0] + j * d->is[1] + k * d->is[2];
        int8_t *t = out + i * d->os[0] + j * d->os[1] + k * d->os[2];
        for (int32_t l = d->n[3]; l; --l, s += d->is[3], t += d->os[3]) *t = *s;
      }
}
""",
)

FILL = _kernel(
    "fill", "static NOINLINE void tim_fill_bytes(int8_t *d, int32_t v, int32_t n) { for (; n; --n) *d++ = (int8_t)v; }"
)

KERNELS: dict[str, CKernel] = {
    kernel.name: kernel
    for kernel in (
        REQUANT, PORTABLE_REQUANT, PORTABLE_MM, CONV_COMMON, DENSE_PORTABLE, DEPTHWISE_PORTABLE, FILL16, POOL, FIXED_POINT,
        ADD_LINEAR, ADD_EXACT, MUL, TABLE, SOFTMAX, RELAYOUT, FILL,
    )
}  # fmt: skip
