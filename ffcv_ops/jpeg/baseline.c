/* A box of a baseline JPEG -> RGBX pixels, as libjpeg-turbo makes them, in two thirds of its time and less; and whether
 * such a JPEG holds together (conversion/jpeg.py says what for). Built by native.py. Where a function here returns 0,
 * region.c asks libjpeg: for all that is unusual or damaged, and for sums that machines do not compute alike.
 *
 *   huffman.h   tables, bits, a block's coefficients
 *   markers.h   what stands before the codes
 *   pixels.h    inverse DCT and colors; for AVX2 only, so that other machines leave the pixels to libjpeg
 *   here        MCUs: passed over outside of the box, else decoded into two rows of them, from which pixels are made
 */

#include "baseline.h"
#include "markers.h"

#include <stdlib.h>

enum {
  MOST_MCU_BYTES = 6 * 256, /* six blocks: 16 + 11 bits, and 63 times 16 + 10, are 209 bytes */
  MOST = 16384,             /* of a coefficient, alone or times its quantizer */
  SPARE = 64                /* columns behind a row that vectors may touch */
};

typedef struct {
  const Table *dc, *ac;
  int *predicted;
  int16_t *to;
} Block;

struct Baseline {
  Header header;
  const uint8_t *marker, *end; /* behind the stretch of codes that is in `bytes`; of the file */
  uint8_t *bytes;
  int64_t room, length; /* of bytes */
  Stream stream;
  int predicted[3], blocks_of_mcu;
  Block blocks[6];                  /* of an MCU */
  int mcus, rows;                   /* MCUs across and down */
  int row, done, stretch, restarts; /* rows of MCUs and MCUs that are read; where the stretch ends; their number */
  int y, left, right, first, last;  /* next row of pixels; the box's columns, and those of its MCUs */
  int most;                         /* of a coefficient, a power of 2 */
  /* Two blocks side by side: twice luma, then blue and red; behind them what UNUSED names. Quantizers likewise. */
  int16_t coefficients[3][2 * BLOCK + 16] __attribute__((aligned(32)));
  int16_t quantizers[2][2 * BLOCK] __attribute__((aligned(32)));
  int16_t beyond[16] __attribute__((aligned(32))); /* something is, where it is not zeros */
  uint8_t *planes; /* two rows of MCUs of luma, blue and red; then two rows of sums */
  int64_t plane_room, stride, chroma_stride;
};

Baseline *baseline_open(void) {
  Baseline *b = aligned_alloc(64, (sizeof(Baseline) + 63) / 64 * 64);
  if (b) memset(b, 0, sizeof *b);
  return b;
}

void baseline_close(Baseline *b) {
  free(b->bytes);
  free(b->planes);
  free(b);
}

static int max(int a, int b) { return a > b ? a : b; }

static int min(int a, int b) { return a < b ? a : b; }

/* ---------------------------------------------- stretches of codes ---------------------------------------------- */

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
  int left = b->mcus * b->rows - b->done;
  b->stretch = b->done + (b->header.restart ? min(b->header.restart, left) : left);
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

/* ---------------------------------------------- samples and pixels ---------------------------------------------- */

#ifdef __AVX2__
#include "pixels.h"

static uint8_t *luma_row(const Baseline *b, int y) { return b->planes + (y & (16 * b->header.down - 1)) * b->stride; }

static uint8_t *chroma_row(const Baseline *b, int color, int y) {
  return b->planes + 16 * b->header.down * b->stride + (16 * color + (y & 15)) * b->chroma_stride;
}

/* The blocks of a pair are samples of one row, or of two, `apart`. */
INLINE void put_pair(Baseline *b, int pair, uint8_t *to, uint8_t *other, int64_t stride) {
  U8 out[4];
  *(S16 *)b->beyond |= inverse((S16 *)b->coefficients[pair], (S16 *)b->quantizers[pair == 2], b->most, out);
  for (int k = 0; k < 8; k++) {
    memcpy(to + k * stride, (uint8_t *)&out[k / 2] + 8 * (k % 2), 8);
    memcpy(other + k * stride, (uint8_t *)&out[k / 2] + 16 + 8 * (k % 2), 8);
  }
}

