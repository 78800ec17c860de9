/* Huffman codes of a baseline JPEG: tables, the stream of bits, and one block of 8 x 8 coefficients at a time.
 *
 * A table is looked up with the next WINDOW bits of the stream, and says all that is known from them: several codes with
 * their values where they fit. Whatever is strange there is asked again, code by code (one_code).
 *
 * No index depends on the file alone: a place in a block goes through ORDER, which has a place for every sum that can
 * arise, and a stream is followed by as many zeros as one MCU can ask for. */

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum {
  WINDOW = 11,
  LONGEST_CODE = 16,
  MOST_DC_BITS = 11, /* of a value, in a baseline JPEG of 8 bits */
  MOST_AC_BITS = 10,
  BLOCK = 64,     /* coefficients */
  END = 128,      /* what an end-of-block code adds to the place in the block */
  NONE = 255,     /* leads out of every block */
  NO_CODE = 0xFFFF,
  UNUSED = 128    /* a place in memory for what is no coefficient */
};

/* What is known of the next codes. From the lowest byte on: bits that they take; steps that they lead through the block;
 * the first value's run; where its bits end that the window does not show, from the left; the value itself, 2 bytes,
 * without those bits; their number; the second value. */
typedef uint64_t Shown;

typedef struct {
  uint8_t given[LONGEST_CODE + 256]; /* what it was made from: lengths and symbols, as in the file */
  int known, is_dc;
  int32_t begin[LONGEST_CODE + 1], end[LONGEST_CODE + 1]; /* the codes of each length */
  int32_t first[LONGEST_CODE + 1];                        /* and the number of the first one's symbol */
  uint16_t one[1 << WINDOW]; /* of the next code: length << 8 | symbol, or NO_CODE where it is longer, or none */
  uint16_t pass[1 << WINDOW]; /* AC, of as many codes as fit: steps << 8 | bits */
  Shown show[1 << WINDOW];    /* of up to two values; DC: one value, no steps */
} Table;

typedef struct {
  const uint8_t *next;
  uint64_t bits; /* the highest ones are next */
  uint64_t count; /* its lowest 6 bits count */
} Stream;

static const uint8_t ZIGZAG[BLOCK] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

/* Where in memory the coefficient of a place lies, and, behind an end of block, the same again: of two blocks side by side,
 * in the order in which the inverse DCT wants its rows and columns, two rows interleaved. */
static uint8_t ORDER[BLOCK + NONE];

static __attribute__((constructor)) void make_order(void) {
  static const uint8_t at[8] = {0, 4, 2, 5, 1, 6, 3, 7}; /* so 0 and 4, 2 and 6, 1 and 3, 5 and 7 are pairs */
  memset(ORDER, UNUSED, sizeof ORDER);
  for (int k = 0; k < BLOCK; k++) {
    int row = at[ZIGZAG[k] >> 3], column = at[ZIGZAG[k] & 7];
    ORDER[k] = ORDER[END + 1 + k] = 16 * (row / 2 * 2 + column / 4) + column % 4 * 2 + row % 2;
  }
}

/* The value whose `size` bits are the highest ones. */
INLINE int value_of(uint64_t bits, int size) {
  int value = (int)(bits >> 1 >> (63 - size)), negative = (int)~((int64_t)bits >> 63);
  return value - (negative & ((1 << size) - 1));
}

#define UNSEEN(bits) (64 - WINDOW - (bits))

/* The first value of what a look-up has shown. */
INLINE int first_value(Shown shown, uint64_t bits) {
  return (int16_t)(shown >> 32) + (int)(bits >> (shown >> 24 & 63) & ((1u << (shown >> 48 & 31)) - 1));
}

/* The code at the top of a window, and whether it is one of a value or an end of block. */
typedef struct {
  int valid, length, run, size;
} Code;

