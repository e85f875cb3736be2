"""C drivers of the matrix kernel in `sparse_asm`, eight pixels at a time, and the same kernels in portable C."""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.c_long import pixels_of
from tinymlaas_compiler_tvm.int8.c_text import kernel

SPARSE_COMMON = kernel(
    "sparse_common",
    """
/* From [channel][8] to where the first `left` pixels of each channel belong; args: distances of pixels and of channels. */
static NOINLINE void tim_last_pixels(const int8_t *from, int8_t *out, int32_t left, int32_t channels, const int32_t *args) {
  do {
    for (int32_t i = 0; i < left; ++i) out[i * args[0]] = from[i];
    from += 8;
    out += args[1];
  } while (--channels);
}
""",
)

# Streams as for the assembly, but for the parameters, which are those of `tim_requant`; the patch holds eight pixels' bytes a k.
SPARSE_MM = kernel(
    "sparse_mm",
    """
typedef struct { int32_t ps, cs, bytes, channels, lo, hi; } tim_mm8_args;
static NOINLINE void tim_mm8(const int8_t *patch, const uint8_t *w, int8_t *out, const tim_mm8_args *g) {
  const uint8_t *end = w + g->bytes;
  int32_t ps = g->ps;
  do {
    int32_t a0 = *(const int32_t *)w, a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0;
    const int8_t *p = patch;
    uint32_t word;
    w += 4;
    do {
      word = *(const uint32_t *)w;
      uint32_t missing = word >> 28 & 7, gaps = (word & 0xfffffff) >> 4 * missing, n = 7 - missing;
      w += 4 + (missing & 3);
      do {
        int32_t v = (int8_t)*w++;
        p += 8 * (gaps & 15);
        gaps >>= 4;
        a0 += p[0] * v; a1 += p[1] * v; a2 += p[2] * v; a3 += p[3] * v;
        a4 += p[4] * v; a5 += p[5] * v; a6 += p[6] * v; a7 += p[7] * v;
        p += 8;
      } while (--n);
      ++w;
    } while (word >> 31);
    const int32_t *m = (const int32_t *)w;
    int8_t *o = out;
    o[0] = tim_requant(a0, m, g->lo, g->hi);
    *(o += ps) = tim_requant(a1, m, g->lo, g->hi);
    *(o += ps) = tim_requant(a2, m, g->lo, g->hi);
    *(o += ps) = tim_requant(a3, m, g->lo, g->hi);
    *(o += ps) = tim_requant(a4, m, g->lo, g->hi);
    *(o += ps) = tim_requant(a5, m, g->lo, g->hi);
    *(o += ps) = tim_requant(a6, m, g->lo, g->hi);
    *(o += ps) = tim_requant(a7, m, g->lo, g->hi);
    out += g->cs;
    w = (const uint8_t *)(m + 3);
  } while (w != end);
}
/* Of `left` pixels a run: to the output, or by way of memory behind the patch where they are fewer than eight. */
static NOINLINE void tim_mm8_some(int8_t *patch, int8_t *behind, const uint8_t *w, int8_t *out, const tim_mm8_args *g,
                                  int32_t left) {
  if (left > 7) {
    tim_mm8(patch, w, out, g);
  } else {
    tim_mm8_args some = *g;
    some.ps = 1;
    some.cs = 8;
    tim_mm8(patch, w, behind, &some);
    tim_last_pixels(behind, out, left, g->channels, &g->ps);
  }
}
""",
    "sparse_common",
    "portable_requant",
)

SPARSE_DENSE = kernel(
    "sparse_dense",
    """
/* Stream per channel: bias, windows of 256 places (a halfword, then place and weight by turns), a word's padding, parameters. */
static NOINLINE void tim_dense8(const int8_t *x, const uint8_t *w, int8_t *out, int32_t channels, int32_t windows,
                                int32_t lo, int32_t hi) {
  do {
    const int8_t *p = x;
    int32_t acc = *(const int32_t *)w, left = windows;
    w += 4;
    do {
      uint32_t head = *(const uint16_t *)w, n = (head & ~7u) + 8 - (head & 7);
      w += 2;
      do { acc += p[w[0]] * (int8_t)w[1]; w += 2; } while (--n);
      p += 256;
    } while (--left);
    const int32_t *m = (const int32_t *)(w + ((uint32_t)w & 2));
    *out++ = tim_requant(acc, m, lo, hi);
    w = (const uint8_t *)(m + 3);
  } while (--channels);
}
""",
    "portable_requant",
)

SPARSE_PLANES = kernel(
    "sparse_planes",
    """
/* Pairs of neighbours as first + second * 2**23; those past `last` are the last one again. */
static NOINLINE void tim_pack8p(const int8_t *p, int32_t *q, int32_t n, int32_t plane, int32_t last) {
  if (last < 7) {
    do {
      for (int32_t i = 0; i < 8; i += 2) {
        int32_t a = p[i < last ? i : last], b = p[i < last ? i + 1 : last];
        *q++ = (int32_t)((uint32_t)a + ((uint32_t)b << 23));
      }
      p += plane;
    } while (--n);
    return;
  }
  do {
    q[0] = (int32_t)((uint32_t)p[0] + ((uint32_t)p[1] << 23));
    q[1] = (int32_t)((uint32_t)p[2] + ((uint32_t)p[3] << 23));
    q[2] = (int32_t)((uint32_t)p[4] + ((uint32_t)p[5] << 23));
    q[3] = (int32_t)((uint32_t)p[6] + ((uint32_t)p[7] << 23));
    q += 4;
    p += plane;
  } while (--n);
}
""",
    "sparse_common",
)

