"""IEEE 754 single precision in C for cores without an FPU: round to nearest even, subnormals, infinities, NaN.

Names are those that clang calls: the Arm run-time ABI's (IHI 0043, section 4.1.2) or libgcc's for RISC-V. Arguments come as words:
with the soft calling convention a float is one.
"""

from __future__ import annotations

CORE = """
typedef struct { uint32_t s, m; int32_t e; } tim_unpacked;
#define TIM_NAN 0x7fc00000u
static inline uint32_t tim_is_nan(uint32_t a) { return (a << 1) > 0xff000000u; }
/* m in [2^23, 2^24) and its biased exponent; not for zero, infinity or NaN. */
static inline tim_unpacked tim_unpack(uint32_t a) {
  tim_unpacked r; r.s = a >> 31; r.e = (int32_t)(a >> 23 & 255); r.m = a & 0x7fffffu;
  if (r.e) r.m |= 0x800000u;
  else { r.e = 1; while (!(r.m & 0x800000u)) { r.m <<= 1; --r.e; } }
  return r; }
/* m in [2^30, 2^31), its lowest bit sticky. */
static NOINLINE uint32_t tim_pack(uint32_t s, int32_t e, uint32_t m) {
  if (e >= 255) return s << 31 | 0x7f800000u;
  if (e <= 0) { int32_t n = 1 - e; m = n > 30 ? 1 : m >> n | ((m << (32 - n)) != 0); e = 1; s = s << 8; }
  else s = (s << 8) + (uint32_t)e - 1;
  uint32_t rest = m & 127;
  m >>= 7;
  m += rest > 64 || (rest == 64 && (m & 1));
  return (s << 23) + m; }
static NOINLINE uint32_t tim_fadd(uint32_t a, uint32_t b) {
  if (tim_is_nan(a) || tim_is_nan(b)) return TIM_NAN;
  if ((a & 0x7fffffffu) < (b & 0x7fffffffu)) { uint32_t t = a; a = b; b = t; }
  if ((a & 0x7fffffffu) == 0x7f800000u) return (a ^ b) == 0x80000000u ? TIM_NAN : a;
  if (!(b << 1)) return a << 1 ? a : a & b;
  tim_unpacked x = tim_unpack(a), y = tim_unpack(b);
  uint32_t m = x.m << 7, n = y.m << 7; int32_t d = x.e - y.e;
  if (d) n = d > 30 ? 1 : n >> d | ((n << (32 - d)) != 0);
  if (x.s == y.s) { m += n; if (m & 0x80000000u) { m = m >> 1 | (m & 1); ++x.e; } }
  else { m -= n; if (!m) return 0; while (!(m & 0x40000000u)) { m <<= 1; --x.e; } }
  return tim_pack(x.s, x.e, m); }
static NOINLINE uint32_t tim_fmul(uint32_t a, uint32_t b) {
  uint32_t s = (a ^ b) >> 31, ai = a & 0x7fffffffu, bi = b & 0x7fffffffu;
  if (ai > 0x7f800000u || bi > 0x7f800000u) return TIM_NAN;
  if (ai == 0x7f800000u || bi == 0x7f800000u) return !ai || !bi ? TIM_NAN : s << 31 | 0x7f800000u;
  if (!ai || !bi) return s << 31;
  tim_unpacked x = tim_unpack(a), y = tim_unpack(b);
  uint64_t p = (uint64_t)x.m * y.m;
  uint32_t m = (uint32_t)(p >> 16) | (((uint32_t)p & 0xffffu) != 0); int32_t e = x.e + y.e - 127;
  if (m & 0x80000000u) { m = m >> 1 | (m & 1); ++e; }
  return tim_pack(s, e, m); }
static NOINLINE uint32_t tim_fdiv(uint32_t a, uint32_t b) {
  uint32_t s = (a ^ b) >> 31, ai = a & 0x7fffffffu, bi = b & 0x7fffffffu;
  if (ai > 0x7f800000u || bi > 0x7f800000u) return TIM_NAN;
  if (ai == 0x7f800000u) return bi == 0x7f800000u ? TIM_NAN : s << 31 | 0x7f800000u;
  if (bi == 0x7f800000u) return s << 31;
  if (!bi) return ai ? s << 31 | 0x7f800000u : TIM_NAN;
  if (!ai) return s << 31;
  tim_unpacked x = tim_unpack(a), y = tim_unpack(b);
  int32_t e = x.e - y.e + 127; uint32_t r = x.m, q = 0;
  if (r < y.m) { r <<= 1; --e; }
  for (int32_t i = 0; i < 31; ++i) { q <<= 1; if (r >= y.m) { r -= y.m; q |= 1; } r <<= 1; }
  return tim_pack(s, e, q | (r != 0)); }
/* -1, 0, 1; 2 if either is NaN. */
static NOINLINE int32_t tim_fcmp(uint32_t a, uint32_t b) {
  if (tim_is_nan(a) || tim_is_nan(b)) return 2;
  if (!((a | b) << 1) || a == b) return 0;
  int32_t x = (int32_t)(a & 0x80000000u ? 0x80000000u - a : a), y = (int32_t)(b & 0x80000000u ? 0x80000000u - b : b);
  return x < y ? -1 : 1; }
static NOINLINE uint32_t tim_from_uint(uint32_t v, uint32_t s) {
  int32_t e = 127 + 30;
  if (!v) return 0;
  if (v & 0x80000000u) { v = v >> 1 | (v & 1); ++e; }
  while (!(v & 0x40000000u)) { v <<= 1; --e; }
  return tim_pack(s, e, v); }
static NOINLINE uint32_t tim_to_uint(uint32_t a, uint32_t limit) {
  int32_t e = (int32_t)(a >> 23 & 255) - 127; uint32_t m = (a & 0x7fffffu) | 0x800000u;
  if (e < 0) return 0;
  if (e > 31) return limit;
  uint32_t v = e >= 23 ? m << (e - 23) : m >> (23 - e);
  return v > limit ? limit : v; }
static inline int32_t tim_to_int(uint32_t a) {
  if (tim_is_nan(a)) return 0;
  int32_t v = (int32_t)tim_to_uint(a & 0x7fffffffu, 0x7fffffffu);
  return a >> 31 ? -v - ((a & 0x7fffffffu) >= 0x4f000000u) : v; }
"""

