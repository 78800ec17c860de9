/* Prototype: 4:2:0 baseline, no restarts. */
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef WINDOW
#define WINDOW 12
#endif
#ifndef PASS_WINDOW
#define PASS_WINDOW 12
#endif

enum { LONGEST_CODE = 16, BLOCK = 64, END = 128, DUMMY = 128, MOST_MCUS = 256, PAIR = 8 * 16 + 16 };

typedef int16_t S16 __attribute__((vector_size(32)));
typedef int32_t S32 __attribute__((vector_size(32)));
typedef uint8_t U8 __attribute__((vector_size(32)));
typedef int64_t S64 __attribute__((vector_size(32)));

typedef struct {
  uint8_t given[LONGEST_CODE + 256];
  int known, is_dc;
  int32_t begin[LONGEST_CODE + 1], end[LONGEST_CODE + 1], first[LONGEST_CODE + 1];
  uint16_t one[1 << WINDOW];  /* length << 8 | symbol; 0xFFFF: none */
  uint32_t two[1 << WINDOW];  /* AC: see make_two; DC: bits | size << 10 | length << 14 */
  uint16_t some[1 << PASS_WINDOW]; /* AC: bits | advance << 8 */
} Table;

typedef struct {
  const uint8_t *next;
  uint64_t bits;
  int count;
} Stream;

typedef struct {
  Table dc[2], ac[2];
  uint8_t *bytes;
  int64_t room, length;
  int16_t quant[4][64]; /* natural order */
  S16 pairs[2][8];      /* quantizers of luma|luma, blue|red */
  int16_t coefs[PAIR] __attribute__((aligned(64)));
  uint8_t luma[32][MOST_MCUS * 16 + 64] __attribute__((aligned(64)));
  uint8_t chroma[2][16][MOST_MCUS * 8 + 64] __attribute__((aligned(64)));
  int16_t sums[2][MOST_MCUS * 8 + 128] __attribute__((aligned(64)));
  const Table *tables[6];
  Stream stream;
  int height, width, across, down; /* pixels; MCUs */
  int predicted[3];
  int row;                 /* MCU rows that are read */
  int top, left, right, y; /* of the box, next row */
  int first, last;         /* MCU columns shown */
  int bad;
} Decoder;

void *fast_open(void) { void *p = NULL; if (posix_memalign(&p, 64, sizeof(Decoder))) return NULL; memset(p, 0, sizeof(Decoder)); return p; }

static const uint8_t ZIGZAG[64] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};
static uint8_t ORDER[384];

static void make_order(void) {
  memset(ORDER, DUMMY, sizeof ORDER);
  for (int k = 0; k < 64; k++) {
    int place = (ZIGZAG[k] >> 3) * 16 + (ZIGZAG[k] & 7);
    ORDER[k] = place;
    ORDER[END + 1 + k] = place;
  }
}

static inline int value_of(uint64_t bits, int size) {
  uint64_t value = bits >> 1 >> (63 - size);
  int64_t negative = ~((int64_t)bits >> 63);
  return (int)value - (int)(negative & ((1 << size) - 1));
}

/* AC code: 6 bits total bits, 4 run, 4 size, 4 length, 8 advance, 6 (signed) second value */
static void make_two(Table *t) {
  for (int w = 0; w < 1 << WINDOW; w++) {
    uint32_t none = 255u << 18;
    unsigned one = t->one[w];
    t->two[w] = none;
    if (one == 0xFFFF) continue;
    int length = one >> 8, run = (one >> 4) & 15, size = one & 15;
    if (size > 10 || (size == 0 && run > 0 && run < 15)) continue;
    if (size == 0 && run == 0) {
      t->two[w] = length | (END + 2u) << 18; /* length field 0, size 0: writes 0 */
      continue;
    }
    int steps = run + 1, bits = length + size, second = 0, end = 0;
    for (int n = 0; n < 2 && bits < WINDOW; n++) {
      unsigned next = t->one[(w << bits) & ((1 << WINDOW) - 1)];
      if (next == 0xFFFF) break;
      int l = next >> 8, r = (next >> 4) & 15, s = next & 15;
      if (bits + l + s > WINDOW) break;
      if (s == 0 && r == 0) { end = END + 1; bits += l; break; }
      if (n || s == 0 || s > 5) break;
      second = value_of((uint64_t)w << (64 - WINDOW) << (bits + l), s);
      steps += r + 1;
      bits += l + s;
    }
    t->two[w] = bits | run << 6 | size << 10 | length << 14 | (uint32_t)(steps + end) << 18 | (uint32_t)second << 26;
  }
}

