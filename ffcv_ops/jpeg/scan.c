/* Does a baseline JPEG hold together? Its Huffman codes are followed to the end of the image, and that is all: no
 * coefficient is made. conversion/jpeg.py says what for. Whatever is unusual is "cannot tell", so that libjpeg decides.
 *
 * A table is looked up with the next WINDOW bits of the stream. What it says: how many bits the codes and the values
 * take that begin in the window, and how far they lead through the block; several codes at once where they fit. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
  WINDOW = 12,
  LONGEST_CODE = 16,
  BLOCK = 64,      /* coefficients */
  END = 128,       /* what an end-of-block code adds to the place in the block */
  MOST_DC_BITS = 11, /* of a value, in a baseline JPEG of 8 bits */
  MOST_AC_BITS = 10,
  MOST_BLOCK_BYTES = 256 /* 16 + 11 bits, and 63 times 16 + 10, are 209 bytes */
};

typedef struct {
  uint8_t given[LONGEST_CODE + 256]; /* what it was made from: lengths and symbols, as in the file */
  int known, is_dc;
  int32_t begin[LONGEST_CODE + 1], end[LONGEST_CODE + 1]; /* the codes of each length */
  int32_t first[LONGEST_CODE + 1];                        /* and the number of the first one's symbol */
  uint16_t one[1 << WINDOW];       /* steps << 8 | bits of the next code; 0: it is longer, or none */
  uint16_t some[1 << WINDOW];      /* of as many codes as fit; AC only */
} Table;

typedef struct {
  Table dc[2], ac[2];
  uint8_t *bytes; /* of a stretch between two markers */
  int64_t room;
} Scan;

typedef struct {
  const uint8_t *next;
  uint64_t bits; /* the highest ones are next */
  int count;
} Stream;

void *scan_open(void) { return calloc(1, sizeof(Scan)); }

/* steps << 8 | bits of a symbol whose code has so many bits; 0 for one that no baseline JPEG has. */
static unsigned meaning(int symbol, int length, int is_dc) {
  int run = symbol >> 4, size = symbol & 15;
  if (is_dc) return symbol <= MOST_DC_BITS ? 1u << 8 | (length + symbol) : 0;
  if (size > MOST_AC_BITS || (size == 0 && run > 0 && run < 15)) return 0;
  int steps = size ? run + 1 : run ? BLOCK / 4 : END;
  return steps << 8 | (length + size);
}

/* From 16 counts and the symbols; 0 for what is no table. */
static int make_table(Table *table, const uint8_t *given, int symbols, int is_dc) {
  if (table->known && table->is_dc == is_dc && !memcmp(table->given, given, LONGEST_CODE + symbols)) return 1;
  table->known = 0;
  memset(table->one, 0, sizeof table->one);
  int32_t code = 0, number = 0;
  for (int length = 1; length <= LONGEST_CODE; length++, code <<= 1) {
    table->begin[length] = code;
    table->first[length] = number;
    for (int k = 0; k < given[length - 1]; k++, code++, number++) {
      if (code >= (1 << length) - 1) return 0; /* all ones is no code */
      if (is_dc && given[LONGEST_CODE + number] > MOST_DC_BITS) return 0;
      if (length > WINDOW) continue;
      unsigned entry = meaning(given[LONGEST_CODE + number], length, is_dc);
      for (int rest = 0; rest < 1 << (WINDOW - length); rest++)
        table->one[(code << (WINDOW - length)) + rest] = entry;
    }
    table->end[length] = code;
  }
  for (int window = 0; window < 1 << WINDOW && !is_dc; window++) {
    unsigned bits = 0, steps = 0, entry;
    while (bits < WINDOW && steps < END && (entry = table->one[(window << bits) & ((1 << WINDOW) - 1)])) {
      /* Only the first one's value may leave the window; and more than a block would look like its end. */
      if (steps && (bits + (entry & 255) > WINDOW || steps + (entry >> 8) % END > BLOCK)) break;
      bits += entry & 255;
      steps += entry >> 8;
    }
    table->some[window] = steps << 8 | bits;
  }
  memcpy(table->given, given, LONGEST_CODE + symbols);
  table->known = 1;
  table->is_dc = is_dc;
  return 1;
}