static Code code_at(const Table *table, int window) {
  unsigned one = table->one[window & ((1 << WINDOW) - 1)];
  Code code = {one != NO_CODE, one >> 8, one >> 4 & 15, one & 15};
  code.valid &= code.size <= MOST_AC_BITS && (code.size || !code.run || code.run == 15);
  return code;
}

static Shown to_show(const Table *table, int window, int is_dc) {
  Code first = code_at(table, window);
  const Shown none = (Shown)NONE << 8;
  if (!first.valid || (first.size && first.length == WINDOW)) return none; /* the sign is not there */
  if (!is_dc && !first.size && !first.run) return first.length | (END + 2) << 8 | (Shown)UNSEEN(0) << 24;
  int run = is_dc ? 0 : first.run, size = is_dc ? first.run << 4 | first.size : first.size;
  int bits = first.length + size, steps = run + 1, second = 0, unseen = bits > WINDOW ? bits - WINDOW : 0;
  int value = value_of((uint64_t)window << (64 - WINDOW + first.length), size);
  for (int values = 1; bits < WINDOW && !is_dc; values++) {
    Code next = code_at(table, window << bits);
    if (!next.valid || bits + next.length + next.size > WINDOW) break;
    if (!next.size && !next.run) {
      bits += next.length, steps += END + 1;
      break;
    }
    if (values == 2 || !next.size || next.size > 7) break;
    second = value_of((uint64_t)window << (64 - WINDOW) << (bits + next.length), next.size);
    bits += next.length + next.size, steps += next.run + 1;
  }
  return bits | steps << 8 | run << 16 | (Shown)UNSEEN(unseen) << 24 | (Shown)(uint16_t)value << 32 |
         (Shown)unseen << 48 | (Shown)second << 56;
}

static uint16_t to_pass(const Table *table, int window) {
  int bits = 0, steps = 0;
  while (bits < WINDOW && steps < END) {
    Code next = code_at(table, window << bits);
    int more = next.size || next.run ? next.run + 1 : END + 1;
    /* Only the first one's value may leave the window; and more than a block would look like its end. */
    if (!next.valid || bits + next.length > WINDOW) break;
    if (steps && (bits + next.length + next.size > WINDOW || steps + more % END > BLOCK)) break;
    bits += next.length + next.size, steps += more;
  }
  return steps ? steps << 8 | bits : NONE << 8;
}

/* From 16 counts and the symbols; 0 for what is no table. */
static int make_table(Table *table, const uint8_t *given, int symbols, int is_dc) {
  if (table->known && table->is_dc == is_dc && !memcmp(table->given, given, LONGEST_CODE + symbols)) return 1;
  table->known = 0;
  memset(table->one, NO_CODE & 255, sizeof table->one);
  int32_t code = 0, number = 0;
  for (int length = 1; length <= LONGEST_CODE; length++, code <<= 1) {
    table->begin[length] = code;
    table->first[length] = number;
    for (int k = 0; k < given[length - 1]; k++, code++, number++) {
      if (code >= (1 << length) - 1) return 0; /* all ones is no code */
      if (is_dc && given[LONGEST_CODE + number] > MOST_DC_BITS) return 0;
      if (length > WINDOW) continue;
      for (int rest = 0; rest < 1 << (WINDOW - length); rest++)
        table->one[(code << (WINDOW - length)) + rest] = length << 8 | given[LONGEST_CODE + number];
    }
    table->end[length] = code;
  }
  memcpy(table->given, given, LONGEST_CODE + symbols);
  for (int window = 0; window < 1 << WINDOW; window++) {
    table->pass[window] = is_dc ? 0 : to_pass(table, window);
    table->show[window] = to_show(table, window, is_dc);
  }
  table->known = 1;
  table->is_dc = is_dc;
  return 1;
}

