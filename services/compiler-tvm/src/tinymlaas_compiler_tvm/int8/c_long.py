"""C drivers of the kernels in `long_asm`: four pixels at a time, whatever is left over by twos."""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.c_text import kernel

LONG_PACK = kernel(
    "long_pack",
    """
int32_t *tim_pack4r(const int8_t *const *pixels, int32_t *patch, int32_t n);
/* Pairs of pixels as first + second * 2**23. */
static inline int32_t tim_pair(int32_t first, int32_t second) { return (int32_t)((uint32_t)first + ((uint32_t)second << 23)); }
static NOINLINE int32_t *tim_pack2r(const int8_t *const *pixels, int32_t *q, int32_t n) {
  const int8_t *a = pixels[0], *b = pixels[1];
  do *q++ = tim_pair(*a++, *b++); while (--n);
  return q;
}
static NOINLINE void tim_pack4p(const int8_t *p, int32_t *q, int32_t n, int32_t plane, int32_t fourth) {
  do {
    q[0] = tim_pair(p[0], p[1]);
    q[1] = tim_pair(p[2], p[fourth]);
    q += 2;
    p += plane;
  } while (--n);
}
static NOINLINE void tim_pack2p(const int8_t *p, int32_t *q, int32_t n, int32_t plane, int32_t second) {
  do {
    *q++ = tim_pair(p[0], p[second]);
    p += plane;
  } while (--n);
}
""",
)

# A pointwise layer over planes, in place where the channels do not grow: four pixels are read wholly before they are written.
PLANAR_LONG = """
void @MM4@(const int32_t *, const uint8_t *, int8_t *, const int32_t *);
void @MM2@(const int32_t *, const uint8_t *, int8_t *, const int32_t *);
typedef struct { int32_t args[5]; int32_t pixels, plane, channels; } @NAME@_desc;
static NOINLINE void @NAME@(const @NAME@_desc *d, const int8_t *in, int8_t *out, const uint8_t *w, int32_t *patch) {
  int32_t left = d->pixels, channels = d->channels, plane = d->plane, ps = d->args[0];
  int32_t args[5] = {ps, d->args[1], d->args[2], d->args[3], d->args[4]};
  for (; left > 2; left -= 4, in += 4, out += 4 * ps) {
    if (left == 3) args[2] = args[1];
    tim_pack4p(in, patch, channels, plane, left == 3 ? 2 : 3);
    @MM4@(patch, w, out, args);
  }
  if (left > 0) {
    if (left == 1) args[0] = 0;
    tim_pack2p(in, patch, channels, plane, left - 1);
    @MM2@(patch, w, out, args);
  }
}
"""

# Where a convolution's next @N@ pixels lie, in the input or in a ring of its rows: their `pixels` in each row of the window.
_PIXELS = """
    int32_t slots[@N@], columns[@N@];
    for (int32_t i = 0; i < @N@; ++i) {
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
      const int8_t *pixels[@N@];
      for (int32_t i = 0; i < @N@; ++i) {
        pixels[i] = base + slots[i] * c->row_bytes + columns[i];
        slots[i] += c->row_dilation;
        if (c->ring_rows && slots[i] >= c->ring_rows) slots[i] -= c->ring_rows;
      }
"""


def pixels_of(number: int) -> str:
    """C that finds so many pixels at a time; what reads a row of the window follows, inside of its loop."""
    return _PIXELS.removeprefix("\n").replace("@N@", str(number))


CONV_LONG = (
    """
void @MM4@(const int32_t *, const uint8_t *, int8_t *, const int32_t *);
void @MM2@(const int32_t *, const uint8_t *, int8_t *, const int32_t *);
static NOINLINE void @NAME@(const tim_conv *c, const int32_t *first, const int8_t *in, int8_t *out,
                             const uint8_t *w, int8_t *ring, int32_t *patch) {
  int32_t y = 0, x = 0, filled = 0, left = c->oh * c->ow;
  int32_t args[5] = {first[0], first[1], first[2], first[3], first[4]};
  const int8_t *base = c->ring_rows ? ring : in;
  for (; left > 0; left -= 4, out += 4 * c->out_ps) {
"""
    + pixels_of(4)
    + """      for (int32_t n = c->runs; n; --n) {
        q = left > 2 ? tim_pack4r(pixels, q, c->run) : tim_pack2r(pixels, q, c->run);
        for (int32_t i = 0; i < 4; ++i) pixels[i] += c->run_step;
      }
    }
    if (left > 2) {
      if (left == 3) args[2] = args[1];
      @MM4@(patch, w, out, args);
    } else {
      if (left == 1) args[0] = 0;
      @MM2@(patch, w, out, args);
    }
  }
}
"""
)