/* At least 56 bits are there. */
static inline void fill(Stream *stream) {
  uint64_t more;
  memcpy(&more, stream->next, sizeof more);
  stream->bits |= __builtin_bswap64(more) >> stream->count;
  stream->next += (63 - stream->count) >> 3;
  stream->count |= 56;
}

static inline void drop(Stream *stream, int bits) {
  stream->bits <<= bits;
  stream->count -= bits;
}

/* The next code alone; 0 where it is none. */
static unsigned next_code(const Table *table, const Stream *stream) {
  unsigned entry = table->one[stream->bits >> (64 - WINDOW)];
  for (int length = WINDOW + 1; !entry && length <= LONGEST_CODE; length++) {
    int32_t code = stream->bits >> (64 - length);
    if (code >= table->begin[length] && code < table->end[length])
      return meaning(table->given[LONGEST_CODE + table->first[length] + code - table->begin[length]], length,
                     table->is_dc);
  }
  return entry;
}

/* Passes over one block; 0 where that cannot be. */
static inline int pass_block(Stream *stream, const Table *dc, const Table *ac) {
  fill(stream);
  unsigned entry = next_code(dc, stream);
  if (!entry) return 0;
  drop(stream, entry & 255);
  for (unsigned place = 1, after;; place = after) {
    fill(stream);
    entry = ac->some[stream->bits >> (64 - WINDOW)];
    after = place + (entry >> 8);
    if (!entry || (after > BLOCK && (after <= END || after >= END + BLOCK))) { /* too far: not all are of this block */
      entry = next_code(ac, stream);
      after = place + (entry >> 8);
      if (!entry || (after > BLOCK && (after <= END || after >= END + BLOCK))) return 0;
    }
    drop(stream, entry & 255);
    if (after >= BLOCK) return 1;
  }
}

/* Copies what lies before the next marker, without the zeros that follow 0xFF there, and returns the marker's place;
 * NULL without one. */
static const uint8_t *copy_stretch(Scan *scan, const uint8_t *from, const uint8_t *end, int64_t *length) {
  uint8_t *to = scan->bytes;
  for (;;) {
    const uint8_t *found = memchr(from, 0xFF, end - from);
    if (!found || found + 1 >= end) return NULL;
    memcpy(to, from, found - from);
    to += found - from;
    if (found[1]) {
      *length = to - scan->bytes;
      memset(to, 0, MOST_BLOCK_BYTES);
      return found;
    }
    *to++ = 0xFF;
    from = found + 2;
  }
}

static int number(const uint8_t *at) { return at[0] << 8 | at[1]; }

typedef struct {
  int mcus, luma_blocks, restart;
  uint8_t ids[3], quantizers[3], has_quantizer[4], has_table[4]; /* DC 0 and 1, AC 0 and 1 */
} Header;

static int read_tables(Scan *scan, Header *header, const uint8_t *at, const uint8_t *end) {
  while (at < end) {
    int which = *at++, symbols = 0;
    if ((which & ~0x11) || end - at < LONGEST_CODE) return 0;
    for (int k = 0; k < LONGEST_CODE; k++) symbols += at[k];
    if (symbols > 256 || end - at < LONGEST_CODE + symbols) return 0;
    int is_dc = which < 16;
    if (!make_table(&(is_dc ? scan->dc : scan->ac)[which & 1], at, symbols, is_dc)) return 0;
    header->has_table[2 * !is_dc + (which & 1)] = 1;
    at += LONGEST_CODE + symbols;
  }
  return 1;
}

static int read_frame(Header *header, const uint8_t *at, int64_t size) {
  if (header->mcus || size != 15 || at[0] != 8 || at[5] != 3) return 0;
  int height = number(at + 1), width = number(at + 3), across = at[7] >> 4, down = at[7] & 15;
  if (!height || !width || across < 1 || across > 2 || down < 1 || down > 2) return 0;
  for (int k = 0; k < 3; k++) {
    const uint8_t *component = at + 6 + 3 * k;
    if ((k && component[1] != 0x11) || component[2] > 3) return 0;
    header->ids[k] = component[0];
    header->quantizers[k] = component[2];
  }
  const uint8_t *ids = header->ids;
  if (ids[0] == ids[1] || ids[0] == ids[2] || ids[1] == ids[2]) return 0;
  header->luma_blocks = across * down;
  header->mcus = ((width + 8 * across - 1) / (8 * across)) * ((height + 8 * down - 1) / (8 * down));
  return 1;
}