/* At least 56 bits are there: two codes with their values have 52, and one of DC and one of AC 53. */
INLINE void fill(Stream *stream) {
  uint64_t more;
  memcpy(&more, stream->next, sizeof more);
  stream->bits |= __builtin_bswap64(more) >> (stream->count & 63);
  stream->next += (~stream->count & 63) >> 3;
  stream->count |= 56;
}

INLINE void drop(Stream *stream, uint64_t bits) {
  stream->bits <<= bits & 63;
  stream->count -= bits;
}

/* length << 8 | symbol of the next code alone; 0 where it is none. */
static __attribute__((noinline)) unsigned next_code(const Table *table, uint64_t bits) {
  for (int length = 1; length <= LONGEST_CODE; length++) {
    int32_t code = bits >> (64 - length);
    if (code >= table->begin[length] && code < table->end[length])
      return length << 8 | table->given[LONGEST_CODE + table->first[length] + code - table->begin[length]];
  }
  return 0;
}

/* A code of AC alone: the place behind it, BLOCK at the end of the block, << 8 | bits; 0 for a fault. Puts the value. */
static __attribute__((noinline)) unsigned one_code(const Table *table, uint64_t bits, unsigned place, int16_t *to) {
  unsigned code = next_code(table, bits), length = code >> 8, run = code >> 4 & 15, size = code & 15;
  if (!code || size > MOST_AC_BITS || (!size && run && run < 15)) return 0;
  if (!size && !run) return BLOCK << 8 | length;
  if (place + run >= BLOCK) return 0;
  if (to) to[ORDER[place + run]] = value_of(bits << length, size);
  return (place + run + 1) << 8 | (length + size);
}

/* The difference of DC is added to `predicted`; 0 for a fault. */
INLINE int read_dc(Stream *stream, const Table *table, int *predicted) {
  fill(stream);
  Shown shown = table->show[stream->bits >> (64 - WINDOW)];
  if (__builtin_expect(shown >> 8 == NONE, 0)) {
    unsigned code = next_code(table, stream->bits), length = code >> 8, size = code & 15;
    if (!code) return 0;
    *predicted += value_of(stream->bits << length, size);
    drop(stream, length + size);
  } else {
    *predicted += first_value(shown, stream->bits);
    drop(stream, shown);
  }
  return 1;
}

/* Is a place behind a look-up neither in the block nor behind it? Then not all codes are of this block. */
INLINE int strange(unsigned after) { return after > BLOCK && (after <= END || after > END + BLOCK); }

/* Codes of AC by one look-up, from `place` on; the place behind them, BLOCK or more at the end of the block, or 0 for a
 * fault. The values are put where `to` is not NULL. */
INLINE unsigned read_codes(Stream *stream, const Table *table, unsigned place, int16_t *to) {
  uint64_t bits = stream->bits;
  Shown shown = to ? table->show[bits >> (64 - WINDOW)] : table->pass[bits >> (64 - WINDOW)];
  unsigned after = place + (shown >> 8 & 255);
  if (to) {
    to[ORDER[after - 1]] = (int64_t)shown >> 56;
    to[ORDER[place + (shown >> 16 & 255)]] = first_value(shown, bits);
  }
  if (after >= BLOCK && __builtin_expect(strange(after), 0)) {
    shown = one_code(table, bits, place, to);
    after = shown >> 8;
  }
  drop(stream, shown);
  return after;
}

/* Reads a block, and puts its coefficients where `to` is not NULL; 0 for a fault. to: zeros, but for UNUSED. */
INLINE int read_block(Stream *stream, const Table *dc, const Table *ac, int *predicted, int16_t *to) {
  if (!read_dc(stream, dc, predicted)) return 0;
  if (to) to[0] = *predicted;
  for (unsigned place = 1;;) {
    place = read_codes(stream, ac, place, to);
    if (place - 1 >= BLOCK - 1) return place != 0;
    fill(stream);
    place = read_codes(stream, ac, place, to);
    if (place - 1 >= BLOCK - 1) return place != 0;
  }
}
