"""C functions that compilers call of themselves; the linker drops those that nothing refers to.

Names and calling conventions: Arm "Run-time ABI for the Arm Architecture" (IHI 0043), and libgcc's names for RISC-V. Loops are
plain; they are compiled with -fno-builtin so that none becomes a call to itself.
"""

from __future__ import annotations

COMMON = """
__attribute__((used)) void *memcpy(void *d, const void *s, uint32_t n) {
  uint8_t *a = d; const uint8_t *b = s; while (n--) *a++ = *b++; return d; }
__attribute__((used)) void *memmove(void *d, const void *s, uint32_t n) {
  uint8_t *a = d; const uint8_t *b = s;
  if (a <= b) { while (n--) *a++ = *b++; } else { a += n; b += n; while (n--) *--a = *--b; }
  return d; }
__attribute__((used)) void *memset(void *d, int32_t v, uint32_t n) { uint8_t *a = d; while (n--) *a++ = (uint8_t)v; return d; }
"""

ARM_MEMORY = "".join(
    f"""
__attribute__((used)) void __aeabi_memcpy{size}(void *d, const void *s, uint32_t n) {{ memcpy(d, s, n); }}
__attribute__((used)) void __aeabi_memmove{size}(void *d, const void *s, uint32_t n) {{ memmove(d, s, n); }}
__attribute__((used)) void __aeabi_memset{size}(void *d, uint32_t n, int32_t v) {{ memset(d, v, n); }}
__attribute__((used)) void __aeabi_memclr{size}(void *d, uint32_t n) {{ memset(d, 0, n); }}
"""
    for size in ("", "4", "8")
)

# Armv6-M has neither division nor a long multiply. The remainder comes back in r1: the high word of the result.
ARMV6M = """
__attribute__((used)) uint64_t __aeabi_uidivmod(uint32_t n, uint32_t d) {
  uint32_t q = 0, bit = 1;
  if (!d) return (uint64_t)n << 32;
  while (d < n && !(d & 0x80000000u)) { d <<= 1; bit <<= 1; }
  while (bit) { if (n >= d) { n -= d; q |= bit; } d >>= 1; bit >>= 1; }
  return q | (uint64_t)n << 32; }
__attribute__((used)) uint32_t __aeabi_uidiv(uint32_t n, uint32_t d) { return (uint32_t)__aeabi_uidivmod(n, d); }
__attribute__((used)) uint64_t __aeabi_idivmod(int32_t n, int32_t d) {
  uint64_t r = __aeabi_uidivmod(n < 0 ? -(uint32_t)n : (uint32_t)n, d < 0 ? -(uint32_t)d : (uint32_t)d);
  uint32_t q = (uint32_t)r, m = (uint32_t)(r >> 32);
  if ((n ^ d) < 0) q = -q;
  if (n < 0) m = -m;
  return q | (uint64_t)m << 32; }
__attribute__((used)) int32_t __aeabi_idiv(int32_t n, int32_t d) { return (int32_t)__aeabi_idivmod(n, d); }
typedef union { uint64_t v; uint32_t w[2]; } tim_two_words;
__attribute__((used)) uint64_t __aeabi_lmul(uint64_t a, uint64_t b) {
  tim_two_words x, y, r;
  x.v = a; y.v = b;
  uint32_t al = x.w[0] & 0xffff, ah = x.w[0] >> 16, bl = y.w[0] & 0xffff, bh = y.w[0] >> 16;
  uint32_t t = al * bl, u = ah * bl + (t >> 16), v = al * bh + (u & 0xffff);
  r.w[0] = (v << 16) | (t & 0xffff);
  r.w[1] = ah * bh + (u >> 16) + (v >> 16) + x.w[0] * y.w[1] + x.w[1] * y.w[0];
  return r.v; }
__attribute__((used)) uint64_t __aeabi_llsl(uint64_t a, int32_t n) {
  tim_two_words x, r;
  x.v = a;
  if (n >= 32) { r.w[0] = 0; r.w[1] = x.w[0] << (n - 32); }
  else { r.w[0] = x.w[0] << n; r.w[1] = n ? x.w[1] << n | x.w[0] >> (32 - n) : x.w[1]; }
  return r.v; }
__attribute__((used)) uint64_t __aeabi_llsr(uint64_t a, int32_t n) {
  tim_two_words x, r;
  x.v = a;
  if (n >= 32) { r.w[1] = 0; r.w[0] = x.w[1] >> (n - 32); }
  else { r.w[1] = x.w[1] >> n; r.w[0] = n ? x.w[0] >> n | x.w[1] << (32 - n) : x.w[0]; }
  return r.v; }
__attribute__((used)) uint64_t __aeabi_lasr(uint64_t a, int32_t n) {
  tim_two_words x, r;
  x.v = a;
  int32_t high = (int32_t)x.w[1];
  if (n >= 32) { r.w[1] = (uint32_t)(high >> 31); r.w[0] = (uint32_t)(high >> (n - 32)); }
  else { r.w[1] = (uint32_t)(high >> n); r.w[0] = n ? x.w[0] >> n | x.w[1] << (32 - n) : x.w[0]; }
  return r.v; }
__attribute__((used)) int32_t __clzsi2(uint32_t x) {
  int32_t n = 0;
  while (!(x & 0x80000000u) && n < 32) { x <<= 1; ++n; }
  return n; }
"""