static void make_some(Table *t) {
  for (int w = 0; w < 1 << PASS_WINDOW; w++) {
    int bits = 0, steps = 0;
    while (bits < PASS_WINDOW && steps < END) {
      unsigned rest = (w << bits) & ((1 << PASS_WINDOW) - 1);
      unsigned one = t->one[PASS_WINDOW >= WINDOW ? rest >> (PASS_WINDOW - WINDOW) : rest << (WINDOW - PASS_WINDOW)];
      if (one == 0xFFFF) break;
      int l = one >> 8, r = (one >> 4) & 15, s = one & 15;
      if (s > 10 || (s == 0 && r > 0 && r < 15)) break;
      int more = s ? r + 1 : r ? 16 : END;
      if (bits + l > PASS_WINDOW) break;
      if (steps && (bits + l + s > PASS_WINDOW || steps + more % END > BLOCK)) break;
      bits += l + s;
      steps += more;
    }
    t->some[w] = steps ? bits | steps << 8 : 255 << 8;
  }
}

static int make_table(Table *t, const uint8_t *given, int symbols, int is_dc) {
  if (t->known && t->is_dc == is_dc && !memcmp(t->given, given, LONGEST_CODE + symbols)) return 1;
  t->known = 0;
  memset(t->one, 0xFF, sizeof t->one);
  int32_t code = 0, number = 0;
  for (int length = 1; length <= LONGEST_CODE; length++, code <<= 1) {
    t->begin[length] = code;
    t->first[length] = number;
    for (int k = 0; k < given[length - 1]; k++, code++, number++) {
      if (code >= (1 << length) - 1) return 0;
      if (is_dc && given[LONGEST_CODE + number] > 11) return 0;
      if (length > WINDOW) continue;
      for (int rest = 0; rest < 1 << (WINDOW - length); rest++)
        t->one[(code << (WINDOW - length)) + rest] = length << 8 | given[LONGEST_CODE + number];
    }
    t->end[length] = code;
  }
  memcpy(t->given, given, LONGEST_CODE + symbols);
  if (is_dc) {
    for (int w = 0; w < 1 << WINDOW; w++) {
      unsigned one = t->one[w];
      int size = one & 255, length = one >> 8;
      t->two[w] = one == 0xFFFF ? 0 : (length + size) | size << 10 | length << 14;
    }
  } else {
    make_two(t);
    make_some(t);
  }
  t->known = 1;
  t->is_dc = is_dc;
  return 1;
}

static inline __attribute__((always_inline)) void fill(Stream *s) {
  uint64_t more;
  memcpy(&more, s->next, sizeof more);
  s->bits |= __builtin_bswap64(more) >> s->count;
  s->next += (63 - s->count) >> 3;
  s->count |= 56;
}

static inline __attribute__((always_inline)) void drop(Stream *s, unsigned bits) {
  s->bits <<= bits & 63;
  s->count -= bits & 63;
}