INLINE void put_mcu(Baseline *b, int mcu) {
  int across = b->header.across, down = b->header.down;
  for (int k = 0; k < down; k++) {
    uint8_t *to = luma_row(b, 8 * (down * b->row + k)) + 8 * across * mcu;
    put_pair(b, k, to, to + 8, b->stride); /* of one block only, the next MCU writes over the other one's place */
  }
  put_pair(b, 2, chroma_row(b, 0, 8 * b->row) + 8 * mcu, chroma_row(b, 1, 8 * b->row) + 8 * mcu, b->chroma_stride);
}

/* 4 times the chroma of a row, which lies between two of the file's (or in one: twice the same). */
static void add_rows(const Baseline *b, int16_t *sums, const uint8_t *near, const uint8_t *far) {
  int wide = (b->header.width + 1) / 2, to = min((b->right + 1) / 2 + 1, wide);
  for (int x = max(b->left / 2 - 1, 0); x < to; x += 16)
    for (int k = x; k < x + 16; k++) sums[k] = 3 * near[k] + far[k];
  sums[-1] = sums[0];
  sums[wide] = sums[wide - 1];
}

INLINE void put_columns(const Baseline *b, int half, uint8_t *chroma[2], int16_t *sums[2], uint32_t *line) {
  const uint8_t *luma = luma_row(b, b->y);
  int right = b->right, down = b->header.down;
  for (int x = half ? b->left & ~1 : b->left; x < right; x += 32) {
    S16 y[2], blue[2], red[2];
    split(luma + x, y);
    if (half)
      widen(sums[0] + x / 2, down, blue), widen(sums[1] + x / 2, down, red);
    else
      split(chroma[0] + x, blue), split(chroma[1] + x, red);
    uint32_t last[32];
    put_pixels(y, blue, red, x + 32 <= right ? line + x : last);
    if (x + 32 > right) memcpy(line + x, last, 4 * (right - x));
  }
}

static void put_row(const Baseline *b, int near, int far, uint32_t *line) {
  uint8_t *chroma[2] = {chroma_row(b, 0, near), chroma_row(b, 1, near)};
  int16_t *first = (int16_t *)(chroma_row(b, 1, 15) + b->chroma_stride);
  int16_t *sums[2] = {first, first + b->chroma_stride + SPARE};
  if (b->header.across == 1) {
    put_columns(b, 0, chroma, sums, line);
  } else {
    for (int c = 0; c < 2; c++) add_rows(b, sums[c], chroma[c], chroma_row(b, c, far));
    put_columns(b, 1, chroma, sums, line);
  }
}

enum { SHOWS = 1 };
#else
static void put_mcu(Baseline *b, int mcu) { (void)b, (void)mcu; }

static void put_row(const Baseline *b, int near, int far, uint32_t *line) {
  (void)b, (void)near, (void)far, (void)line;
}

enum { SHOWS = 0 };
#endif

/* ------------------------------------------------ MCUs ------------------------------------------------ */

/* `count` MCUs, from column `column` on, of one stretch and one row. */
INLINE int read_mcus(Baseline *b, int column, int count, int shown) {
  const uint8_t *limit = b->bytes + b->length + 8;
  Stream stream = b->stream;
  for (int mcu = column; mcu < column + count; mcu++) {
    for (const Block *k = b->blocks, *end = k + b->blocks_of_mcu; k < end; k++)
      if (!read_block(&stream, k->dc, k->ac, k->predicted, shown ? k->to : NULL)) return 0;
    if (stream.next > limit) return 0;
    if (shown) put_mcu(b, mcu);
  }
  b->stream = stream;
  return abs(b->predicted[0]) < MOST && abs(b->predicted[1]) < MOST && abs(b->predicted[2]) < MOST;
}

static int pass_mcus(Baseline *b, int column, int count) { return read_mcus(b, column, count, 0); }

static int show_mcus(Baseline *b, int column, int count) { return read_mcus(b, column, count, 1); }

/* The next row of MCUs; those of the columns first to last are decoded. */
static int next_row(Baseline *b, int first, int last) {
  for (int column = 0, count; column < b->mcus; column += count) {
    int shown = column >= first && column <= last, until = column < first ? first : shown ? last + 1 : b->mcus;
    count = min(until - column, b->stretch - b->done);
    if (!(shown ? show_mcus : pass_mcus)(b, column, count)) return 0;
    b->done += count;
    if (b->done == b->stretch && !end_stretch(b)) return 0;
  }
  b->row++;
  static const int16_t nothing[16];
  return unused_bits(b) >= 0 && !memcmp(b->beyond, nothing, sizeof nothing);
}