_U = "__attribute__((used)) uint32_t {}"
_I = "__attribute__((used)) int32_t {}"

ARM = CORE + "\n".join(
    (
        _U.format("__aeabi_fadd(uint32_t a, uint32_t b) { return tim_fadd(a, b); }"),
        _U.format("__aeabi_fsub(uint32_t a, uint32_t b) { return tim_fadd(a, b ^ 0x80000000u); }"),
        _U.format("__aeabi_frsub(uint32_t a, uint32_t b) { return tim_fadd(b, a ^ 0x80000000u); }"),
        _U.format("__aeabi_fmul(uint32_t a, uint32_t b) { return tim_fmul(a, b); }"),
        _U.format("__aeabi_fdiv(uint32_t a, uint32_t b) { return tim_fdiv(a, b); }"),
        _I.format("__aeabi_fcmpeq(uint32_t a, uint32_t b) { return tim_fcmp(a, b) == 0; }"),
        _I.format("__aeabi_fcmplt(uint32_t a, uint32_t b) { return tim_fcmp(a, b) == -1; }"),
        _I.format("__aeabi_fcmple(uint32_t a, uint32_t b) { return tim_fcmp(a, b) <= 0; }"),
        _I.format("__aeabi_fcmpgt(uint32_t a, uint32_t b) { return tim_fcmp(a, b) == 1; }"),
        _I.format("__aeabi_fcmpge(uint32_t a, uint32_t b) { int32_t r = tim_fcmp(a, b); return r == 0 || r == 1; }"),
        _I.format("__aeabi_fcmpun(uint32_t a, uint32_t b) { return tim_fcmp(a, b) == 2; }"),
        _U.format(
            "__aeabi_i2f(int32_t a) { return tim_from_uint(a < 0 ? -(uint32_t)a : (uint32_t)a, (uint32_t)a >> 31); }"
        ),
        _U.format("__aeabi_ui2f(uint32_t a) { return tim_from_uint(a, 0); }"),
        _I.format("__aeabi_f2iz(uint32_t a) { return tim_to_int(a); }"),
        _U.format("__aeabi_f2uiz(uint32_t a) { return a >> 31 ? 0 : tim_to_uint(a, 0xffffffffu); }"),
    )
)

