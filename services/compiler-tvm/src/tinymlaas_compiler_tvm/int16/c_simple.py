"""C for the int16 operators without weights: pools, elementwise arithmetic, changes of scale, softmax, copies."""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.c_text import kernel

COPY16 = kernel(
    "copy16",
    "static NOINLINE void tim_copy16(int16_t *d, const int16_t *s, int32_t n) { for (; n; --n) *d++ = *s++; }",
)

POOL16 = kernel(
    "pool16",
    """
typedef struct { int32_t ih, iw, channels, oh, ow, kh, kw, sh, sw, top, left, lo, hi; } tim_pool16_desc;
static NOINLINE void tim_pool16(const tim_pool16_desc *d, const int16_t *in, int16_t *out, int32_t average) {
  int32_t step = d->channels;
  for (int32_t y = 0; y < d->oh; ++y) {
    int32_t y0 = y * d->sh - d->top, y1 = y0 + d->kh;
    if (y0 < 0) y0 = 0;
    if (y1 > d->ih) y1 = d->ih;
    for (int32_t x = 0; x < d->ow; ++x) {
      int32_t x0 = x * d->sw - d->left, x1 = x0 + d->kw;
      if (x0 < 0) x0 = 0;
      if (x1 > d->iw) x1 = d->iw;
      int32_t rows = y1 - y0, n = x1 - x0, count = rows * n;
      /* Whole rows lie one behind the other. */
      if (n == d->iw) { n = count; rows = 1; }
      for (int32_t c = 0; c < d->channels; ++c) {
        const int16_t *row = in + (y0 * d->iw + x0) * step + c;
        int32_t v = average ? 0 : -32768;
        for (int32_t r = rows; r > 0; --r, row += d->iw * step) {
          const int16_t *s = row;
          if (average) for (int32_t i = n; i > 0; --i, s += step) v += *s;
          else for (int32_t i = n; i > 0; --i, s += step) v = *s > v ? *s : v;
        }
        if (average) v = v > 0 ? (v + count / 2) / count : (v - count / 2) / count;
        *out++ = (int16_t)(v < d->lo ? d->lo : v > d->hi ? d->hi : v);
      }
    }
  }
}
""",
)

ADD16 = kernel(
    "add16",
    """
typedef struct { int32_t n, m1, s1, m2, s2, mo, so, lo, hi, sign; } tim_add16_desc;
static NOINLINE void tim_add16(const tim_add16_desc *d, const int16_t *a, const int16_t *b, int16_t *out) {
  for (int32_t i = d->n; i; --i) {
    int32_t x = tim_mbqm(*a++ * (1 << 15), d->m1, d->s1), y = tim_mbqm(*b++ * (1 << 15), d->m2, d->s2);
    int32_t v = tim_mbqm(x + d->sign * y, d->mo, d->so);
    *out++ = (int16_t)(v < d->lo ? d->lo : v > d->hi ? d->hi : v);
  }
}
""",
    "fixed_point",
)

MUL16 = kernel(
    "mul16",
    """
typedef struct { int32_t n, m, s, lo, hi; } tim_mul16_desc;
static NOINLINE void tim_mul16(const tim_mul16_desc *d, const int16_t *a, const int16_t *b, int16_t *out) {
  for (int32_t i = d->n; i; --i) {
    int32_t v = tim_mbqm(*a++ * *b++, d->m, d->s);
    *out++ = (int16_t)(v < d->lo ? d->lo : v > d->hi ? d->hi : v);
  }
}
""",
    "fixed_point",
)

# From one scale to another; the types of both sides are put in.
RESCALE = """
typedef struct { int32_t n, zi, m, s, zo, lo, hi; } @NAME@_desc;
static NOINLINE void @NAME@(const @NAME@_desc *d, const @IN@ *in, @OUT@ *out) {
  for (int32_t i = d->n; i; --i) {
    int32_t v = tim_mbqm(*in++ - d->zi, d->m, d->s) + d->zo;
    *out++ = (@OUT@)(v < d->lo ? d->lo : v > d->hi ? d->hi : v);
  }
}
"""

WIDEN16 = kernel(
    "widen16",
    """
static NOINLINE void tim_widen16(const int8_t *in, int16_t *out, int32_t n, int32_t zero) {
  do *out++ = (int16_t)(*in++ - zero); while (--n);
}
""",
)

SOFTMAX16 = kernel(
    "softmax16",
    """
typedef struct { int32_t rows, n, m, s; } tim_softmax16_desc;
static int32_t tim_look_up16(int32_t value, const int16_t *table) {
  const int16_t *t = table + 256 + (value >> 7);
  return t[0] + (((t[1] - t[0]) * (value & 0x7f) + 64) >> 7);
}
static inline int32_t tim_within16(int32_t v) { return v < -32768 ? -32768 : v > 32767 ? 32767 : v; }
/* Tables of 513 values: exp on [-10, 0], 1 / (1 + x) on [0, 1]. */
static NOINLINE void tim_softmax16(const tim_softmax16_desc *d, const int16_t *tables, const int16_t *in, int16_t *out) {
  for (int32_t row = d->rows; row; --row, in += d->n, out += d->n) {
    int32_t top = -32768, sum = 0, headroom = 0;
    for (int32_t i = 0; i < d->n; ++i) top = in[i] > top ? in[i] : top;
    for (int32_t i = 0; i < d->n; ++i) {
      out[i] = (int16_t)tim_look_up16(tim_within16(tim_mbqm(in[i] - top, d->m, d->s) + 32767), tables);
      sum += out[i];
    }
    while (!((uint32_t)sum << headroom & 0x80000000u)) ++headroom;
    /* The reference's shift left by headroom - 1 and right by 14 in 64 bits. */
    int32_t shifted = (int32_t)((((uint32_t)sum << (headroom - 1)) + (1 << 13)) >> 14);
    int32_t inverse = tim_look_up16(tim_within16(shifted - (1 << 15) - (1 << 16)), tables + 513);
    int32_t right = 31 - headroom;
    for (int32_t i = 0; i < d->n; ++i) {
      int32_t v = (out[i] * inverse + (1 << (right - 1))) >> right;
      out[i] = (int16_t)(v < 0 ? 0 : v > 32767 ? 32767 : v);
    }
  }
}
""",
    "fixed_point",
)
