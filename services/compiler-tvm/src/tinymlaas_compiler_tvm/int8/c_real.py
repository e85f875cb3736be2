"""C kernels that compute on reals between int8 tensors: DequantizeLinear, an operator in float32, QuantizeLinear.

No product is fused with a sum and nothing is reordered, so that every core gives the bits that IEEE 754 says. Rounding to the
nearest even integer is an addition of 1.5 * 2**23, which hard and soft arithmetic do alike.
"""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.c_text import kernel

REAL = kernel(
    "real",
    """
typedef union { float f; int32_t i; uint32_t u; } tim_real_bits;
static inline float tim_real(int32_t q, int32_t zero, float scale) { return (float)(q - zero) * scale; }
/* round(x) + zero, clamped; x beyond 1024 steps is clamped first. */
static inline int8_t tim_steps(float x, int32_t zero, int32_t lo, int32_t hi) {
  tim_real_bits b;
  b.f = (x < -1024.0f ? -1024.0f : x > 1024.0f ? 1024.0f : x) + 12582912.0f;
  return (int8_t)tim_clamp(b.i - 0x4b400000 + zero, lo, hi);
}
""",
    "requant",
)

REAL_BINARY = kernel(
    "real_binary",
    """
typedef struct { int32_t n, sa, sb, za, zb, zo, lo, hi, kind; float a, b, o; } tim_real_binary_desc;
static NOINLINE void tim_real_binary(const tim_real_binary_desc *d, const int8_t *a, const int8_t *b, int8_t *out) {
#pragma clang fp contract(off)
  for (int32_t i = d->n; i; --i, a += d->sa, b += d->sb) {
    float x = tim_real(*a, d->za, d->a), y = tim_real(*b, d->zb, d->b), v;
    switch (d->kind) {
      case 0: v = x + y; break;
      case 1: v = x - y; break;
      case 2: v = x * y; break;
      case 3: v = x / y; break;
      case 4: v = x < y ? x : y; break;
      case 5: v = x > y ? x : y; break;
      default: v = x < 0 ? x * y : x; break;
    }
    *out++ = tim_steps(v / d->o, d->zo, d->lo, d->hi);
  }
}
""",
    "real",
)

REAL_SOFTMAX = kernel(
    "real_softmax",
    """
/* exps[i]: exp of the scaled difference -i. */
typedef struct { int32_t rows, n, zero; float scale; } tim_real_softmax_desc;
static NOINLINE void tim_real_softmax(const tim_real_softmax_desc *d, const float *exps, const int8_t *in, int8_t *out) {
#pragma clang fp contract(off)
  for (int32_t row = d->rows; row; --row, in += d->n, out += d->n) {
    int32_t top = -128;
    float sum = 0;
    for (int32_t i = 0; i < d->n; ++i) top = in[i] > top ? in[i] : top;
    for (int32_t i = 0; i < d->n; ++i) sum += exps[top - in[i]];
    for (int32_t i = 0; i < d->n; ++i) out[i] = tim_steps(exps[top - in[i]] / sum / d->scale, d->zero, -128, 127);
  }
}
""",
    "real",
)

REAL_POOL = kernel(
    "real_pool",
    """
typedef struct {
  int32_t ih, iw, channels, ips, ics, oh, ow, ops, ocs, kh, kw, sh, sw, top, left, lo, hi, zi, zo, order; float si, so;
} tim_real_pool_desc;
/* Sums in the orders of ONNX Runtime: 0 one by one, 1 column by column, 2 in four lanes over the whole window. */
static NOINLINE float tim_real_sum(const int8_t *p, int32_t rows, int32_t columns, int32_t row, int32_t column,
                                   int32_t zero, float scale, int32_t order) {
#pragma clang fp contract(off)
  float sum = 0, lane[4] = {0, 0, 0, 0};
  if (order == 1) {
    for (int32_t x = 0; x < columns; ++x) {
      float part = 0;
      for (int32_t y = 0; y < rows; ++y) part += tim_real(p[y * row + x * column], zero, scale);
      sum += part;
    }
    return sum;
  }
  int32_t e = 0, whole = order == 2 ? (rows * columns) & ~3 : 0;
  for (int32_t y = 0; y < rows; ++y)
    for (int32_t x = 0; x < columns; ++x, ++e) {
      if (e == whole) sum = (lane[0] + lane[2]) + (lane[1] + lane[3]);
      float v = tim_real(p[y * row + x * column], zero, scale);
      if (e < whole) lane[e & 3] += v; else sum += v;
    }
  return e == whole ? (lane[0] + lane[2]) + (lane[1] + lane[3]) : sum;
}
static NOINLINE void tim_real_pool(const tim_real_pool_desc *d, const int8_t *in, int8_t *out) {
#pragma clang fp contract(off)
  for (int32_t c = 0; c < d->channels; ++c) {
    for (int32_t y = 0; y < d->oh; ++y) {
      int32_t y0 = y * d->sh - d->top, y1 = y0 + d->kh;
      if (y0 < 0) y0 = 0;
      if (y1 > d->ih) y1 = d->ih;
      for (int32_t x = 0; x < d->ow; ++x) {
        int32_t x0 = x * d->sw - d->left, x1 = x0 + d->kw;
        if (x0 < 0) x0 = 0;
        if (x1 > d->iw) x1 = d->iw;
        const int8_t *s = in + (y0 * d->iw + x0) * d->ips + c * d->ics;
        float v = tim_real_sum(s, y1 - y0, x1 - x0, d->iw * d->ips, d->ips, d->zi, d->si, d->order);
        v = v / (float)((y1 - y0) * (x1 - x0));
        out[(y * d->ow + x) * d->ops + c * d->ocs] = tim_steps(v / d->so, d->zo, d->lo, d->hi);
      }
    }
  }
}
""",
    "real",
)

DEQUANTIZE = kernel(
    "dequantize",
    """
static NOINLINE void tim_dequantize(const int8_t *in, float *out, int32_t n, int32_t zero, float scale) {
  for (; n; --n) *out++ = tim_real(*in++, zero, scale);
}
""",
    "real",
)

QUANTIZE = kernel(
    "quantize",
    """
static NOINLINE void tim_quantize(const float *in, int8_t *out, int32_t n, int32_t zero, float scale) {
  for (; n; --n) *out++ = tim_steps(*in++ / scale, zero, -128, 127);
}
""",
    "real",
)
