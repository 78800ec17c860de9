/* Huffman codes of a baseline JPEG: tables, the stream of bits, and a block of 8 x 8 coefficients at a time.
 *
 * A table is looked up with the next WINDOW bits of the stream, and says all that is known from them: two values with
 * their places, or how to pass over as many as fit. Whatever is strange there is asked again, code by code (one_code).
 *
 * No index depends on the file alone: a place in a block goes through ORDER, which has an entry for every sum that can
 * arise, and a stream is followed by as many zeros as one MCU can ask for. */

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum {
  WINDOW = 10, /* bits: with more, a file that brings its own tables loses more than a look-up wins */
  LONGEST_CODE = 16,
  MOST_DC_BITS = 11, /* of a value, in a baseline JPEG of 8 bits */
  MOST_AC_BITS = 10,
  BLOCK = 64,  /* coefficients */
  END = 128,   /* what an end-of-block code adds to the place in the block */
  NONE = 255,  /* steps that lead out of every block */
  UNUSED = 128 /* where in memory is put what is no coefficient */
};

/* What a look-up shows. From the lowest byte on: bits that are used; steps that they lead through the block; the first
 * value's run; how far to shift for its bits behind the window; the value without those, 2 bytes; their number; the
 * second value. For DC: one value, one step. */
typedef uint64_t Shown;

typedef struct {
  uint8_t given[LONGEST_CODE + 256]; /* what it was made from: lengths and symbols, as in the file */
  int known, is_dc;
  int32_t begin[LONGEST_CODE + 1], end[LONGEST_CODE + 1]; /* the codes of each length */
  int32_t first[LONGEST_CODE + 1];                        /* and the number of the first one's symbol */
  uint16_t one[1 << WINDOW]; /* length << 8 | symbol of the next code; 0: it is longer, or none */
  uint16_t pass[1 << WINDOW]; /* AC, of as many codes as fit: steps << 8 | bits */
  Shown show[1 << WINDOW];
} Table;

typedef struct {
  const uint8_t *next;
  uint64_t bits, count; /* the highest bits are next; of the count, 6 bits are valid */
} Stream;

static const uint8_t ZIGZAG[BLOCK] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

/* Where in memory the coefficient of a place lies, and, behind an end of block, the same again: of two blocks side by
 * side, in the order in which the inverse DCT wants rows and columns, two rows interleaved. */
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

INLINE int first_value(Shown shown, uint64_t bits) {
  return (int16_t)(shown >> 32) + (int)(bits >> (shown >> 24 & 63) & ((1u << (shown >> 48 & 31)) - 1));
}

/* Is it a symbol of AC in a baseline JPEG? */
static int is_sound(int symbol) {
  return (symbol & 15) <= MOST_AC_BITS && ((symbol & 15) || symbol == 0 || symbol == 0xF0);
}

static Shown to_show(const uint16_t *one, int window, int is_dc) {
  int length = one[window] >> 8, symbol = one[window] & 255, size = symbol & 15, run = symbol >> 4;
  if (!length || !(is_dc || is_sound(symbol)) || (size && length == WINDOW)) return NONE << 8; /* or: unknown sign */
  if (!is_dc && !symbol) return length | (END + 2) << 8 | (Shown)(64 - WINDOW) << 24;
  int bits = length + size, steps = run + 1, second = 0, unseen = bits > WINDOW ? bits - WINDOW : 0;
  int first = size ? value_of((uint64_t)window << (64 - WINDOW + length), size) : 0;
  for (int values = 1; bits < WINDOW && !is_dc; values++) {
    int next = one[(window << bits) & ((1 << WINDOW) - 1)], to = bits + (next >> 8) + (next & 15);
    if (!next || !is_sound(next & 255) || to > WINDOW) break;
    if (!(next & 255)) {
      bits = to, steps += END + 1;
      break;
    }
    if (values == 2 || !(next & 15) || (next & 15) > 7) break;
    second = value_of((uint64_t)window << (64 - WINDOW) << (bits + (next >> 8)), next & 15);
    bits = to, steps += (next >> 4 & 15) + 1;
  }
  return bits | steps << 8 | run << 16 | (Shown)(64 - WINDOW - unseen) << 24 | (Shown)(uint16_t)first << 32 |
         (Shown)unseen << 48 | (Shown)second << 56;
}

