"""What every file of C kernels needs: how one is made, requantization in C, copies.

The C is freestanding, includes nothing and has no static data but constants. Templates use `@WORD@` marks; what is put there is
generated (names, numbers), never text of a model.
"""

from __future__ import annotations

from tinymlaas_compiler_tvm.native.program import CKernel


def kernel(name: str, text: str, *needs: str) -> CKernel:
    """A C kernel and the names of those that must stand before it."""
    return CKernel(name, text.strip() + "\n", needs)


REQUANT = kernel(
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
PORTABLE_REQUANT = kernel(
    "portable_requant",
    """
static inline int8_t tim_requant(int32_t acc, const int32_t *p, int32_t lo, int32_t hi) {
  int32_t t = tim_high(acc * 256, p[0]) + p[1] - ((acc >> 31) & (p[2] >> 5));
  return (int8_t)tim_clamp(t >> (p[2] & 31), lo, hi);
}
""",
    "requant",
)

COPY_FAST = kernel(
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
COPY_BYTES = kernel(
    "copy",
    """
/* Four words at a time where both ends are aligned, then the rest. */
typedef struct { uint32_t v[4]; } __attribute__((may_alias)) tim_words;
static inline void TIM_COPY(int8_t *d, const int8_t *s, int32_t n) {
  if (!(((uint32_t)d | (uint32_t)s) & 3))
    for (; n >= 16; n -= 16, d += 16, s += 16) *(tim_words *)d = *(const tim_words *)s;
  for (; n > 0; --n) *d++ = *s++;
}
""",
)