RISCV = CORE + "\n".join(
    (
        _U.format("__addsf3(uint32_t a, uint32_t b) { return tim_fadd(a, b); }"),
        _U.format("__subsf3(uint32_t a, uint32_t b) { return tim_fadd(a, b ^ 0x80000000u); }"),
        _U.format("__mulsf3(uint32_t a, uint32_t b) { return tim_fmul(a, b); }"),
        _U.format("__divsf3(uint32_t a, uint32_t b) { return tim_fdiv(a, b); }"),
        *(_I.format(f"{name}(uint32_t a, uint32_t b) {{ return tim_fcmp(a, b); }}")
          for name in ("__eqsf2", "__nesf2", "__ltsf2", "__lesf2")),
        *(_I.format(f"{name}(uint32_t a, uint32_t b) {{ int32_t r = tim_fcmp(a, b); return r == 2 ? -1 : r; }}")
          for name in ("__gtsf2", "__gesf2")),
        _I.format("__unordsf2(uint32_t a, uint32_t b) { return tim_fcmp(a, b) == 2; }"),
        _U.format("__floatsisf(int32_t a) { return tim_from_uint(a < 0 ? -(uint32_t)a : (uint32_t)a, (uint32_t)a >> 31); }"),
        _U.format("__floatunsisf(uint32_t a) { return tim_from_uint(a, 0); }"),
        _I.format("__fixsfsi(uint32_t a) { return tim_to_int(a); }"),
        _U.format("__fixunssfsi(uint32_t a) { return a >> 31 ? 0 : tim_to_uint(a, 0xffffffffu); }"),
    )
)  # fmt: skip

# Between 64-bit integers and floats, whatever the FPU: clang calls these by name.
_WIDE = """
static NOINLINE uint32_t tim_wide_to_float(uint64_t m, uint32_t s) {
  int32_t e = 127 + 24; uint32_t sticky = 0;
  if (!m) return 0;
  while (m >> 25) { sticky |= (uint32_t)m & 1; m >>= 1; ++e; }
  while (!(m >> 24)) { m <<= 1; --e; }
  uint32_t r = (uint32_t)m & 1, v = (uint32_t)(m >> 1);
  v += r && (sticky || (v & 1));
  return (s << 31) + ((uint32_t)(e - 1) << 23) + v; }
static NOINLINE uint64_t tim_float_to_wide(uint32_t a, uint64_t limit) {
  int32_t e = (int32_t)(a >> 23 & 255) - 127; uint64_t m = (a & 0x7fffffu) | 0x800000u;
  if (e < 0 || (a << 1) > 0xff000000u) return 0;
  if (e > 62) return limit;
  for (; e > 23; --e) m <<= 1;
  for (; e < 23; ++e) m >>= 1;
  return m; }
"""


def _wide(names: tuple[str, str, str, str]) -> str:
    signed_to, unsigned_to, to_signed, to_unsigned = names
    used = "__attribute__((used))"
    return (
        _WIDE
        + f"""
{used} uint32_t {signed_to}(int64_t a) {{
  return tim_wide_to_float(a < 0 ? 0 - (uint64_t)a : (uint64_t)a, a < 0); }}
{used} uint32_t {unsigned_to}(uint64_t a) {{ return tim_wide_to_float(a, 0); }}
{used} int64_t {to_signed}(uint32_t a) {{
  uint64_t m = tim_float_to_wide(a, 0x7fffffffffffffffull + (a >> 31));
  return (int64_t)(a >> 31 ? 0 - m : m); }}
{used} uint64_t {to_unsigned}(uint32_t a) {{ return a >> 31 ? 0 : tim_float_to_wide(a, 0xffffffffffffffffull); }}
"""
    )


ARM_WIDE = _wide(("__aeabi_l2f", "__aeabi_ul2f", "__aeabi_f2lz", "__aeabi_f2ulz"))
RISCV_WIDE = _wide(("__floatdisf", "__floatundisf", "__fixsfdi", "__fixunssfdi"))
