/* A box of a baseline JPEG -> RGBX pixels, in two thirds of libjpeg-turbo's time and less, to the same bytes; and whether
 * such a JPEG holds together (conversion/jpeg.py says what for). Built by native.py, called by region.c, which asks
 * libjpeg where a function here returns 0: for all that is unusual, damaged or beyond what every machine computes alike.
 *
 *   huffman.h   tables, bits, a block's coefficients
 *   markers.h   what stands before the codes
 *   pixels.h    inverse DCT and colors
 *   here        MCUs: passed over outside of the box, else decoded into two rows of them, from which pixels are made
 */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(PORTABLE)
#pragma GCC target("avx2,bmi2")
#endif

#include "markers.h"
#include "pixels.h"

#include <stdlib.h>

#include "baseline.h"

enum {
  MOST_MCU_BYTES = 6 * 256, /* six blocks: 16 + 11 bits, and 63 times 16 + 10, are 209 bytes */
  MOST = 16384,             /* of a coefficient, or it times its quantizer */
  SPARE = 64                /* columns behind a row that vectors may touch */
};

/* One of an MCU. */
typedef struct {
  const Table *dc, *ac;
  int *predicted;
  int16_t *to;
} Block;

struct Baseline {
  Header header;
  const uint8_t *data, *marker, *end; /* of the file; behind the stretch of codes that is in `bytes` */
  uint8_t *bytes;
  int64_t room, length; /* of bytes */
  Stream stream;
  int predicted[3];
  int mcus, rows;                        /* MCUs across and down */
  int row, done, stretch, restarts;      /* rows of MCUs and MCUs that are read; where the stretch ends; their number */
  int luma, y, left, right, first, last; /* gray is wanted; next row; the box's columns, and those of its MCUs */
  S16 quantizers[2][8];                     /* of luma beside luma, blue beside red */
  int16_t most;                             /* coefficient */
  S16 coefficients[3][BLOCK / 8 + 1];       /* two blocks side by side, and what UNUSED names */
  Block blocks[6];
  int count;
  S16 beyond;
  uint8_t *planes; /* two rows of MCUs of luma, blue and red; then two rows of sums */
  int64_t plane_room, stride, chroma_stride;
};

Baseline *baseline_open(void) {
  const char *wanted = getenv("FFCV_OPS_JPEG");
  if (wanted && !strcmp(wanted, "libjpeg")) return NULL;
#ifdef __AVX2__
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi2")) return NULL;
#endif
  Baseline *b = aligned_alloc(64, (sizeof(Baseline) + 63) / 64 * 64);
  if (b) memset(b, 0, sizeof *b);
  return b;
}

void baseline_close(Baseline *b) {
  if (!b) return;
  free(b->bytes);
  free(b->planes);
  free(b);
}

static int max(int a, int b) { return a > b ? a : b; }

static int min(int a, int b) { return a < b ? a : b; }

/* ------------------------------------------------ stretches of codes ------------------------------------------------ */

/* Copies the codes before the next marker, without the zeros that follow 0xFF there. */
static int begin_stretch(Baseline *b, const uint8_t *from) {
  uint8_t *to = b->bytes;
  const uint8_t *found;
  for (;; from = found + 2) {
    found = memchr(from, 0xFF, b->end - from);
    if (!found || found + 1 >= b->end) return 0;
    memcpy(to, from, found - from);
    to += found - from;
    if (found[1]) break;
    *to++ = 0xFF;
  }
  memset(to, 0, MOST_MCU_BYTES);
  b->marker = found;
  b->length = to - b->bytes;
  b->stream = (Stream){b->bytes, 0, 0};
  memset(b->predicted, 0, sizeof b->predicted);
  int all = b->mcus * b->rows, restart = b->header.restart;
  b->stretch = restart && restart < all - b->done ? b->done + restart : all;
  return 1;
}

static int64_t unused_bits(const Baseline *b) {
  return 8 * b->length - (8 * (b->stream.next - b->bytes) - (int)(b->stream.count & 63));
}

