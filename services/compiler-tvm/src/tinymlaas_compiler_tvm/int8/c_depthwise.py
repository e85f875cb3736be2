"""C for depthwise convolutions of any shape, on any core."""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.c_text import kernel

# Depthwise, any kernel, over planes: one padded plane in scratch at a time, so that it may write over what it has read.
DEPTHWISE_PORTABLE = kernel(
    "depthwise_portable",
    """
typedef struct {
  int32_t channels, multiplier, ih, iw, oh, ow, kh, kw, sh, sw, dh, dw, top, left, rows, pitch, zero, lo, hi, record;
} tim_depthwise_desc;
/* One plane of the most frequent kernel, 3 by 3. */
static NOINLINE int8_t *tim_depthwise_plane(const tim_depthwise_desc *d, const int32_t *h, const int8_t *row, int8_t *out) {
  const int8_t *q = (const int8_t *)(h + 4);
  int32_t w0 = q[0], w1 = q[1], w2 = q[2], w3 = q[3], w4 = q[4], w5 = q[5], w6 = q[6], w7 = q[7], w8 = q[8];
  int32_t step = d->dh * d->pitch, across = d->sw, down = d->sh * d->pitch;
  for (int32_t y = d->oh; y; --y, row += down) {
    const int8_t *a = row, *b = row + step, *c = b + step;
    for (int32_t x = d->ow; x; --x, a += across, b += across, c += across) {
      int32_t acc = h[0] + a[0] * w0 + a[1] * w1 + a[2] * w2 + b[0] * w3 + b[1] * w4 + b[2] * w5;
      acc += c[0] * w6 + c[1] * w7 + c[2] * w8;
      *out++ = tim_requant(acc, h + 1, d->lo, d->hi);
    }
  }
  return out;
}
static NOINLINE void tim_depthwise(const tim_depthwise_desc *d, const int8_t *in, int8_t *out, const uint8_t *w, int8_t *scratch) {
  int32_t pitch = d->pitch, repeat = d->multiplier;
  tim_fill(scratch, d->zero, d->rows * pitch);
  for (int32_t c = 0; c < d->channels; ++c) {
    if (repeat == d->multiplier) {
      int8_t *s = scratch + d->top * pitch + d->left;
      for (int32_t y = d->ih; y; --y) {
        TIM_COPY(s, in, d->iw);
        in += d->iw;
        s += pitch;
      }
    }
    if (--repeat == 0) repeat = d->multiplier;
    const int32_t *h = (const int32_t *)w;
    const int8_t *row = scratch;
    if (d->kh == 3 && d->kw == 3 && d->dw == 1) {
      out = tim_depthwise_plane(d, h, row, out);
      w += d->record;
      continue;
    }
    for (int32_t y = d->oh; y; --y, row += d->sh * pitch) {
      const int8_t *s = row;
      for (int32_t x = d->ow; x; --x, s += d->sw) {
        const int8_t *q = (const int8_t *)(h + 4), *r = s;
        int32_t acc = h[0];
        for (int32_t ky = d->kh; ky; --ky, r += d->dh * pitch) {
          const int8_t *t = r;
          for (int32_t kx = d->kw; kx; --kx, t += d->dw) acc += *t * *q++;
        }
        *out++ = tim_requant(acc, h + 1, d->lo, d->hi);
      }
    }
    w += d->record;
  }
}
""",
    "portable_requant",
    "conv_common",
)

FILL16 = kernel(
    "fill16",
    """
static inline void tim_fill16(int32_t *d, int32_t word, int32_t n) { for (; n > 0; --n) *d++ = word; }
""",
)