/* Follows the codes from `at`; returns what lies behind the end of the image, or NULL. */
static const uint8_t *follow(Scan *scan, const Header *header, const Table *tables[6], const uint8_t *at,
                             const uint8_t *end) {
  int done = 0, restarts = 0;
  for (;;) {
    int64_t length;
    const uint8_t *marker = copy_stretch(scan, at, end, &length);
    if (!marker) return NULL;
    int left = header->mcus - done, count = header->restart && header->restart < left ? header->restart : left;
    Stream stream = {scan->bytes, 0, 0};
    for (int mcu = 0; mcu < count; mcu++) {
      for (int k = 0; k < header->luma_blocks; k++)
        if (!pass_block(&stream, tables[0], tables[1])) return NULL;
      for (int k = 2; k < 6; k += 2)
        if (!pass_block(&stream, tables[k], tables[k + 1])) return NULL;
      if (stream.next > scan->bytes + length + 8) return NULL;
    }
    int64_t unused = 8 * length - (8 * (stream.next - scan->bytes) - stream.count);
    if (unused < 0 || unused > 7) return NULL;
    done += count;
    at = marker + 2;
    if (done == header->mcus) return marker[1] == 0xD9 ? at : NULL;
    if (marker[1] != 0xD0 + restarts++ % 8) return NULL;
  }
}

/* Length of the JPEG up to and with its end-of-image marker, when every code of it is sound; 0: cannot tell. */
int64_t scan_end(void *handle, const uint8_t *data, int64_t size) {
  Scan *scan = handle;
  Header header = {0};
  const uint8_t *at = data, *end = data + size;
  if (scan->room < size + 2 * MOST_BLOCK_BYTES * 6) {
    free(scan->bytes);
    scan->room = 2 * size + 2 * MOST_BLOCK_BYTES * 6;
    if (!(scan->bytes = malloc(scan->room))) return scan->room = 0;
  }
  if (size < 4 || at[0] != 0xFF || at[1] != 0xD8) return 0;
  for (at += 2;;) {
    if (end - at < 4 || at[0] != 0xFF) return 0;
    int marker = at[1], length = number(at + 2);
    const uint8_t *segment = at + 4;
    at += 2 + length;
    if (length < 2 || at > end) return 0;
    if (marker == 0xC0) {
      if (!read_frame(&header, segment, at - segment)) return 0;
    } else if (marker == 0xC4) {
      if (!read_tables(scan, &header, segment, at)) return 0;
    } else if (marker == 0xDB) {
      if ((at - segment) % 65) return 0;
      for (; segment < at; segment += 65) {
        if (*segment > 3) return 0;
        header.has_quantizer[*segment] = 1;
      }
    } else if (marker == 0xDD) {
      if (length != 4) return 0;
      header.restart = number(segment);
    } else if (marker == 0xE0) {
      if (length >= 9 && !memcmp(segment, "JFIF", 5) && segment[5] != 1) return 0; /* libjpeg warns */
    } else if (marker == 0xDA) {
      const Table *tables[6];
      if (!header.mcus || length != 12 || segment[0] != 3 || memcmp(segment + 7, "\0\77", 3)) return 0;
      for (int k = 0; k < 3; k++) {
        int id = segment[1 + 2 * k], dc = segment[2 + 2 * k] >> 4, ac = segment[2 + 2 * k] & 15;
        if (id != header.ids[k] || !header.has_quantizer[header.quantizers[k]]) return 0;
        if (dc > 1 || ac > 1 || !header.has_table[dc] || !header.has_table[2 + ac]) return 0;
        tables[2 * k] = &scan->dc[dc];
        tables[2 * k + 1] = &scan->ac[ac];
      }
      const uint8_t *behind = follow(scan, &header, tables, at, end);
      return behind ? behind - data : 0;
    } else if (marker != 0xFE && (marker < 0xE1 || marker > 0xEF)) {
      return 0;
    }
  }
}