/* All of its codes are read: is the marker behind them the one that must come? */
static int end_stretch(Baseline *b) {
  int64_t unused = unused_bits(b);
  if (unused < 0 || unused > 7) return 0;
  if (b->done == b->mcus * b->rows) return b->marker[1] == 0xD9;
  return b->marker[1] == 0xD0 + b->restarts++ % 8 && begin_stretch(b, b->marker + 2);
}

/* ------------------------------------------------ MCUs ------------------------------------------------ */

static uint8_t *luma_row(const Baseline *b, int y) { return b->planes + (y & (16 * b->header.down - 1)) * b->stride; }

static uint8_t *chroma_row(const Baseline *b, int color, int y) {
  return b->planes + 16 * b->header.down * b->stride + (16 * color + (y & 15)) * b->chroma_stride;
}

/* Both blocks' samples, side by side. The second one may be none: it is written over by the next MCU. */
INLINE void put_luma(Baseline *b, S16 *coefficients, uint8_t *to) {
  U8 out[4];
  b->beyond |= inverse(coefficients, b->quantizers[0], b->most, out);
  for (int k = 0; k < 4; k++) {
    S64 rows = SHUFFLE(S64, out[k], out[k], 0, 2, 1, 3);
    memcpy(to + 2 * k * b->stride, &rows, 16);
    memcpy(to + (2 * k + 1) * b->stride, (uint8_t *)&rows + 16, 16);
  }
}

INLINE void put_chroma(Baseline *b, S16 *coefficients, uint8_t *blue, uint8_t *red) {
  U8 out[4];
  b->beyond |= inverse(coefficients, b->quantizers[1], b->most, out);
  for (int k = 0; k < 4; k++)
    for (int odd = 0; odd < 2; odd++) {
      memcpy(blue + (2 * k + odd) * b->chroma_stride, (uint8_t *)&out[k] + 8 * odd, 8);
      memcpy(red + (2 * k + odd) * b->chroma_stride, (uint8_t *)&out[k] + 16 + 8 * odd, 8);
    }
}

/* `count` MCUs, from column `column` on, of one stretch and one row. */
INLINE int read_mcus(Baseline *b, int column, int count, int shown) {
  const uint8_t *limit = b->bytes + b->length + 8;
  int across = b->header.across, down = b->header.down, y = 8 * b->row;
  Stream stream = b->stream;
  for (int mcu = column; mcu < column + count; mcu++) {
    const Block *block = b->blocks, *end = block + b->count;
    for (const Block *last = block + shown; block < last; block++)
      if (!read_block(&stream, block->dc, block->ac, block->predicted, block->to)) return 0;
    for (; block < end; block++)
      if (!read_block(&stream, block->dc, block->ac, block->predicted, NULL)) return 0;
    if (stream.next > limit) return 0;
    if (!shown) continue;
    put_luma(b, b->coefficients[0], luma_row(b, down * y) + 8 * across * mcu);
    if (down == 2) put_luma(b, b->coefficients[1], luma_row(b, down * y + 8) + 8 * across * mcu);
    if (shown > across * down)
      put_chroma(b, b->coefficients[2], chroma_row(b, 0, y) + 8 * mcu, chroma_row(b, 1, y) + 8 * mcu);
  }
  for (int k = 0; k < 3; k++)
    if (abs(b->predicted[k]) >= MOST) return 0;
  b->stream = stream;
  return 1;
}

static int pass_mcus(Baseline *b, int column, int count) { return read_mcus(b, column, count, 0); }

static int show_mcus(Baseline *b, int column, int count) {
  return read_mcus(b, column, count, b->luma ? b->header.across * b->header.down : b->count);
}

