"""C drivers of the kernels in `small_asm`: four pixels at a time through planes or a ring of rows, planes one by one."""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.c_text import kernel

SMALL_COMMON = kernel(
    "small_common",
    """
int32_t *tim_pack4s(const int8_t *pixel, int32_t *patch, int32_t n, const int32_t *args);
/* Distances of pixels and of channels in the output, bytes of the patch and of the stream, where sums start. */
typedef struct { int32_t ps, cs, patch, stream, start; } tim_small_args;
/* The kernel's arguments for so many pixels: those that are missing are the last one again. */
static inline void tim_small_outputs(const tim_small_args *g, int32_t left, int32_t *args) {
  args[0] = g->patch;
  args[1] = g->stream;
  args[2] = left > 1 ? g->ps : 0;
  args[3] = left > 2 ? 2 * g->ps : args[2];
  args[4] = left > 3 ? 3 * g->ps : args[3];
  args[5] = g->cs;
  args[6] = g->start;
}
""",
)

PLANAR_SMALL = """
void @MM4@(const int32_t *, const uint8_t *, int8_t *, const int32_t *);
void @MM2@(const int32_t *, const uint8_t *, int8_t *, const int32_t *);
typedef struct { tim_small_args args; int32_t pixels, plane, channels; } @NAME@_desc;
static NOINLINE void @NAME@(const @NAME@_desc *d, const int8_t *in, int8_t *out, const uint8_t *w, int32_t *patch) {
  for (int32_t left = d->pixels; left > 0; left -= 4) {
    int32_t args[7], pixels[4] = {left > 1, left > 2 ? 2 : left > 1, left > 3 ? 3 : left - 1, d->plane};
    int32_t *end = tim_pack4s(in, patch, d->channels, pixels);
    while (end != patch + d->args.patch / 4) *end++ = 0;
    tim_small_outputs(&d->args, left, args);
    if (left > 2) @MM4@(patch, w, out, args);
    else @MM2@(patch, w, out, args);
    in += 4;
    out += 4 * d->args.ps;
  }
}
"""

SMALL_GATHER = kernel(
    "small_gather",
    """
/* The next pixel's column, its window's first row in the padded image and that row's slot; the next row to come and its slot. */
typedef struct { int32_t x, row, slot, filled, free; } tim_small_at;
static inline int32_t tim_small_wrap(const tim_conv *c, int32_t slot) {
  if (c->ring_rows) while (slot >= c->ring_rows) slot -= c->ring_rows;
  return slot;
}
static inline void tim_small_next_row(const tim_conv *c, tim_small_at *at) {
  at->x = 0;
  at->row += c->row_step;
  at->slot = tim_small_wrap(c, at->slot + c->row_step);
}
static inline int32_t *tim_small_runs(const tim_conv *c, const int8_t *pixel, int32_t *q, const int32_t *pixels) {
  for (int32_t n = c->runs; n; --n, pixel += c->run_step) q = tim_pack4s(pixel, q, c->run, pixels);
  return q;
}
/* The patch of four pixels; past the last one are the last one again. */
static NOINLINE void tim_small_gather(const tim_conv *c, tim_small_at *at, const int8_t *in, int8_t *ring,
                                      int32_t *patch, int32_t *end, int32_t left) {
  const int8_t *base = c->ring_rows ? ring : in;
  int32_t slots[4], columns[4], same = at->x + 4 <= c->ow;
  for (int32_t i = 0; i < (same ? 1 : 4); ++i) {
    if (c->ring_rows)
      for (; at->filled < at->row + (c->kh - 1) * c->row_dilation + 1; ++at->filled) {
        tim_slot_row(c, in, ring + at->free * c->row_bytes, at->filled);
        if (++at->free == c->ring_rows) at->free = 0;
      }
    slots[i] = at->slot;
    columns[i] = at->x * c->col_step;
    if (i + 1 < left) at->x += same ? 4 : 1;
    if (at->x == c->ow) tim_small_next_row(c, at);
  }
  int32_t *q = patch, step = c->col_step;
  int32_t pixels[4] = {step, 2 * step, 3 * step, 1};
  for (int32_t r = c->kh; r; --r) {
    const int8_t *first = base + slots[0] * c->row_bytes + columns[0];
    for (int32_t i = 0; i < (same ? 1 : 4); ++i) {
      if (i) pixels[i - 1] = (int32_t)(base + slots[i] * c->row_bytes + columns[i] - first);
      slots[i] = tim_small_wrap(c, slots[i] + c->row_dilation);
    }
    q = tim_small_runs(c, first, q, pixels);
  }
  while (q != end) *q++ = 0;
}
""",
    "conv_common",
    "small_common",
)