# A pointwise layer over planes, in place where the channels do not grow: eight pixels are read wholly before they are written.
PLANAR_SPARSE = """
void @MM@(const int32_t *, const uint8_t *, int8_t *, const int32_t *);
typedef struct { int32_t args[3]; int32_t pixels, plane, channels, outputs; } @NAME@_desc;
static NOINLINE void @NAME@(const @NAME@_desc *d, const int8_t *in, int8_t *out, const uint8_t *w, int32_t *patch) {
  int32_t left = d->pixels;
  for (; left > 7; left -= 8, in += 8, out += 8 * d->args[0]) {
    tim_pack8p(in, patch, d->channels, d->plane, 7);
    @MM@(patch, w, out, d->args);
  }
  if (left) {
    int32_t args[3] = {1, 8, d->args[2]};
    int8_t *some = (int8_t *)(patch + 4 * d->channels);
    tim_pack8p(in, patch, d->channels, d->plane, left - 1);
    @MM@(patch, w, some, args);
    tim_last_pixels(some, out, left, d->outputs, d->args);
  }
}
"""

CONV_SPARSE = (
    """
int32_t *tim_pack4r16(const int8_t *const *pixels, int32_t *patch, int32_t n);
void @MM@(const int32_t *, const uint8_t *, int8_t *, const int32_t *);
static NOINLINE void @NAME@(const tim_conv *c, const int32_t *full, const int8_t *in, int8_t *out,
                             const uint8_t *w, int8_t *ring, int32_t *patch) {
  int32_t y = 0, x = 0, filled = 0, left = c->oh * c->ow;
  int32_t some[3] = {1, 8, full[2]};
  const int8_t *base = c->ring_rows ? ring : in;
  for (; left > 0; left -= 8, out += 8 * c->out_ps) {
"""
    + pixels_of(8)
    + """      for (int32_t n = c->runs; n; --n) {
        tim_pack4r16(pixels + 4, q + 2, c->run);
        q = tim_pack4r16(pixels, q, c->run);
        for (int32_t i = 0; i < 8; ++i) pixels[i] += c->run_step;
      }
    }
    if (left > 7) {
      @MM@(patch, w, out, full);
    } else {
      int8_t *last = (int8_t *)q;
      @MM@(patch, w, last, some);
      tim_last_pixels(last, out, left, full[3], full);
    }
  }
}
"""
)

PLANAR_SPARSE_C = """
typedef struct { tim_mm8_args args; int32_t pixels, plane, channels; } @NAME@_desc;
static NOINLINE void @NAME@(const @NAME@_desc *d, const int8_t *in, int8_t *out, const uint8_t *w, int8_t *patch) {
  for (int32_t left = d->pixels; left > 0; left -= 8, in += 8, out += 8 * d->args.ps) {
    const int8_t *p = in;
    int8_t *q = patch;
    int32_t last = left > 7 ? 7 : left - 1;
    for (int32_t n = d->channels; n; --n, p += d->plane)
      for (int32_t i = 0; i < 8; ++i) *q++ = p[i < last ? i : last];
    tim_mm8_some(patch, q, w, out, &d->args, left);
  }
}
"""

CONV_SPARSE_C = """
static NOINLINE void @NAME@(const tim_conv *c, const tim_mm8_args *g, const int8_t *in, int8_t *out,
                             const uint8_t *w, int8_t *ring, int8_t *patch) {
  int32_t y = 0, x = 0, filled = 0, left = c->oh * c->ow;
  const int8_t *base = c->ring_rows ? ring : in;
  for (; left > 0; left -= 8, out += 8 * c->out_ps) {
    int8_t *q = patch;
    for (int32_t i = 0; i < 8; ++i) {
      int32_t row = y * c->row_step;
      if (c->ring_rows)
        for (; filled < row + (c->kh - 1) * c->row_dilation + 1; ++filled) tim_ring_row(c, in, ring, filled);
      int32_t slot = c->ring_rows ? row % c->ring_rows : row;
      q = patch + i;
      for (int32_t r = c->kh; r; --r) {
        const int8_t *s = base + slot * c->row_bytes + x * c->col_step;
        for (int32_t n = c->runs; n; --n) {
          for (int32_t k = 0; k < c->run; ++k) { *q = s[k]; q += 8; }
          s += c->run_step;
        }
        slot += c->row_dilation;
        if (c->ring_rows && slot >= c->ring_rows) slot -= c->ring_rows;
      }
      /* Pixels past the last one are the last one again. */
      if (i + 1 < left && ++x == c->ow) { x = 0; ++y; }
    }
    tim_mm8_some(patch, q - 7, w, out, g, left);
  }
}
"""