/* length << 8 | symbol of the next code, 0 for none */
static __attribute__((noinline)) unsigned next_code(const Table *t, uint64_t bits) {
  unsigned one = t->one[bits >> (64 - WINDOW)];
  if (one != 0xFFFF) return one;
  for (int length = WINDOW + 1; length <= LONGEST_CODE; length++) {
    int32_t code = bits >> (64 - length);
    if (code >= t->begin[length] && code < t->end[length])
      return length << 8 | t->given[LONGEST_CODE + t->first[length] + code - t->begin[length]];
  }
  return 0;
}

static inline __attribute__((always_inline)) int dc_difference(Stream *s, const Table *t, int *difference) {
  uint32_t e = t->two[s->bits >> (64 - WINDOW)];
  if (__builtin_expect(!e, 0)) {
    unsigned code = next_code(t, s->bits);
    if (!code) return 0;
    e = ((code >> 8) + (code & 15)) | (code & 15) << 10 | (code >> 8) << 14;
  }
  *difference = value_of(s->bits << (e >> 14 & 31), e >> 10 & 15);
  drop(s, e);
  return 1;
}

/* Returns 0 for a fault, else 1 + the last coefficient's place (about) */
static inline __attribute__((always_inline)) int decode_block(Stream *stream, const Table *dc, const Table *ac,
                                                              int *predicted, int16_t *to) {
  Stream s = *stream;
  int difference;
  fill(&s);
  if (!dc_difference(&s, dc, &difference)) return 0;
  to[0] = *predicted += difference;
  unsigned place = 1, after;
  uint32_t e;
  for (;;) {
    uint64_t bits;
#define STEP                                                                                 \
  bits = s.bits;                                                                             \
  e = ac->two[bits >> (64 - WINDOW)];                                                        \
  after = place + (e >> 18 & 255);                                                           \
  to[ORDER[after - 1]] = (int32_t)e >> 26;                                                   \
  to[ORDER[place + (e >> 6 & 15)]] = value_of(bits << (e >> 14 & 15), e >> 10 & 15);         \
  if (after >= BLOCK) {                                                                      \
    if (after == BLOCK || (after > END && after < END + BLOCK + 1)) {                        \
      drop(&s, e);                                                                           \
      break;                                                                                 \
    }                                                                                        \
    unsigned code = next_code(ac, bits);                                                     \
    unsigned run = code >> 4 & 15, size = code & 15, length = code >> 8;                     \
    if (!code || size > 10) return 0;                                                        \
    drop(&s, length + size);                                                                 \
    if (size == 0 && run < 15) {                                                             \
      if (run) return 0;                                                                     \
      after = place + END + 1;                                                               \
      break;                                                                                 \
    }                                                                                        \
    after = place + run + 1;                                                                 \
    if (after > BLOCK) return 0;                                                             \
    to[ORDER[after - 1]] = value_of(bits << length, size);                                   \
    if (after == BLOCK) break;                                                               \
  } else                                                                                     \
    drop(&s, e);                                                                             \
  place = after;
    STEP
    fill(&s);
    STEP
  }
  *stream = s;
  return after == BLOCK ? 64 : after - END;
}

static inline __attribute__((always_inline)) int pass_block(Stream *stream, const Table *dc, const Table *ac,
                                                            int *predicted) {
  Stream s = *stream;
  int difference;
  fill(&s);
  if (!dc_difference(&s, dc, &difference)) return 0;
  *predicted += difference;
  unsigned place = 1, after, e;
  for (;;) {
#define PASS                                                                             \
  e = ac->some[s.bits >> (64 - PASS_WINDOW)];                                            \
  after = place + (e >> 8);                                                              \
  if (after >= BLOCK) {                                                                  \
    if (after == BLOCK || (after > END && after < END + BLOCK)) {                        \
      drop(&s, e);                                                                       \
      break;                                                                             \
    }                                                                                    \
    unsigned code = next_code(ac, s.bits);                                               \
    unsigned run = code >> 4 & 15, size = code & 15;                                     \
    if (!code || size > 10) return 0;                                                    \
    drop(&s, (code >> 8) + size);                                                        \
    if (size == 0 && run < 15) {                                                         \
      if (run) return 0;                                                                 \
      break;                                                                             \
    }                                                                                    \
    after = place + run + 1;                                                             \
    if (after > BLOCK) return 0;                                                         \
    if (after == BLOCK) break;                                                           \
  } else                                                                                 \
    drop(&s, e);                                                                         \
  place = after;
    PASS
    fill(&s);
    PASS
  }
  *stream = s;
  return 1;
}