/* The next row of MCUs; those of the columns first to last are decoded. */
static int next_row(Baseline *b, int first, int last) {
  if (b->row == b->rows) return 0;
  for (int column = 0, count; column < b->mcus; column += count) {
    int shown = column >= first && column <= last, until = column < first ? first : shown ? last + 1 : b->mcus;
    count = min(until - column, b->stretch - b->done);
    if (!(shown ? show_mcus : pass_mcus)(b, column, count)) return 0;
    b->done += count;
    if (b->done == b->stretch && !end_stretch(b)) return 0;
  }
  b->row++;
  S64 beyond = (S64)b->beyond;
  return unused_bits(b) >= 0 && !(beyond[0] | beyond[1] | beyond[2] | beyond[3]);
}

/* ------------------------------------------------ rows ------------------------------------------------ */

/* 4 times the chroma of a row, which lies between two of the file's (or in one: twice the same). */
static void add_rows(const Baseline *b, int16_t *sums, const uint8_t *near, const uint8_t *far) {
  int wide = (b->header.width + 1) / 2, to = min((b->right + 1) / 2 + 1, wide);
  for (int x = max(b->left / 2 - 1, 0); x < to; x += 16)
    for (int k = x; k < x + 16; k++) sums[k] = 3 * near[k] + far[k];
  sums[-1] = sums[0];
  sums[wide] = sums[wide - 1];
}

enum { GRAY, FULL, HALF }; /* columns of chroma */

INLINE void put_columns(const Baseline *b, int chroma, const int16_t *sums[2], const uint8_t *samples[2], uint32_t *line) {
  const int16_t bias[2] = {b->header.down == 2 ? 8 : 4, b->header.down == 2 ? 7 : 8};
  const uint8_t *luma = luma_row(b, b->y);
  int right = b->right;
  for (int x = chroma == HALF ? b->left & ~1 : b->left; x < right; x += 32) {
    S16 y[2], blue[2] = {{0}}, red[2] = {{0}};
    split(luma + x, y);
    if (chroma == GRAY) blue[0] += 128, blue[1] += 128, red[0] += 128, red[1] += 128;
    if (chroma == FULL) split(samples[0] + x, blue), split(samples[1] + x, red);
    if (chroma == HALF) widen(sums[0] + x / 2, bias, blue), widen(sums[1] + x / 2, bias, red);
    uint32_t last[32];
    put_pixels(y, blue, red, x + 32 <= right ? line + x : last);
    if (x + 32 > right) memcpy(line + x, last, 4 * (right - x));
  }
}

static void put_row(const Baseline *b, int near, int far, uint32_t *line) {
  const uint8_t *samples[2] = {chroma_row(b, 0, near), chroma_row(b, 1, near)};
  int16_t *first = (int16_t *)(chroma_row(b, 1, 15) + b->chroma_stride), *second = first + b->chroma_stride + SPARE;
  const int16_t *sums[2] = {first, second};
  if (b->luma || b->header.components == 1) {
    put_columns(b, GRAY, sums, samples, line);
  } else if (b->header.across == 1) {
    put_columns(b, FULL, sums, samples, line);
  } else {
    add_rows(b, first, samples[0], chroma_row(b, 0, far));
    add_rows(b, second, samples[1], chroma_row(b, 1, far));
    put_columns(b, HALF, sums, samples, line);
  }
}

/* The next `count` rows, `stride` pixels apart; column x goes to place x of a row. */
int baseline_rows(Baseline *b, uint32_t *pixels, int64_t stride, int count) {
  int down = b->header.components == 3 && !b->luma ? b->header.down : 1, high = (b->header.height + down - 1) / down;
  for (int k = 0; k < count; k++, b->y++) {
    if (b->y >= b->header.height) return 0;
    int near = b->y / down, far = down == 1 ? near : min(max(b->y & 1 ? near + 1 : near - 1, 0), high - 1);
    int need = b->luma ? b->y / (8 * b->header.down) : max(near, far) / 8;
    while (b->row <= need)
      if (!next_row(b, b->first, b->last)) return 0;
    put_row(b, near, far, pixels + k * stride);
  }
  return 1;
}

/* ------------------------------------------------ begin ------------------------------------------------ */