CONV_SMALL = """
void @MM4@(const int32_t *, const uint8_t *, int8_t *, const int32_t *);
void @MM2@(const int32_t *, const uint8_t *, int8_t *, const int32_t *);
static NOINLINE void @NAME@(const tim_conv *c, const tim_small_args *g, const int8_t *in, int8_t *out,
                             const uint8_t *w, int8_t *ring, int32_t *patch) {
  tim_small_at at = {0, 0, 0, 0, 0};
  for (int32_t left = c->oh * c->ow; left > 0; left -= 4, out += 4 * c->out_ps) {
    int32_t args[7];
    tim_small_gather(c, &at, in, ring, patch, patch + g->patch / 4, left);
    tim_small_outputs(g, left, args);
    if (left > 2) @MM4@(patch, w, out, args);
    else @MM2@(patch, w, out, args);
  }
}
"""

# One padded plane of words at a time behind the block of the channel's weights and parameters, so that it may write over
# what it has read.
DEPTHWISE_SMALL = """
void @KERNEL@(const int32_t *, const int32_t *, int8_t *, int32_t);
void @WIDEN@(const int8_t *, int32_t *, int32_t);
typedef struct { int32_t channels, ih, in_plane, oh, out_plane, words, first, zero, parameters; } @NAME@_desc;
static NOINLINE void @NAME@(const @NAME@_desc *d, const int8_t *in, int8_t *out, const int8_t *w, int32_t *scratch) {
  int32_t *plane = scratch + 16;
  for (int32_t i = 0; i < d->words; ++i) plane[i] = d->zero;
  for (int32_t c = d->channels; c; --c) {
    for (int32_t i = 0; i < 9; ++i) scratch[i] = w[i];
    for (int32_t i = 0; i < d->parameters; ++i) scratch[9 + i] = ((const int32_t *)w)[3 + i];
    w += 12 + 4 * d->parameters;
    @WIDEN@(in, plane + d->first, d->ih);
    @KERNEL@(plane, scratch, out, d->oh);
    in += d->in_plane;
    out += d->out_plane;
  }
}
"""

DENSE_STARTS = kernel(
    "small_dense_starts",
    """
/* Two sums' starts a chunk of the row; returns the end of the last chunk. */
static NOINLINE const int8_t *tim_small_starts(const int8_t *x, int32_t k, int32_t chunk, uint32_t *q) {
  for (; k >= chunk; k -= chunk, q += 2) {
    uint32_t sum = 0;
    for (int32_t i = chunk; i; --i) sum += (uint32_t)(int32_t)*x++;
    q[0] = 32768 - sum * (128u * 65537u);
    q[1] = q[0] - (sum << 15);
  }
  return x;
}
""",
)

DENSE_SMALL = """
const uint8_t *@FULL@(const int8_t *, const uint8_t *, int8_t *, const int32_t *);
const uint8_t *@REST@(const int8_t *, const uint8_t *, int8_t *, const int32_t *);
typedef struct { int32_t k, chunk, channels, parameters[6]; } @NAME@_desc;
static NOINLINE void @NAME@(const @NAME@_desc *d, const int8_t *x, const uint8_t *w, int8_t *out, int32_t *starts) {
  int32_t args[9] = {(int32_t)tim_small_starts(x, d->k, d->chunk, (uint32_t *)starts), (int32_t)starts, 48};
  for (int32_t i = 0; i < 6; ++i) args[3 + i] = d->parameters[i];
  int32_t left = d->channels;
  for (; left >= 12; left -= 12, out += 12) w = @FULL@(x, w, out, args);
  args[2] = 4 * left;
  if (left) @REST@(x, w, out, args);
}
"""