/* ------------------------------------------------ inverse DCT ------------------------------------------------ */

#define LO16(a, b) __builtin_shuffle(a, b, (S16){0, 16, 1, 17, 2, 18, 3, 19, 8, 24, 9, 25, 10, 26, 11, 27})
#define HI16(a, b) __builtin_shuffle(a, b, (S16){4, 20, 5, 21, 6, 22, 7, 23, 12, 28, 13, 29, 14, 30, 15, 31})
#define LO32(a, b) __builtin_shuffle((S32)(a), (S32)(b), (S32){0, 8, 1, 9, 4, 12, 5, 13})
#define HI32(a, b) __builtin_shuffle((S32)(a), (S32)(b), (S32){2, 10, 3, 11, 6, 14, 7, 15})
#define LO64(a, b) __builtin_shuffle((S64)(a), (S64)(b), (S64){0, 4, 2, 6})
#define HI64(a, b) __builtin_shuffle((S64)(a), (S64)(b), (S64){1, 5, 3, 7})
#define LO8(a, b) ((U8)_mm256_unpacklo_epi8((__m256i)(a), (__m256i)(b)))
#define HI8(a, b) ((U8)_mm256_unpackhi_epi8((__m256i)(a), (__m256i)(b)))

static inline S32 madd(S16 pairs, int a, int b) {
  return (S32)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi32((a & 0xFFFF) | (uint32_t)b << 16));
}
static inline S16 pack32(S32 a, S32 b) { return (S16)_mm256_packs_epi32((__m256i)a, (__m256i)b); }

static inline __attribute__((always_inline)) void half(S16 p04, S16 p26, S16 p13, S16 p57, int shift, S32 out[8]) {
  S32 t0 = madd(p04, 8192, 8192) + (1 << (shift - 1)), t1 = madd(p04, 8192, -8192) + (1 << (shift - 1));
  S32 t3 = madd(p26, 10703, 4433), t2 = madd(p26, 4433, -10704);
  S32 e0 = t0 + t3, e3 = t0 - t3, e1 = t1 + t2, e2 = t1 - t2;
  S32 o3 = madd(p13, 11363, 9633) + madd(p57, 6437, 2260);
  S32 o2 = madd(p13, 9633, -2259) + madd(p57, -11362, -6436);
  S32 o1 = madd(p13, 6437, -11362) + madd(p57, 2261, 9633);
  S32 o0 = madd(p13, 2260, -6436) + madd(p57, 9633, -11363);
  out[0] = (e0 + o3) >> shift, out[7] = (e0 - o3) >> shift;
  out[1] = (e1 + o2) >> shift, out[6] = (e1 - o2) >> shift;
  out[2] = (e2 + o1) >> shift, out[5] = (e2 - o1) >> shift;
  out[3] = (e3 + o0) >> shift, out[4] = (e3 - o0) >> shift;
}

static inline __attribute__((always_inline)) void one_way(S16 v[8], int shift) {
  S32 lo[8], hi[8];
  half(LO16(v[0], v[4]), LO16(v[2], v[6]), LO16(v[1], v[3]), LO16(v[5], v[7]), shift, lo);
  half(HI16(v[0], v[4]), HI16(v[2], v[6]), HI16(v[1], v[3]), HI16(v[5], v[7]), shift, hi);
  for (int k = 0; k < 8; k++) v[k] = pack32(lo[k], hi[k]);
}

