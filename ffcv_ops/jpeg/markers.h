/* What stands before the codes of a baseline JPEG. Whatever is unusual is no header, so that libjpeg decides. */

#include "huffman.h"

typedef struct {
  Table dc[2], ac[2];
  uint8_t quantizers[4][BLOCK]; /* as in the file */
  int height, width, across, down; /* across, down: luma's blocks of an MCU */
  int restart;                                 /* MCUs between two markers, 0: no markers */
  int other_colors;                            /* than YCbCr, perhaps */
  uint8_t ids[3], quantizer[3], has_quantizer[4], has_table[4]; /* DC 0 and 1, AC 0 and 1 */
  const Table *of[3][2];                                        /* each component's DC and AC */
} Header;

static int number(const uint8_t *at) { return at[0] << 8 | at[1]; }

static int read_tables(Header *header, const uint8_t *at, const uint8_t *end) {
  while (at < end) {
    int which = *at++, symbols = 0;
    if ((which & ~0x11) || end - at < LONGEST_CODE) return 0;
    for (int k = 0; k < LONGEST_CODE; k++) symbols += at[k];
    if (symbols > 256 || end - at < LONGEST_CODE + symbols) return 0;
    int is_dc = which < 16;
    if (!make_table(&(is_dc ? header->dc : header->ac)[which & 1], at, symbols, is_dc)) return 0;
    header->has_table[2 * !is_dc + (which & 1)] = 1;
    at += LONGEST_CODE + symbols;
  }
  return 1;
}

static int read_quantizers(Header *header, const uint8_t *at, const uint8_t *end) {
  for (; at < end; at += 1 + BLOCK) {
    if (end - at < 1 + BLOCK || *at > 3) return 0;
    memcpy(header->quantizers[*at], at + 1, BLOCK);
    header->has_quantizer[*at] = 1;
  }
  return 1;
}

static int read_frame(Header *header, const uint8_t *at, int64_t size) {
  if (header->height || size != 15 || at[0] != 8 || at[5] != 3) return 0;
  header->height = number(at + 1), header->width = number(at + 3);
  header->across = at[7] >> 4, header->down = at[7] & 15;
  if (!header->height || !header->width) return 0;
  if (header->across < 1 || header->across > 2 || header->down < 1 || header->down > 2) return 0;
  for (int k = 0; k < 3; k++) {
    const uint8_t *component = at + 6 + 3 * k;
    if ((k && component[1] != 0x11) || component[2] > 3) return 0;
    header->ids[k] = component[0];
    header->quantizer[k] = component[2];
    if (component[0] != k + 1) header->other_colors = 1;
  }
  const uint8_t *ids = header->ids;
  return ids[0] != ids[1] && ids[0] != ids[2] && ids[1] != ids[2];
}

static int read_scan(Header *header, const uint8_t *at, int64_t size) {
  if (!header->height || size != 10 || at[0] != 3 || memcmp(at + 7, "\0\77", 3)) return 0;
  for (int k = 0; k < 3; k++) {
    int id = at[1 + 2 * k], dc = at[2 + 2 * k] >> 4, ac = at[2 + 2 * k] & 15;
    if (id != header->ids[k] || !header->has_quantizer[header->quantizer[k]]) return 0;
    if (dc > 1 || ac > 1 || !header->has_table[dc] || !header->has_table[2 + ac]) return 0;
    header->of[k][0] = &header->dc[dc];
    header->of[k][1] = &header->ac[ac];
  }
  return 1;
}

/* Returns where the codes begin, or NULL. Tables of an earlier file stay where they are, as they may come again. */
static const uint8_t *read_header(Header *header, const uint8_t *at, const uint8_t *end) {
  header->height = header->restart = header->other_colors = 0;
  memset(header->has_quantizer, 0, sizeof header->has_quantizer);
  memset(header->has_table, 0, sizeof header->has_table);
  if (end - at < 4 || at[0] != 0xFF || at[1] != 0xD8) return NULL;
  for (at += 2;;) {
    if (end - at < 4 || at[0] != 0xFF) return NULL;
    int marker = at[1], length = number(at + 2), sound = 1;
    const uint8_t *segment = at + 4;
    if (length < 2 || length + 2 > end - at) return NULL;
    at += 2 + length;
    if (marker == 0xC0) {
      sound = read_frame(header, segment, at - segment);
    } else if (marker == 0xC4) {
      sound = read_tables(header, segment, at);
    } else if (marker == 0xDB) {
      sound = read_quantizers(header, segment, at);
    } else if (marker == 0xDD) {
      sound = length == 4;
      if (sound) header->restart = number(segment);
    } else if (marker == 0xDA) {
      return read_scan(header, segment, at - segment) ? at : NULL;
    } else if (marker == 0xE0) {
      sound = length < 9 || memcmp(segment, "JFIF", 5) || segment[5] == 1; /* libjpeg warns */
    } else if (marker == 0xEE) {
      if (length != 14 || memcmp(segment, "Adobe", 5) || segment[11] != 1) header->other_colors = 1;
    } else {
      sound = marker == 0xFE || (marker >= 0xE1 && marker <= 0xEF);
    }
    if (!sound) return NULL;
  }
}
