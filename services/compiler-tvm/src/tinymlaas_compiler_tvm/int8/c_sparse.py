"""C drivers of the matrix kernel in `sparse_asm`: eight pixels at a time, of the last ones those that are there."""

from __future__ import annotations

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

CONV_SPARSE = """
int32_t *tim_pack4r16(const int8_t *const *pixels, int32_t *patch, int32_t n);
void @MM@(const int32_t *, const uint8_t *, int8_t *, const int32_t *);
static NOINLINE void @NAME@(const tim_conv *c, const int32_t *full, const int8_t *in, int8_t *out,
                             const uint8_t *w, int8_t *ring, int32_t *patch) {
  int32_t y = 0, x = 0, filled = 0, left = c->oh * c->ow;
  int32_t some[3] = {1, 8, full[2]};
  const int8_t *base = c->ring_rows ? ring : in;
  for (; left > 0; left -= 8, out += 8 * c->out_ps) {
    int32_t slots[8], columns[8];
    for (int32_t i = 0; i < 8; ++i) {
      int32_t row = y * c->row_step;
      if (c->ring_rows)
        for (; filled < row + (c->kh - 1) * c->row_dilation + 1; ++filled) tim_ring_row(c, in, ring, filled);
      slots[i] = c->ring_rows ? row % c->ring_rows : row;
      columns[i] = x * c->col_step;
      /* Pixels past the last one are the last one again. */
      if (i + 1 < left && ++x == c->ow) { x = 0; ++y; }
    }
    int32_t *q = patch;
    for (int32_t r = c->kh; r; --r) {
      const int8_t *pixels[8];
      for (int32_t i = 0; i < 8; ++i) {
        pixels[i] = base + slots[i] * c->row_bytes + columns[i];
        slots[i] += c->row_dilation;
        if (c->ring_rows && slots[i] >= c->ring_rows) slots[i] -= c->ring_rows;
      }
      for (int32_t n = c->runs; n; --n) {
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
