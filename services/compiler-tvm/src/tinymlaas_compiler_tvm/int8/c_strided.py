"""C kernels of binary operators over rows with a stride a side: broadcasting, constants, layouts that differ."""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.c_text import kernel

ADD_LINEAR_ROWS = kernel(
    "add_linear_rows",
    """
typedef struct { int32_t n, sa, sb, alpha, beta, gamma, shift, lo, hi; } tim_add_rows_desc;
static NOINLINE void tim_add_rows(const tim_add_rows_desc *d, const int8_t *a, const int8_t *b, int8_t *out) {
  for (int32_t i = d->n; i; --i, a += d->sa, b += d->sb)
    *out++ = (int8_t)tim_clamp((*a * d->alpha + *b * d->beta + d->gamma) >> d->shift, d->lo, d->hi);
}
""",
    "requant",
)

ADD_EXACT_ROWS = kernel(
    "add_exact_rows",
    """
typedef struct { int32_t n, sa, sb, z1, z2, m1, s1, m2, s2, mo, so, zo, lo, hi, sign; } tim_add_exact_rows_desc;
static NOINLINE void tim_add_exact_rows(const tim_add_exact_rows_desc *d, const int8_t *a, const int8_t *b, int8_t *out) {
  for (int32_t i = d->n; i; --i, a += d->sa, b += d->sb) {
    int32_t x = tim_mbqm((*a - d->z1) * (1 << 20), d->m1, d->s1);
    int32_t y = tim_mbqm((*b - d->z2) * (1 << 20), d->m2, d->s2);
    int32_t v = tim_mbqm(x + d->sign * y, d->mo, d->so) + d->zo;
    *out++ = (int8_t)tim_clamp(v, d->lo, d->hi);
  }
}
""",
    "requant",
    "fixed_point",
)

MUL_ROWS = kernel(
    "mul_rows",
    """
typedef struct { int32_t n, sa, sb, z1, z2, m, s, zo, lo, hi; } tim_mul_rows_desc;
static NOINLINE void tim_mul_rows(const tim_mul_rows_desc *d, const int8_t *a, const int8_t *b, int8_t *out) {
  for (int32_t i = d->n; i; --i, a += d->sa, b += d->sb) {
    int32_t v = tim_mbqm((*a - d->z1) * (*b - d->z2), d->m, d->s) + d->zo;
    *out++ = (int8_t)tim_clamp(v, d->lo, d->hi);
  }
}
""",
    "requant",
    "fixed_point",
)

EXTREME_ROWS = kernel(
    "extreme_rows",
    """
typedef struct { int32_t n, sa, sb, greatest; } tim_extreme_rows_desc;
static NOINLINE void tim_extreme_rows(const tim_extreme_rows_desc *d, const int8_t *a, const int8_t *b, int8_t *out) {
  for (int32_t i = d->n; i; --i, a += d->sa, b += d->sb) *out++ = (*a > *b) == d->greatest ? *a : *b;
}
""",
)

PRELU_ROWS = kernel(
    "prelu_rows",
    """
typedef struct { int32_t n, sa, sb, z1, z2, m1, s1, m2, s2, zo; } tim_prelu_rows_desc;
static NOINLINE void tim_prelu_rows(const tim_prelu_rows_desc *d, const int8_t *a, const int8_t *b, int8_t *out) {
  for (int32_t i = d->n; i; --i, a += d->sa, b += d->sb) {
    int32_t x = *a - d->z1;
    int32_t v = x >= 0 ? tim_mbqm(x, d->m1, d->s1) : tim_mbqm(x * (*b - d->z2), d->m2, d->s2);
    *out++ = (int8_t)tim_clamp(v + d->zo, -128, 127);
  }
}
""",
    "requant",
    "fixed_point",
)