static int begin_codes(Baseline *b, const uint8_t *data, int64_t size) {
  b->end = data + size;
  b->beyond = (S16){0};
  b->row = b->done = b->restarts = 0;
  if (b->room < size + MOST_MCU_BYTES) {
    free(b->bytes);
    b->room = 2 * size + MOST_MCU_BYTES;
    if (!(b->bytes = malloc(b->room))) return b->room = 0;
  }
  const uint8_t *codes = read_header(&b->header, data, b->end);
  if (!codes) return 0;
  int across = 8 * b->header.across, down = 8 * b->header.down;
  b->mcus = (b->header.width + across - 1) / across, b->rows = (b->header.height + down - 1) / down;
  int lumas = b->header.across * b->header.down;
  b->count = b->header.components == 1 ? 1 : lumas + 2;
  for (int k = 0; k < b->count; k++) {
    int c = k < lumas ? 0 : k - lumas + 1, pair = c ? 2 : k / b->header.across, side = c ? c - 1 : k % b->header.across;
    int16_t *to = (int16_t *)b->coefficients[pair] + 8 * side;
    b->blocks[k] = (Block){b->header.of[c][0], b->header.of[c][1], &b->predicted[c], to};
  }
  return begin_stretch(b, codes);
}

/* Reads what stands before the codes. 0 also where it is not an image of height x width. */
int baseline_header(Baseline *b, const uint8_t *data, int64_t size, int height, int width) {
  const Header *header = &b->header;
  if (!begin_codes(b, data, size) || header->height != height || header->width != width) return 0;
  /* Half a chroma row alone is interpolated otherwise, and so is a row of less than three columns. */
  return !header->other_colors && header->across >= header->down && (header->across == 1 || width > 4);
}

static int make_room(Baseline *b) {
  b->stride = 8 * b->header.across * b->mcus + SPARE, b->chroma_stride = 8 * b->mcus + SPARE;
  int64_t room = 16 * b->header.down * b->stride + 32 * b->chroma_stride + 4 * (b->chroma_stride + SPARE) + SPARE;
  if (b->plane_room >= room) return 1;
  free(b->planes);
  b->planes = calloc(room, 1);
  b->plane_room = b->planes ? room : 0;
  return b->planes != NULL;
}

/* Ready for row top and the following ones, columns left to right. luma: gray pixels. */
int baseline_start(Baseline *b, int luma, int top, int left, int right) {
  const Header *header = &b->header;
  if (top < 0 || top >= header->height || left < 0 || left >= right || right > header->width || !make_room(b)) return 0;
  b->most = MOST;
  for (int k = 0; k < 2 * BLOCK; k++) {
    int side = k / BLOCK;
    for (int c = 0; c < 2; c++) {
      int quantizer = header->quantizers[header->quantizer[header->components == 3 && c ? 1 + side : 0]][k % BLOCK];
      ((int16_t *)b->quantizers[c])[ORDER[k % BLOCK] + 8 * side] = quantizer;
      while (b->most * quantizer > MOST) b->most /= 2;
    }
  }
  memset(b->coefficients, 0, sizeof b->coefficients);
  int half = header->across == 2, wide = (header->width + half) / (1 + half);
  b->luma = luma, b->y = top, b->left = left, b->right = right;
  b->first = max(left / (1 + half) - half, 0) / 8, b->last = min((right - 1) / (1 + half) + half, wide - 1) / 8;
  int context = header->down == 2 && top % 2 == 0 && !luma, first = max(top - 2 * context, 0) / (8 * header->down);
  while (b->row < first)
    if (!next_row(b, b->mcus, b->mcus)) return 0;
  return 1;
}

/* Length of the JPEG up to and with its end-of-image marker, when every code of it is sound; 0: cannot tell. */
int64_t baseline_end(Baseline *b, const uint8_t *data, int64_t size) {
  if (!begin_codes(b, data, size)) return 0;
  while (b->row < b->rows)
    if (!next_row(b, b->mcus, b->mcus)) return 0;
  return b->marker + 2 - data;
}
