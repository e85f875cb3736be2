"""C kernels without tricks for forms that the fast kernels don't take: grouped, batched and transposed convolutions."""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.c_text import kernel

CONV_GENERAL = kernel(
    "conv_general",
    """
/* Stream a channel: bias, multiplier, offset, negative, kh * kw * depth weights, padding to 4 bytes. Biases count on every tap:
   one that meets no input takes the zero point. */
typedef struct {
  int32_t images, ih, iw, channels, oh, ow, out_channels, kh, kw, depth, per_group, sh, sw, dh, dw, top, left, zero, lo, hi,
    turned, record;
} tim_conv_general_desc;
static NOINLINE void tim_conv_general(const tim_conv_general_desc *d, const int8_t *in, int8_t *out, const uint8_t *stream) {
  for (int32_t n = d->images; n; --n, in += d->ih * d->iw * d->channels)
    for (int32_t y = 0; y < d->oh; ++y)
      for (int32_t x = 0; x < d->ow; ++x) {
        const uint8_t *w = stream;
        for (int32_t o = 0; o < d->out_channels; ++o, w += d->record) {
          const int32_t *h = (const int32_t *)w;
          const int8_t *q = (const int8_t *)(h + 4);
          int32_t acc = h[0], first = o / d->per_group * d->depth;
          for (int32_t ky = 0; ky < d->kh; ++ky)
            for (int32_t kx = 0; kx < d->kw; ++kx) {
              int32_t r = d->turned ? y + d->top - ky * d->dh : y * d->sh - d->top + ky * d->dh;
              int32_t c = d->turned ? x + d->left - kx * d->dw : x * d->sw - d->left + kx * d->dw, meets = 1;
              if (d->turned) {
                meets = r >= 0 && c >= 0 && r % d->sh == 0 && c % d->sw == 0;
                r /= d->sh;
                c /= d->sw;
              }
              meets = meets && r >= 0 && r < d->ih && c >= 0 && c < d->iw;
              const int8_t *s = in + (meets ? (r * d->iw + c) * d->channels + first : 0);
              for (int32_t i = 0; i < d->depth; ++i) acc += (meets ? s[i] : d->zero) * *q++;
            }
          *out++ = tim_requant(acc, h + 1, d->lo, d->hi);
        }
      }
}
""",
    "portable_requant",
)