/* The next `count` rows, `stride` pixels apart; column x goes to place x of a row. */
int baseline_rows(Baseline *b, uint32_t *pixels, int64_t stride, int count) {
  int down = b->header.down, high = (b->header.height + down - 1) / down;
  for (int k = 0; k < count; k++, b->y++) {
    int near = b->y / down, far = down == 1 ? near : min(max(b->y & 1 ? near + 1 : near - 1, 0), high - 1);
    while (b->row <= max(near, far) / 8)
      if (b->row == b->rows || !next_row(b, b->first, b->last)) return 0;
    put_row(b, near, far, pixels + k * stride);
  }
  return 1;
}

/* ------------------------------------------------ begin ------------------------------------------------ */

static int begin_codes(Baseline *b, const uint8_t *data, int64_t size) {
  b->end = data + size;
  b->row = b->done = b->restarts = 0;
  memset(b->beyond, 0, sizeof b->beyond);
  if (b->room < size + MOST_MCU_BYTES) {
    free(b->bytes);
    b->room = 2 * size + MOST_MCU_BYTES;
    if (!(b->bytes = malloc(b->room))) return b->room = 0;
  }
  const Header *header = &b->header;
  const uint8_t *codes = read_header(&b->header, data, b->end);
  if (!codes) return 0;
  int across = header->across, lumas = across * header->down;
  b->mcus = (header->width + 8 * across - 1) / (8 * across);
  b->rows = (header->height + 8 * header->down - 1) / (8 * header->down);
  b->blocks_of_mcu = lumas + 2;
  for (int k = 0; k < lumas + 2; k++) {
    int c = max(k - lumas + 1, 0), pair = c ? 2 : k / across, side = c ? c - 1 : k % across;
    b->blocks[k] = (Block){header->of[c][0], header->of[c][1], &b->predicted[c], b->coefficients[pair] + 8 * side};
  }
  return begin_stretch(b, codes);
}

static int make_room(Baseline *b) {
  b->stride = 8 * b->header.across * b->mcus + SPARE, b->chroma_stride = 8 * b->mcus + SPARE;
  int64_t room = 16 * b->header.down * b->stride + 32 * b->chroma_stride + 4 * (b->chroma_stride + SPARE);
  if (b->plane_room >= room) return 1;
  free(b->planes);
  b->planes = calloc(room, 1);
  b->plane_room = b->planes ? room : 0;
  return b->planes != NULL;
}

static void read_quantizers_of(Baseline *b) {
  b->most = MOST;
  for (int c = 0; c < 3; c++)
    for (int k = 0; k < BLOCK; k++) {
      int quantizer = b->header.quantizers[b->header.quantizer[c]][k];
      b->quantizers[c > 0][ORDER[k] + 8 * (c == 2)] = quantizer;
      if (!c) b->quantizers[0][ORDER[k] + 8] = quantizer;
      while (b->most * quantizer > MOST) b->most /= 2;
    }
}

/* Ready for the rows of the box. 0 also where it is not an image of these sides. */
int baseline_begin(Baseline *b, const Jpeg *jpeg, const Box *box) {
  const Header *header = &b->header;
  if (!SHOWS || !begin_codes(b, jpeg->data, jpeg->size) || header->other_colors) return 0;
  if (header->height != jpeg->height || header->width != jpeg->width || !make_room(b)) return 0;
  int half = header->across - 1, context = header->down - 1;
  /* libjpeg interpolates half a chroma row alone otherwise, and less than three columns not at all. */
  if (half < context || (half && header->width < 5)) return 0;
  if (box->top < 0 || box->top >= header->height || box->left < 0 || box->left >= box->right) return 0;
  if (box->right > header->width) return 0;
  memset(b->coefficients, 0, sizeof b->coefficients);
  read_quantizers_of(b);
  b->y = box->top, b->left = box->left, b->right = box->right;
  b->first = max(box->left / (1 + half) - half, 0) / 8;
  b->last = min((box->right - 1) / (1 + half) + half, 8 * b->mcus - 1) / 8;
  while (b->row < max(box->top / (1 + context) - context, 0) / 8)
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