static inline __attribute__((always_inline)) void transpose(S16 v[8]) {
  S16 a0 = LO16(v[0], v[1]), a1 = HI16(v[0], v[1]), a2 = LO16(v[2], v[3]), a3 = HI16(v[2], v[3]);
  S16 a4 = LO16(v[4], v[5]), a5 = HI16(v[4], v[5]), a6 = LO16(v[6], v[7]), a7 = HI16(v[6], v[7]);
  S32 b0 = LO32(a0, a2), b1 = HI32(a0, a2), b2 = LO32(a1, a3), b3 = HI32(a1, a3);
  S32 b4 = LO32(a4, a6), b5 = HI32(a4, a6), b6 = LO32(a5, a7), b7 = HI32(a5, a7);
  v[0] = (S16)LO64(b0, b4), v[1] = (S16)HI64(b0, b4), v[2] = (S16)LO64(b1, b5), v[3] = (S16)HI64(b1, b5);
  v[4] = (S16)LO64(b2, b6), v[5] = (S16)HI64(b2, b6), v[6] = (S16)LO64(b3, b7), v[7] = (S16)HI64(b3, b7);
}

/* Two blocks -> rows 2k and 2k + 1 of the first in the low lane of out[k], of the second in the high lane. */
static inline __attribute__((always_inline)) void inverse(int16_t *coefs, const S16 quant[8], U8 out[4]) {
  S16 v[8];
  for (int k = 0; k < 8; k++) v[k] = ((S16 *)coefs)[k] * quant[k];
  for (int k = 0; k < 8; k++) ((S16 *)coefs)[k] = (S16){0};
  one_way(v, 11);
  transpose(v);
  one_way(v, 18);
  __m256i p[4];
  for (int k = 0; k < 4; k++)
    p[k] = _mm256_xor_si256(_mm256_packs_epi16((__m256i)v[k], (__m256i)v[k + 4]), _mm256_set1_epi8(-128));
  S16 a0 = (S16)LO8(p[0], p[1]), a1 = (S16)HI8(p[0], p[1]), a2 = (S16)LO8(p[2], p[3]), a3 = (S16)HI8(p[2], p[3]);
  S16 b0 = LO16(a0, a2), b1 = HI16(a0, a2), b2 = LO16(a1, a3), b3 = HI16(a1, a3);
  out[0] = (U8)LO32(b0, b2), out[1] = (U8)HI32(b0, b2), out[2] = (U8)LO32(b1, b3), out[3] = (U8)HI32(b1, b3);
}

static inline __attribute__((always_inline)) void luma_pair(Decoder *d, int16_t *coefs, uint8_t *to) {
  U8 out[4];
  int64_t stride = sizeof d->luma[0];
  inverse(coefs, d->pairs[0], out);
  for (int k = 0; k < 4; k++) {
    __m256i rows = _mm256_permute4x64_epi64((__m256i)out[k], 0xD8);
    _mm_storeu_si128((__m128i *)(to + 2 * k * stride), _mm256_castsi256_si128(rows));
    _mm_storeu_si128((__m128i *)(to + (2 * k + 1) * stride), _mm256_extracti128_si256(rows, 1));
  }
}

static inline __attribute__((always_inline)) void chroma_pair(Decoder *d, int16_t *coefs, uint8_t *blue, uint8_t *red) {
  U8 out[4];
  int64_t stride = sizeof d->chroma[0][0];
  inverse(coefs, d->pairs[1], out);
  for (int k = 0; k < 4; k++) {
    int64_t parts[4];
    memcpy(parts, &out[k], 32);
    S64 v = (S64)out[k];
    *(int64_t *)(blue + 2 * k * stride) = v[0];
    *(int64_t *)(blue + (2 * k + 1) * stride) = v[1];
    *(int64_t *)(red + 2 * k * stride) = v[2];
    *(int64_t *)(red + (2 * k + 1) * stride) = v[3];
  }
}

