"""Functions that kernels call, in C: single precision within a few ulp, and integer arithmetic without undefined results.

Freestanding and position-independent. Polynomials are weighted least-squares fits (Lawson's iteration) over the reduced range.
Division by zero gives 0 for integers, infinities and NaN as IEEE 754 has them for floats.
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
    "tim_min64": ("static inline int64_t tim_min64(int64_t a, int64_t b) { return a < b ? a : b; }", ()),
    "tim_max64": ("static inline int64_t tim_max64(int64_t a, int64_t b) { return a > b ? a : b; }", ()),
    "tim_divi": (
        """static inline int32_t tim_divi(int32_t a, int32_t b) {
  if (b == 0) return 0;
  return b == -1 ? (int32_t)(0u - (uint32_t)a) : a / b; }""",
        (),
    ),
    "tim_modi": (
        """static inline int32_t tim_modi(int32_t a, int32_t b) {
  if (b == 0 || b == -1) return 0;
  int32_t r = a % b; return r != 0 && (r < 0) != (b < 0) ? r + b : r; }""",
        (),
    ),
    "tim_udiv64": (
        """static NOINLINE uint64_t tim_udiv64(uint64_t n, uint64_t d) {
  uint64_t q = 0, r = 0;
  if (d == 0) return 0;
  for (int32_t i = 0; i < 64; ++i) {
    r = r << 1 | n >> 63; n <<= 1; q <<= 1;
    if (r >= d) { r -= d; q |= 1; } }
  return q; }""",
        (),
    ),
    "tim_div64": (
        """static NOINLINE int64_t tim_div64(int64_t a, int64_t b) {
  uint64_t q = tim_udiv64(a < 0 ? 0 - (uint64_t)a : (uint64_t)a, b < 0 ? 0 - (uint64_t)b : (uint64_t)b);
  return (int64_t)((a < 0) != (b < 0) ? 0 - q : q); }""",
        ("tim_udiv64",),
    ),
    "tim_mod64": (
        """static NOINLINE int64_t tim_mod64(int64_t a, int64_t b) {
  if (b == 0) return 0;
  int64_t r = a - b * tim_div64(a, b); return r != 0 && (r < 0) != (b < 0) ? r + b : r; }""",
        ("tim_div64",),
    ),
    "tim_powi": (
        """static NOINLINE int64_t tim_powi(int64_t x, int64_t n) {
  if (n < 0) return x == 1 ? 1 : x == -1 ? ((n & 1) ? -1 : 1) : 0;
  uint64_t r = 1, b = (uint64_t)x;
  for (; n; n >>= 1) { if (n & 1) r *= b; b *= b; }
  return (int64_t)r; }""",
        (),
    ),
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
  if (a < 0.6f) { float s = a * a;
    y = a + a * s * (-0x1.555554p-2f + s * (0x1.110edep-3f
      + s * (-0x1.b955a4p-5f + s * (0x1.59e04ap-6f - s * 0x1.9ad36cp-8f)))); }
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
    "tim_expm1f": (
        """static NOINLINE float tim_expm1f(float x) {
  if (!(tim_fabsf(x) < 0.35f)) return tim_expf(x) - 1.0f;
  return x + x * x * (0.5f + x * (0x1.555556p-3f + x * (0x1.5554e6p-5f
    + x * (0x1.11114ep-7f + x * (0x1.6d48c2p-10f + x * 0x1.a07482p-13f))))); }""",
        ("tim_expf", "tim_fabsf"),
    ),
    "tim_log1pf": (
        """static NOINLINE float tim_log1pf(float x) {
  float u = 1.0f + x;
  if (u == 1.0f) return x;
  return u <= 0x1.fffffep+127f ? tim_logf(u) * (x / (u - 1.0f)) : u; }""",
        ("tim_logf",),
    ),
    "tim_softplusf": (
        """static NOINLINE float tim_softplusf(float x) {
  return (x > 0 ? x : 0.0f) + tim_log1pf(tim_expf(-tim_fabsf(x))); }""",
        ("tim_expf", "tim_log1pf", "tim_fabsf"),
    ),
    "tim_erff": (
        """static NOINLINE float tim_erff(float x) {
  float a = tim_fabsf(x), y;
  if (!(a < 4.0f)) return x != x ? x : x < 0 ? -1.0f : 1.0f;
  if (a < 0.85f) { float s = x * x;
    return x * (0x1.20dd76p+0f + s * (-0x1.812746p-2f + s * (0x1.ce2eaap-4f + s * (-0x1.b81d6ap-6f
      + s * (0x1.556558p-8f + s * (-0x1.b03d02p-11f + s * 0x1.729e96p-14f)))))); }
  float t = 1.0f / (1.0f + 0.5f * a);
  y = -0x1.4d243ep-13f + t * (0x1.23d24ep-2f + t * (0x1.09794ep-2f + t * (0x1.65af96p-2f
    + t * (-0x1.b4e7ecp-4f + t * (0x1.2247acp-1f + t * (-0x1.e50144p-2f + t * 0x1.eba668p-4f))))));
  y = 1.0f - y * tim_expf(-a * a);
  return x < 0 ? -y : y; }""",
        ("tim_expf", "tim_fabsf"),
    ),
    "tim_reducef": (
        # x = n * pi/2 + r, |r| <= pi/4. Cody and Waite while n is exact; beyond, 96 bits of 2/pi (Payne and Hanek, 1983).
        """static NOINLINE int32_t tim_reducef(float x, float *r) {
  float a = tim_fabsf(x);
  if (a < 0x1p13f) {
    float t = x * 0x1.45f306p-1f;
    int32_t n = (int32_t)(t + (t < 0 ? -0.5f : 0.5f)); float k = (float)n;
    *r = (((x - k * 0x1.92p+0f) - k * 0x1.fb4p-12f) - k * 0x1.444p-24f) - k * 0x1.68c234p-39f;
    return n & 3; }
  if (!(a <= 0x1.fffffep+127f)) { *r = __builtin_nanf(""); return 0; }
  static const uint32_t two_over_pi[] = {
    0, 0xa2f9836eu, 0x4e441529u, 0xfc2757d1u, 0xf534ddc0u, 0xdb629599u, 0x3c439041u, 0xfe5163abu, 0xdebbc561u };
  uint32_t u = tim_to_bits(a), m = (u & 0x7fffffu) | 0x800000u, w[3];
  int32_t from = (int32_t)(u >> 23) - 150 + 30, word = from / 32, bit = from % 32;
  for (int32_t i = 0; i < 3; ++i)
    w[i] = bit ? two_over_pi[word + i] << bit | two_over_pi[word + i + 1] >> (32 - bit) : two_over_pi[word + i];
  uint64_t low = (uint64_t)m * w[2], mid = (uint64_t)m * w[1] + (low >> 32);
  uint32_t high = m * w[0] + (uint32_t)(mid >> 32);
  uint64_t fraction = ((uint64_t)high << 32 | (uint32_t)mid) << 2;
  int32_t n = (int32_t)((high >> 30) + (uint32_t)(fraction >> 63));
  float f = (float)(int32_t)(fraction >> 32) + (float)(uint32_t)fraction * 0x1p-32f;
  *r = f * 0x1.921fb6p-32f;
  if (x < 0) { *r = -*r; n = -n; }
  return n & 3; }""",
        ("tim_fabsf",),
    ),
    "tim_sincosf": (
        """static NOINLINE float tim_sincosf(float x, int32_t turn) {
  float r, y; int32_t n = tim_reducef(x, &r) + turn; float s = r * r;
  if (n & 1) y = 1.0f - 0.5f * s + s * s * (0x1.555554p-5f + s * (-0x1.6c1298p-10f + s * 0x1.9bc59ep-16f));
  else y = r + r * s * (-0x1.555552p-3f + s * (0x1.110c2p-7f - s * 0x1.9ac6ap-13f));
  return n & 2 ? -y : y; }""",
        ("tim_reducef",),
    ),
    "tim_sinf": ("static inline float tim_sinf(float x) { return tim_sincosf(x, 0); }", ("tim_sincosf",)),
    "tim_cosf": ("static inline float tim_cosf(float x) { return tim_sincosf(x, 1); }", ("tim_sincosf",)),
    "tim_tanf": (
        "static inline float tim_tanf(float x) { return tim_sincosf(x, 0) / tim_sincosf(x, 1); }",
        ("tim_sincosf",),
    ),
    "tim_atanf": (
        """static NOINLINE float tim_atanf(float x) {
  float a = tim_fabsf(x), base = 0.0f;
  if (a > 0x1.3504f4p+1f) { base = 0x1.921fb6p+0f; a = -1.0f / a; }
  else if (a > 0x1.a8279ap-2f) { base = 0x1.921fb6p-1f; a = (a - 1.0f) / (a + 1.0f); }
  float s = a * a;
  base += a + a * s * (-0x1.555536p-2f + s * (0x1.996c2p-3f + s * (-0x1.1f3e08p-3f + s * 0x1.5d36dcp-4f)));
  return x < 0 ? -base : base; }""",
        ("tim_fabsf",),
    ),
    "tim_asinf": (
        """static NOINLINE float tim_asinf(float x) {
  float a = tim_fabsf(x);
  if (!(a <= 1.0f)) return __builtin_nanf("");
  float big = a > 0.5f, s = big ? 0.5f * (1.0f - a) : a * a, t = big ? tim_sqrtf(s) : a;
  float y = t + t * s * (0x1.55555ep-3f + s * (0x1.3326c2p-4f + s * (0x1.70b89cp-5f
    + s * (0x1.b22a4ep-6f + s * 0x1.38e78ap-5f))));
  if (big) y = 0x1.921fb6p+0f - 2.0f * y;
  return x < 0 ? -y : y; }""",
        ("tim_fabsf", "tim_sqrtf"),
    ),
    "tim_acosf": (
        """static NOINLINE float tim_acosf(float x) {
  if (x > 0.5f) return 2.0f * tim_asinf(tim_sqrtf(0.5f * (1.0f - x)));
  return 0x1.921fb6p+0f - tim_asinf(x); }""",
        ("tim_asinf", "tim_sqrtf"),
    ),
    "tim_sinhf": (
        """static NOINLINE float tim_sinhf(float x) {
  float a = tim_fabsf(x), y;
  if (a < 1.0f) { float s = a * a;
    return x + x * s * (0x1.555556p-3f + s * (0x1.11111ep-7f + s * (0x1.a0091cp-13f + s * 0x1.78a248p-19f))); }
  float e = tim_expf(0.5f * a);
  y = 0.5f * e * e - 0.5f / e / e;
  return x < 0 ? -y : y; }""",
        ("tim_expf", "tim_fabsf"),
    ),
    "tim_coshf": (
        "static inline float tim_coshf(float x) { float e = tim_expf(0.5f * tim_fabsf(x)); return 0.5f * e * e + 0.5f / e / e; }",
        ("tim_expf", "tim_fabsf"),
    ),
    "tim_asinhf": (
        """static NOINLINE float tim_asinhf(float x) {
  float a = tim_fabsf(x), s = a * a, y;
  if (a < 0.5f) y = a + a * s * (-0x1.555552p-3f + s * (0x1.332ee8p-4f + s * (-0x1.6c9c52p-5f
    + s * (0x1.d7c384p-6f - s * 0x1.d4e766p-7f))));
  else if (a > 0x1p20f) y = tim_logf(a) + 0x1.62e43p-1f;
  else y = tim_logf(a + tim_sqrtf(s + 1.0f));
  return x < 0 ? -y : y; }""",
        ("tim_logf", "tim_sqrtf", "tim_fabsf"),
    ),
    "tim_acoshf": (
        """static NOINLINE float tim_acoshf(float x) {
  float t = x - 1.0f;
  if (!(t >= 0)) return __builtin_nanf("");
  return x > 0x1p20f ? tim_logf(x) + 0x1.62e43p-1f : tim_log1pf(t + tim_sqrtf(2.0f * t + t * t)); }""",
        ("tim_log1pf", "tim_logf", "tim_sqrtf"),
    ),
    "tim_atanhf": (
        """static NOINLINE float tim_atanhf(float x) {
  float a = tim_fabsf(x), y = 0.5f * tim_log1pf(2.0f * a / (1.0f - a));
  return x < 0 ? -y : y; }""",
        ("tim_log1pf", "tim_fabsf"),
    ),
    "tim_powf": (
        # Whole exponents up to 32 by squaring; others by way of exp and log, within |y log x| * 2^-24.
        """static NOINLINE float tim_powf(float x, float y) {
  float n = tim_fabsf(y), a = tim_fabsf(x), r;
  if (y == 0 || x == 1.0f) return 1.0f;
  if (x != x || y != y) return x + y;
  int32_t whole = n >= 0x1p24f || (float)(int32_t)n == n, odd = n < 0x1p24f && ((int32_t)n & 1) && whole;
  if (whole && n <= 32.0f) {
    float b = x; r = 1.0f;
    for (int32_t k = (int32_t)n; k; k >>= 1) { if (k & 1) r *= b; b *= b; }
    return y < 0 ? 1.0f / r : r; }
  if (x < 0 && !whole) return __builtin_nanf("");
  r = a == 1.0f ? 1.0f : tim_expf(y * tim_logf(a));
  return odd && (tim_to_bits(x) >> 31) ? -r : r; }""",
        ("tim_expf", "tim_logf", "tim_fabsf"),
    ),
    "tim_fmodf": (
        """static NOINLINE float tim_fmodf(float x, float y) {
  uint32_t a = tim_to_bits(x) & 0x7fffffffu, b = tim_to_bits(y) & 0x7fffffffu;
  if (b == 0 || b > 0x7f800000u || a >= 0x7f800000u) return __builtin_nanf("");
  if (a < b) return x;
  int32_t i = (int32_t)(a >> 23), j = (int32_t)(b >> 23);
  uint32_t m = a & 0x7fffffu, n = b & 0x7fffffu;
  if (i) m |= 0x800000u; else i = 1;
  if (j) n |= 0x800000u; else j = 1;
  for (; i > j; --i) { if (m >= n) m -= n; m <<= 1; }
  if (m >= n) m -= n;
  if (m == 0) return tim_from_bits(tim_to_bits(x) & 0x80000000u);
  while (!(m & 0x800000u) && i > 1) { m <<= 1; --i; }
  uint32_t u = m & 0x800000u ? (m & 0x7fffffu) | (uint32_t)i << 23 : m;
  return tim_from_bits(u | (tim_to_bits(x) & 0x80000000u)); }""",
        ("tim_bits",),
    ),
    "tim_modf": (
        """static NOINLINE float tim_modf(float x, float y) {
  float r = tim_fmodf(x, y);
  return (r < 0 && y > 0) || (r > 0 && y < 0) ? r + y : r; }""",
        ("tim_fmodf",),
    ),
    "tim_isnanf": ("static inline uint8_t tim_isnanf(float x) { return x != x; }", ()),
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