static uint16_t to_pass(const uint16_t *one, int window) {
  int bits = 0, steps = 0;
  while (bits < WINDOW && steps < END) {
    int next = one[(window << bits) & ((1 << WINDOW) - 1)], length = next >> 8, symbol = next & 255;
    int to = bits + length + (symbol & 15), more = symbol ? (symbol >> 4) + 1 : END + 1;
    /* Only the first one's value may leave the window; and more than a block would look like its end. */
    if (!next || !is_sound(symbol) || bits + length > WINDOW) break;
    if (steps && (to > WINDOW || steps + more % END > BLOCK)) break;
    bits = to, steps += more;
  }
  return steps ? steps << 8 | bits : NONE << 8;
}

/* From 16 counts and the symbols; 0 for what is no table. */
static int make_table(Table *table, const uint8_t *given, int symbols, int is_dc) {
  if (table->known && table->is_dc == is_dc && !memcmp(table->given, given, LONGEST_CODE + symbols)) return 1;
  table->known = 0;
  memset(table->one, 0, sizeof table->one);
  memcpy(table->given, given, LONGEST_CODE + symbols);
  int32_t code = 0, number = 0;
  for (int length = 1; length <= LONGEST_CODE; length++, code <<= 1) {
    table->begin[length] = code;
    table->first[length] = number;
    for (int k = 0; k < given[length - 1]; k++, code++, number++) {
      if (code >= (1 << length) - 1) return 0; /* all ones is no code */
      if (is_dc && given[LONGEST_CODE + number] > MOST_DC_BITS) return 0;
      for (int rest = 0; length <= WINDOW && rest < 1 << (WINDOW - length); rest++)
        table->one[(code << (WINDOW - length)) + rest] = length << 8 | given[LONGEST_CODE + number];
    }
    table->end[length] = code;
  }
  for (int window = 0; window < 1 << WINDOW; window++) {
    table->show[window] = to_show(table->one, window, is_dc);
    if (!is_dc) table->pass[window] = to_pass(table->one, window);
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
static unsigned next_code(const Table *table, uint64_t bits) {
  for (int length = 1; length <= LONGEST_CODE; length++) {
    int32_t code = bits >> (64 - length);
    if (code >= table->begin[length] && code < table->end[length])
      return length << 8 | table->given[LONGEST_CODE + table->first[length] + code - table->begin[length]];
  }
  return 0;
}

/* A code of AC alone: the place behind it (BLOCK: end of block) << 8 | bits; 0 for a fault. Puts the value. */
static __attribute__((noinline)) unsigned one_code(const Table *table, uint64_t bits, unsigned place, int16_t *to) {
  unsigned code = next_code(table, bits), length = code >> 8, run = code >> 4 & 15, size = code & 15;
  if (!code || !is_sound(code & 255)) return 0;
  if (!(code & 255)) return BLOCK << 8 | length;
  if (place + run >= BLOCK) return 0;
  if (to) to[ORDER[place + run]] = value_of(bits << length, size);
  return (place + run + 1) << 8 | (length + size);
}

/* The difference of DC is added to `predicted`; 0 for a fault. */
INLINE int read_dc(Stream *stream, const Table *table, int *predicted) {
  fill(stream);
  Shown shown = table->show[stream->bits >> (64 - WINDOW)];
  if (__builtin_expect(shown >> 8 != NONE, 1)) {
    *predicted += first_value(shown, stream->bits);
    drop(stream, shown);
    return 1;
  }
  unsigned code = next_code(table, stream->bits), length = code >> 8, size = code & 15;
  *predicted += value_of(stream->bits << length, size);
  drop(stream, length + size);
  return code != 0;
}

/* Codes of AC by one look-up, from `place` on: the place behind them, BLOCK or more at the end of the block, or 0 for
 * a fault. The values are put where `to` is not NULL. */
INLINE unsigned read_codes(Stream *stream, const Table *table, unsigned place, int16_t *to) {
  Shown shown = to ? table->show[stream->bits >> (64 - WINDOW)] : table->pass[stream->bits >> (64 - WINDOW)];
  unsigned after = place + (shown >> 8 & 255);
  if (to) {
    to[ORDER[after - 1]] = (int64_t)shown >> 56;
    to[ORDER[place + (shown >> 16 & 255)]] = first_value(shown, stream->bits);
  }
  /* Neither in the block nor behind it: not all codes are of this block. */
  if (after >= BLOCK && __builtin_expect(after > BLOCK && (after <= END || after > END + BLOCK), 0)) {
    shown = one_code(table, stream->bits, place, to);
    after = shown >> 8;
  }
  drop(stream, shown);
  return after;
}

/* A block's coefficients are put where `to` is not NULL: there lie zeros, but for UNUSED. 0 for a fault. */
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