/* ------------------------------------------------ a row of MCUs ------------------------------------------------ */

static int pass_mcus(Decoder *d, Stream *stream, int count) {
  Stream s = *stream;
  int predicted[3] = {d->predicted[0], d->predicted[1], d->predicted[2]};
  for (int mcu = 0; mcu < count; mcu++) {
    for (int k = 0; k < 6; k++) {
      int c = k < 4 ? 0 : k - 3;
      if (!pass_block(&s, d->tables[2 * c], d->tables[2 * c + 1], &predicted[c])) return 0;
    }
    if (s.next > d->bytes + d->length + 8) return 0;
  }
  memcpy(d->predicted, predicted, sizeof predicted);
  *stream = s;
  return 1;
}

static int show_mcus(Decoder *d, Stream *stream, int count) {
  Stream s = *stream;
  int row = d->row;
  uint8_t *luma = &d->luma[(row & 1) * 16][d->first * 16];
  uint8_t *blue = &d->chroma[0][(row & 1) * 8][d->first * 8], *red = &d->chroma[1][(row & 1) * 8][d->first * 8];
  int16_t *coefs = d->coefs;
  for (int mcu = 0; mcu < count; mcu++, luma += 16, blue += 8, red += 8) {
    for (int k = 0; k < 6; k++) {
      int c = k < 4 ? 0 : k - 3;
      if (!decode_block(&s, d->tables[2 * c], d->tables[2 * c + 1], &d->predicted[c], coefs + 8 * (k & 1))) return 0;
#ifndef NO_IDCT
      if (k == 1) luma_pair(d, coefs, luma);
      if (k == 3) luma_pair(d, coefs, luma + 8 * sizeof d->luma[0]);
      if (k == 5) chroma_pair(d, coefs, blue, red);
#else
      if (k & 1) for (int j = 0; j < 8; j++) ((S16 *)coefs)[j] = (S16){0};
#endif
    }
    if (s.next > d->bytes + d->length + 8) return 0;
  }
  *stream = s;
  return 1;
}

static int next_mcu_row(Decoder *d, int show) {
  Stream s = d->stream;
  if (!show) {
    if (!pass_mcus(d, &s, d->across)) return 0;
  } else {
    if (!pass_mcus(d, &s, d->first) || !show_mcus(d, &s, d->last + 1 - d->first) ||
        !pass_mcus(d, &s, d->across - d->last - 1))
      return 0;
  }
  d->stream = s;
  d->row++;
  return 1;
}

/* ------------------------------------------------ colors ------------------------------------------------ */

static inline S16 load16(const int16_t *p) { return (S16)_mm256_loadu_si256((const __m256i *)p); }
static inline S16 mulhi(S16 a, int b) { return (S16)_mm256_mulhi_epi16((__m256i)a, _mm256_set1_epi16(b)); }

static inline __attribute__((always_inline)) void color(S16 y, S16 cb, S16 cr, S16 *r, S16 *g, S16 *b) {
  *r = y + cr + ((mulhi(cr + cr, 26345) + 1) >> 1);
  *b = y + cb + cb + ((mulhi(cb + cb, -14942) + 1) >> 1);
  S32 lo = (madd(LO16(cb, cr), -22554, 18734) + 32768) >> 16, hi = (madd(HI16(cb, cr), -22554, 18734) + 32768) >> 16;
  *g = y - cr + pack32(lo, hi);
}

