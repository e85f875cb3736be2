"""Single-precision functions in C, freestanding and position-independent, and IEEE arithmetic for cores without an FPU.

expf: Cody-Waite reduction and a polynomial, within 2 ulp; the others are built on it. The arithmetic of soft-float targets is
correctly rounded to nearest even, with subnormals, infinities and NaN (IEEE 754), under the names of the Arm run-time ABI or of
libgcc.
"""

from __future__ import annotations

FUNCTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tim_floordiv": (
        """static inline int32_t tim_floordiv(int32_t a, int32_t b) {
  int32_t q = a / b; return q * b != a && (a < 0) != (b < 0) ? q - 1 : q; }""",
        (),
    ),
    "tim_floormod": (
        """static inline int32_t tim_floormod(int32_t a, int32_t b) {
  int32_t r = a % b; return r != 0 && (r < 0) != (b < 0) ? r + b : r; }""",
        (),
    ),
    "tim_mod": ("static inline int32_t tim_mod(int32_t a, int32_t b) { return a % b; }", ()),
    "tim_min": ("static inline int32_t tim_min(int32_t a, int32_t b) { return a < b ? a : b; }", ()),
    "tim_max": ("static inline int32_t tim_max(int32_t a, int32_t b) { return a > b ? a : b; }", ()),
    "tim_minf": ("static inline float tim_minf(float a, float b) { return a < b ? a : b; }", ()),
    "tim_maxf": ("static inline float tim_maxf(float a, float b) { return a > b ? a : b; }", ()),
    "tim_bits": (
        """typedef union { float f; int32_t i; uint32_t u; } tim_float_bits;
static inline float tim_from_bits(uint32_t u) { tim_float_bits b; b.u = u; return b.f; }
static inline uint32_t tim_to_bits(float f) { tim_float_bits b; b.f = f; return b.u; }""",
        (),
    ),
    "tim_fabsf": (
        "static inline float tim_fabsf(float x) { return tim_from_bits(tim_to_bits(x) & 0x7fffffffu); }",
        ("tim_bits",),
    ),
    "tim_expf": (
        """static NOINLINE float tim_expf(float x) {
  if (x != x) return x;
  if (x > 0x1.62e42ep+6f) return __builtin_inff();
  if (x < -0x1.9fe368p+6f) return 0.0f;
  float t = x * 0x1.715476p+0f;
  int32_t k = (int32_t)(t + (t < 0 ? -0.5f : 0.5f));
  float r = x - (float)k * 0x1.62e4p-1f - (float)k * 0x1.7f7d1cp-20f;
  float p = 0x1.6850e4p-10f;
  p = p * r + 0x1.123bccp-7f;
  p = p * r + 0x1.555b98p-5f;
  p = p * r + 0x1.55548ep-3f;
  p = p * r + 0x1.fffff8p-2f;
  p = p * r * r + r + 1.0f;
  int32_t h = k / 2;
  return p * tim_from_bits((uint32_t)(h + 127) << 23) * tim_from_bits((uint32_t)(k - h + 127) << 23); }""",
        ("tim_bits",),
    ),
    "tim_sigmoidf": (
        """static inline float tim_sigmoidf(float x) {
  if (x >= 0) return 1.0f / (1.0f + tim_expf(-x));
  float e = tim_expf(x); return e / (1.0f + e); }""",
        ("tim_expf",),
    ),
    "tim_tanhf": (
        """static NOINLINE float tim_tanhf(float x) {
  float a = tim_fabsf(x), y;
  if (a < 0.25f) { float s = a * a;
    y = a + a * s * (-0x1.555556p-2f + s * (0x1.111112p-3f + s * (-0x1.ba1ba2p-5f + s * 0x1.664f48p-6f))); }
  else { float e = tim_expf(-2.0f * a); y = (1.0f - e) / (1.0f + e); }
  return x < 0 ? -y : y; }""",
        ("tim_expf", "tim_fabsf"),
    ),
    "tim_sqrtf": (
        """#ifdef HARD_FLOAT
static inline float tim_sqrtf(float x) { float r; __asm__("vsqrt.f32 %0, %1" : "=t"(r) : "t"(x)); return r; }
#else
static NOINLINE float tim_sqrtf(float x) {
  uint32_t u = tim_to_bits(x);
  if (u == 0 || u == 0x80000000u || u == 0x7f800000u || x != x) return x;
  if (u & 0x80000000u) return __builtin_nanf("");
  int32_t e = (int32_t)(u >> 23); uint32_t m = u & 0x7fffffu;
  if (e == 0) { while (!(m & 0x800000u)) { m <<= 1; --e; } ++e; } else m |= 0x800000u;
  e -= 127; if (e & 1) { m <<= 1; --e; }
  uint32_t q = 0, rest = 0;
  for (int32_t i = 0; i < 25; ++i) {
    rest = (rest << 2) | ((m >> 23) & 3u); m = (m << 2) & 0x1ffffffu;
    uint32_t t = (q << 2) | 1u; q <<= 1;
    if (rest >= t) { rest -= t; q |= 1u; } }
  uint32_t r = (q >> 1) + ((q & 1u) && (rest || (q & 2u)));
  return tim_from_bits(((uint32_t)(e / 2 + 126) << 23) + r); }
#endif""",
        ("tim_bits",),
    ),
    "tim_rsqrtf": ("static inline float tim_rsqrtf(float x) { return 1.0f / tim_sqrtf(x); }", ("tim_sqrtf",)),
    "tim_floorf": (
        """static NOINLINE float tim_floorf(float x) {
  if (!(tim_fabsf(x) < 8388608.0f)) return x;
  float t = (float)(int32_t)x; t = t > x ? t - 1.0f : t;
  return t == 0 ? tim_from_bits(tim_to_bits(x) & 0x80000000u) : t; }""",
        ("tim_fabsf",),
    ),
    "tim_ceilf": ("static inline float tim_ceilf(float x) { return -tim_floorf(-x); }", ("tim_floorf",)),
    "tim_rintf": (
        """static NOINLINE float tim_rintf(float x) {
  if (!(tim_fabsf(x) < 8388608.0f)) return x;
  float t = tim_floorf(x), d = x - t;
  if (d > 0.5f) return t + 1.0f;
  if (d < 0.5f) return t;
  return ((int32_t)t & 1) ? t + 1.0f : t; }""",
        ("tim_floorf",),
    ),
    "tim_logf": (
        """static NOINLINE float tim_logf(float x) {
  uint32_t u = tim_to_bits(x); int32_t k = 0;
  if (x != x || u == 0x7f800000u) return x;
  if ((u << 1) == 0) return -__builtin_inff();
  if (u >> 31) return __builtin_nanf("");
  if (u < 0x800000u) { x *= 0x1p25f; u = tim_to_bits(x); k = -25; }
  u += 0x3f800000u - 0x3f3504f3u;
  k += (int32_t)(u >> 23) - 127;
  float f = tim_from_bits((u & 0x7fffffu) + 0x3f3504f3u) - 1.0f, s = f / (2.0f + f), z = s * s, w = z * z;
  float r = z * (0x1.555554p-1f + w * 0x1.23d3dcp-2f) + w * (0x1.999c26p-2f + w * 0x1.f13c4cp-3f), h = 0.5f * f * f;
  return s * (h + r) + (float)k * 0x1.2fefa2p-17f - h + f + (float)k * 0x1.62e3p-1f; }""",
        ("tim_bits",),
    ),
}


def functions(names: set[str]) -> list[str]:
    """C text of these functions after what they need, in a fixed order."""
    wanted: list[str] = []

    def take(name: str) -> None:
        if name in wanted:
            return
        for need in FUNCTIONS[name][1]:
            take(need)
        wanted.append(name)

    for name in sorted(names):
        take(name)
    return [FUNCTIONS[name][0] for name in wanted]
