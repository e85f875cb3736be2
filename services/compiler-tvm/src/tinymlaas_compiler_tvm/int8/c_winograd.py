"""C that walks an image by pairs of tiles, 2 x 4 output pixels at a time, for the kernels of `winograd_asm`."""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.c_text import kernel

WINOGRAD_COMMON = kernel(
    "winograd_common",
    """
/* Output channels from `channel` on: their stream, and arguments for outputs that go to their place, or by way of `edge`. */
typedef struct { int32_t channel, stream, inside[5], edge[5]; } tim_wino_part;
typedef struct { tim_conv image; int32_t ps, cs, channels, parts; tim_wino_part part[2]; } tim_winograd;
/* What of 2 x 4 pixels lies in the image. */
static NOINLINE void tim_wino_edge(const tim_winograd *c, const int8_t *edge, int8_t *out, int32_t y, int32_t x) {
  for (int32_t r = 0; r < 2 && y + r < c->image.oh; ++r)
    for (int32_t p = 0; p < 4 && x + p < c->image.ow; ++p) {
      const int8_t *s = edge + (4 * r + p) * c->channels;
      int8_t *d = out + ((y + r) * c->image.ow + x + p) * c->ps;
      for (int32_t k = c->channels; k; --k, d += c->cs) *d = *s++;
    }
}
""",
    "conv_common",
)

# Rows of the padded input stand in a ring of four; the last ones are as wide as the last pair of tiles.
CONV_WINOGRAD = """
static NOINLINE void @NAME@(const tim_winograd *c, const int8_t *in, int8_t *out, const uint8_t *w, int8_t *ring,
                             int32_t *scratch, int8_t *edge) {
  int32_t filled = 0, oh = c->image.oh, ow = c->image.ow;
  for (int32_t y = 0; y < oh; y += 2) {
    for (; filled < y + 4; ++filled) tim_ring_row(&c->image, in, ring, filled);
    for (int32_t x = 0; x < ow; x += 4) {
      const int8_t *rows[4];
      for (int32_t i = 0; i < 4; ++i) rows[i] = ring + ((y + i) & 3) * c->image.row_bytes + x * c->image.channels;
      @IN@(rows, scratch);
      int32_t inside = y + 2 <= oh && x + 4 <= ow;
      int8_t *o = inside ? out + (y * ow + x) * c->ps : edge;
      for (int32_t i = 0; i < c->parts; ++i) {
        const tim_wino_part *p = &c->part[i];
        @MM@(scratch, w + p->stream, o + p->channel * (inside ? c->cs : 1), inside ? p->inside : p->edge);
      }
      if (!inside) tim_wino_edge(c, edge, out, y, x);
    }
  }
}
"""
