"""C for the smaller operators: pools, elementwise arithmetic, tables, softmax, copies with strides."""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.c_text import kernel

POOL = kernel(
    "pool",
    """
typedef struct { int32_t ih, iw, channels, ips, ics, oh, ow, ops, ocs, kh, kw, sh, sw, top, left, lo, hi; } tim_pool_desc;
static inline int32_t tim_mean(int32_t sum, int32_t n) { return sum > 0 ? (sum + n / 2) / n : -((-sum + n / 2) / n); }
static NOINLINE int32_t tim_sum(const int8_t *s, int32_t n, int32_t step) {
  int32_t sum = 0;
  for (; n >= 4; n -= 4) {
    sum += *s; s += step;
    sum += *s; s += step;
    sum += *s; s += step;
    sum += *s; s += step;
  }
  for (; n > 0; --n, s += step) sum += *s;
  return sum;
}
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
        int32_t sum = 0, best = -128, rows = y1 - y0, n = x1 - x0, count = rows * n;
        /* Whole rows lie one behind the other. */
        if (n == d->iw) { n = count; rows = 1; }
        const int8_t *row = in + (y0 * d->iw + x0) * d->ips + c * d->ics;
        for (; rows > 0; --rows, row += d->iw * d->ips) {
          if (average) { sum += tim_sum(row, n, d->ips); continue; }
          const int8_t *s = row;
          for (int32_t j = n; j > 0; --j, s += d->ips) best = *s > best ? *s : best;
        }
        int32_t v = average ? tim_mean(sum, count) : best;
        out[(y * d->ow + x) * d->ops + c * d->ocs] = (int8_t)tim_clamp(v, d->lo, d->hi);
      }
    }
  }
}
""",
    "requant",
)

FIXED_POINT = kernel(
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

ADD_LINEAR = kernel(
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

ADD_TABLED = kernel(
    "add_tabled",
    """
typedef struct { int32_t n, swapped, beta, shift, lo, hi, table[256]; } tim_add_tabled_desc;
static NOINLINE void tim_add_tabled(const tim_add_tabled_desc *d, const int8_t *a, const int8_t *b, int8_t *out) {
  int32_t beta = d->beta, shift = d->shift, lo = d->lo, hi = d->hi;
  const int8_t *p = d->swapped ? b : a, *q = d->swapped ? a : b, *end = p + d->n;
  do *out++ = (int8_t)tim_clamp((d->table[(uint8_t)*p++] + *q++ * beta) >> shift, lo, hi); while (p != end);
}
""",
    "requant",
)

ADD_EXACT = kernel(
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

MUL = kernel(
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

TABLE = kernel(
    "table",
    """
static NOINLINE void tim_table(const uint8_t *table, const int8_t *in, int8_t *out, int32_t n) {
  for (; n; --n) *out++ = (int8_t)table[(uint8_t)*in++];
}
""",
)

SOFTMAX = kernel(
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

RELAYOUT = kernel(
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

FILL = kernel(
    "fill", "static NOINLINE void tim_fill_bytes(int8_t *d, int32_t v, int32_t n) { for (; n; --n) *d++ = (int8_t)v; }"
)