static void color_row(const uint8_t *luma, const int16_t *blue, const int16_t *red, uint32_t *out, int pixels) {
  for (int x = 0; x < pixels; x += 32, luma += 32, blue += 16, red += 16, out += 32) {
    S16 y = (S16)_mm256_loadu_si256((const __m256i *)luma);
    S16 b3 = load16(blue), r3 = load16(red);
    b3 = b3 + b3 + b3, r3 = r3 + r3 + r3;
    S16 be = ((b3 + load16(blue - 1) + 8) >> 4) - 128, bo = ((b3 + load16(blue + 1) + 7) >> 4) - 128;
    S16 re = ((r3 + load16(red - 1) + 8) >> 4) - 128, ro = ((r3 + load16(red + 1) + 7) >> 4) - 128;
    S16 R0, G0, B0, R1, G1, B1;
    color(y & 255, be, re, &R0, &G0, &B0);
    color((S16)_mm256_srli_epi16((__m256i)y, 8), bo, ro, &R1, &G1, &B1);
    __m256i R = _mm256_packus_epi16((__m256i)R0, (__m256i)R1), G = _mm256_packus_epi16((__m256i)G0, (__m256i)G1);
    __m256i B = _mm256_packus_epi16((__m256i)B0, (__m256i)B1), X = _mm256_set1_epi8(-1);
    S16 rg0 = (S16)LO8(R, G), rg1 = (S16)HI8(R, G), bx0 = (S16)LO8(B, X), bx1 = (S16)HI8(B, X);
    S16 e0 = LO16(rg0, bx0), e1 = HI16(rg0, bx0), o0 = LO16(rg1, bx1), o1 = HI16(rg1, bx1);
    __m256i v0 = (__m256i)LO32(e0, o0), v1 = (__m256i)HI32(e0, o0);
    __m256i v2 = (__m256i)LO32(e1, o1), v3 = (__m256i)HI32(e1, o1);
    _mm256_storeu_si256((__m256i *)out, _mm256_permute2x128_si256(v0, v1, 0x20));
    _mm256_storeu_si256((__m256i *)(out + 8), _mm256_permute2x128_si256(v2, v3, 0x20));
    _mm256_storeu_si256((__m256i *)(out + 16), _mm256_permute2x128_si256(v0, v1, 0x31));
    _mm256_storeu_si256((__m256i *)(out + 24), _mm256_permute2x128_si256(v2, v3, 0x31));
  }
}

static int min(int a, int b) { return a < b ? a : b; }
static int max(int a, int b) { return a > b ? a : b; }

int fast_rows(void *handle, uint32_t *pixels, int64_t stride, int count) {
  Decoder *d = handle;
  int wide = (d->width + 1) / 2, high = (d->height + 1) / 2;
  int begin = d->left / 2, end = min((d->right - 1) / 2 + 1, wide); /* columns of chroma */
  for (int k = 0; k < count; k++, d->y++) {
    int near = d->y >> 1, far = min(max(d->y & 1 ? near + 1 : near - 1, 0), high - 1);
    while (d->row <= max(near, far) >> 3)
      if (!next_mcu_row(d, 1)) return 1;
#ifdef NO_COLOR
    continue;
#endif
    int from = max(begin - 1, 0), to = min(end + 1, wide);
    for (int c = 0; c < 2; c++) {
      const uint8_t *a = d->chroma[c][near & 15], *b = d->chroma[c][far & 15];
      int16_t *sums = d->sums[c] + 32;
      for (int x = from; x < to; x += 16)
        for (int j = x; j < x + 16; j++) sums[j] = 3 * a[j] + b[j];
      sums[-1] = sums[0];
      sums[wide] = sums[wide - 1];
    }
    color_row(d->luma[d->y & 31] + 2 * begin, d->sums[0] + 32 + begin, d->sums[1] + 32 + begin,
              pixels + k * stride + 2 * begin, d->right - 2 * begin);
  }
  return 0;
}

/* ------------------------------------------------ header ------------------------------------------------ */

static int64_t copy_stretch(Decoder *d, const uint8_t *from, const uint8_t *end) {
  uint8_t *to = d->bytes;
  for (;;) {
    const uint8_t *found = memchr(from, 0xFF, end - from);
    if (!found || found + 1 >= end) return -1;
    memcpy(to, from, found - from);
    to += found - from;
    if (found[1]) {
      d->length = to - d->bytes;
      memset(to, 0, 256);
      return 0;
    }
    *to++ = 0xFF;
    from = found + 2;
  }
}

static int number(const uint8_t *at) { return at[0] << 8 | at[1]; }

int fast_begin(void *handle, const uint8_t *data, int64_t size, int top, int left, int right) {
  Decoder *d = handle;
  const uint8_t *at = data + 2, *end = data + size;
  int quantizers[3];
  if (!ORDER[1]) make_order();
  if (d->room < size + 4096) {
    free(d->bytes);
    d->room = 2 * size + 4096;
    d->bytes = malloc(d->room);
  }
  for (;;) {
    int marker = at[1], length = number(at + 2);
    const uint8_t *segment = at + 4;
    at += 2 + length;
    if (at > end) return 1;
    if (marker == 0xC0) {
      if (length != 17 || segment[7] != 0x22 || segment[10] != 0x11 || segment[13] != 0x11) return 1;
      d->height = number(segment + 1), d->width = number(segment + 3);
      for (int k = 0; k < 3; k++) quantizers[k] = segment[8 + 3 * k] & 3;
      d->across = (d->width + 15) / 16, d->down = (d->height + 15) / 16;
      if (d->across > MOST_MCUS) return 1;
    } else if (marker == 0xC4) {
      while (segment < at) {
        int which = *segment++, symbols = 0;
        for (int k = 0; k < 16; k++) symbols += segment[k];
        if (symbols > 256 || (which & ~0x11)) return 1;
        if (!make_table(&(which < 16 ? d->dc : d->ac)[which & 1], segment, symbols, which < 16)) return 1;
        segment += 16 + symbols;
      }
    } else if (marker == 0xDB) {
      for (; segment < at; segment += 65) {
        for (int k = 0; k < 64; k++) d->quant[*segment & 3][ZIGZAG[k]] = segment[1 + k];
      }
    } else if (marker == 0xDA) {
      for (int k = 0; k < 3; k++) {
        d->tables[2 * k] = &d->dc[segment[2 + 2 * k] >> 4 & 1];
        d->tables[2 * k + 1] = &d->ac[segment[2 + 2 * k] & 1];
      }
      break;
    } else if (marker == 0xDD || (marker > 0xC0 && marker < 0xD0)) {
      return 1;
    }
  }
  for (int k = 0; k < 8; k++)
    for (int j = 0; j < 8; j++) {
      d->pairs[0][k][j] = d->pairs[0][k][j + 8] = d->quant[quantizers[0]][8 * k + j];
      d->pairs[1][k][j] = d->quant[quantizers[1]][8 * k + j];
      d->pairs[1][k][j + 8] = d->quant[quantizers[2]][8 * k + j];
    }
  if (copy_stretch(d, at, end)) return 1;
  d->stream = (Stream){d->bytes, 0, 0};
  memset(d->predicted, 0, sizeof d->predicted);
  d->row = 0, d->top = d->y = top, d->left = left, d->right = right;
  int wide = (d->width + 1) / 2;
  d->first = max(left / 2 - 1, 0) / 8;
  d->last = min((right - 1) / 2 + 1, wide - 1) / 8;
  int first_row = max((top & 1) ? top / 2 : top / 2 - 1, 0) / 8;
  while (d->row < first_row)
    if (!next_mcu_row(d, 0)) return 1;
  return 0;
}

/* Only the codes: 0 passes over all, 1 decodes all into coefficients */
int fast_codes(void *handle, const uint8_t *data, int64_t size, int coefficients) {
  Decoder *d = handle;
  if (fast_begin(handle, data, size, 0, 0, 1)) return 1;
  d->first = 0, d->last = d->across - 1;
  while (d->row < d->down)
    if (!next_mcu_row(d, coefficients)) return 1;
  return 0;
}
