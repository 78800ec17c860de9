/* Coefficients -> samples -> RGBX pixels, in vectors of 32 bytes: the arithmetic of libjpeg-turbo's accurate inverse DCT,
 * its "fancy" upsampling and its conversion from YCbCr, to the bit.
 *
 * Compilers know these vectors on every machine. Four operations they have no word for are AVX2's, or are put together. */

#include <stdint.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

typedef int16_t S16 __attribute__((vector_size(32)));
typedef uint16_t U16 __attribute__((vector_size(32)));
typedef int32_t S32 __attribute__((vector_size(32)));
typedef int64_t S64 __attribute__((vector_size(32)));
typedef uint8_t U8 __attribute__((vector_size(32)));
typedef int64_t Anywhere __attribute__((vector_size(32), aligned(1), may_alias));

#ifdef __clang__
#define SHUFFLE(type, a, b, ...) (type) __builtin_shufflevector((type)(a), (type)(b), __VA_ARGS__)
#else
#define SHUFFLE(type, a, b, ...) __builtin_shuffle((type)(a), (type)(b), (type){__VA_ARGS__})
#endif
/* The first or second halves of both lanes (16 bytes), element by element in turn. */
#define LO8(a, b) SHUFFLE(U8, a, b, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, \
                          16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55)
#define HI8(a, b) SHUFFLE(U8, a, b, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47, \
                          24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63)
#define LO16(a, b) SHUFFLE(S16, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 8, 24, 9, 25, 10, 26, 11, 27)
#define HI16(a, b) SHUFFLE(S16, a, b, 4, 20, 5, 21, 6, 22, 7, 23, 12, 28, 13, 29, 14, 30, 15, 31)
#define LO32(a, b) SHUFFLE(S32, a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define HI32(a, b) SHUFFLE(S32, a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define LO64(a, b) SHUFFLE(S64, a, b, 0, 4, 2, 6)
#define HI64(a, b) SHUFFLE(S64, a, b, 1, 5, 3, 7)

#ifdef __AVX2__
/* Of each pair of numbers: first * a + second * b. */
INLINE S32 weigh(S16 pairs, int a, int b) {
  return (S32)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi32((a & 0xFFFF) | (uint32_t)b << 16));
}
/* 32 bits -> 16, and 16 -> 8 without a sign, clipped. Lane by lane, a's before b's. */
INLINE S16 pack32(S32 a, S32 b) { return (S16)_mm256_packs_epi32((__m256i)a, (__m256i)b); }
INLINE U8 pack16(S16 a, S16 b) { return (U8)_mm256_packus_epi16((__m256i)a, (__m256i)b); }
/* a * b >> 16 */
INLINE S16 high(S16 a, int b) { return (S16)_mm256_mulhi_epi16((__m256i)a, _mm256_set1_epi16(b)); }
#else
INLINE S32 weigh(S16 pairs, int a, int b) { return ((S32)pairs << 16 >> 16) * a + ((S32)pairs >> 16) * b; }
INLINE S16 pack32(S32 a, S32 b) {
  S32 a1 = (a > 32767) | (a < -32768), b1 = (b > 32767) | (b < -32768);
  a = (a & ~a1) | (((a >> 31) ^ 32767) & a1), b = (b & ~b1) | (((b >> 31) ^ 32767) & b1);
  return SHUFFLE(S16, a, b, 0, 2, 4, 6, 16, 18, 20, 22, 8, 10, 12, 14, 24, 26, 28, 30);
}
INLINE U8 pack16(S16 a, S16 b) {
  a = (a | (S16)(a > 255)) & ~(a >> 15), b = (b | (S16)(b > 255)) & ~(b >> 15);
  return SHUFFLE(U8, a, b, 0, 2, 4, 6, 8, 10, 12, 14, 32, 34, 36, 38, 40, 42, 44, 46,
                 16, 18, 20, 22, 24, 26, 28, 30, 48, 50, 52, 54, 56, 58, 60, 62);
}
INLINE S16 high(S16 a, int b) {
  return (S16)((((S32)a << 16 >> 16) * b >> 16 & 0xFFFF) | (((S32)a >> 16) * b & (int)0xFFFF0000));
}
#endif

/* ------------------------------------------------ inverse DCT ------------------------------------------------ */

/* One dimension of half of the columns, whose places 0 and 4, 2 and 6, 1 and 3, 5 and 7 are interleaved. The constants
 * are sums of jidctint's, times 8192. add: to all results. */
INLINE void half(S16 p04, S16 p26, S16 p13, S16 p57, int shift, int add, S32 out[8]) {
  int bias = (add << shift) + (1 << (shift - 1));
  S32 t0 = weigh(p04, 8192, 8192) + bias, t1 = weigh(p04, 8192, -8192) + bias;
  S32 t3 = weigh(p26, 10703, 4433), t2 = weigh(p26, 4433, -10704);
  S32 e0 = t0 + t3, e3 = t0 - t3, e1 = t1 + t2, e2 = t1 - t2;
  S32 o3 = weigh(p13, 11363, 9633) + weigh(p57, 6437, 2260);
  S32 o2 = weigh(p13, 9633, -2259) + weigh(p57, -11362, -6436);
  S32 o1 = weigh(p13, 6437, -11362) + weigh(p57, 2261, 9633);
  S32 o0 = weigh(p13, 2260, -6436) + weigh(p57, 9633, -11363);
  out[0] = (e0 + o3) >> shift, out[7] = (e0 - o3) >> shift;
  out[1] = (e1 + o2) >> shift, out[6] = (e1 - o2) >> shift;
  out[2] = (e2 + o1) >> shift, out[5] = (e2 - o1) >> shift;
  out[3] = (e3 + o0) >> shift, out[4] = (e3 - o0) >> shift;
}

INLINE void columns(S16 v[8], int shift, int add) {
  S32 low[8], high[8];
  half(v[0], v[2], v[4], v[6], shift, add, low);
  half(v[1], v[3], v[5], v[7], shift, add, high);
  for (int k = 0; k < 8; k++) v[k] = pack32(low[k], high[k]);
}

/* Rows of pairs of columns -> pairs of rows. */
INLINE void transpose(S16 v[8]) {
  S32 a0 = LO32(v[0], v[1]), a1 = LO32(v[2], v[3]), a2 = LO32(v[4], v[5]), a3 = LO32(v[6], v[7]);
  S32 b0 = HI32(v[0], v[1]), b1 = HI32(v[2], v[3]), b2 = HI32(v[4], v[5]), b3 = HI32(v[6], v[7]);
  v[0] = (S16)LO64(a0, a1), v[1] = (S16)LO64(a2, a3), v[2] = (S16)HI64(a0, a1), v[3] = (S16)HI64(a2, a3);
  v[4] = (S16)LO64(b0, b1), v[5] = (S16)LO64(b2, b3), v[6] = (S16)HI64(b0, b1), v[7] = (S16)HI64(b2, b3);
}

/* Two blocks, one in each lane, which become zeros -> samples: rows 2k and 2k + 1 of the first block in the low lane of
 * out[k], of the second in the high one. Returns something else than zeros where a coefficient is not within -most and
 * most - 1 (a power of 2; times its quantizer, at most 16384), or a sum not within 16 bits: there libjpeg's results are
 * those of its machine's code. */
INLINE S16 inverse(S16 coefficients[8], const S16 quantizers[8], int16_t most, U8 out[4]) {
  S16 v[8], beyond = {0}, beyond2 = {0};
  for (int k = 0; k < 8; k++) {
    S16 c = coefficients[k];
    beyond |= c + most;
    v[k] = c * quantizers[k];
    coefficients[k] = (S16){0};
  }
  columns(v, 11, 0);
  for (int k = 0; k < 8; k++) beyond2 |= v[k] + 16384;
  transpose(v);
  columns(v, 18, 128);
  U8 p[4];
  for (int k = 0; k < 4; k++) p[k] = pack16(v[k], v[k + 4]);
  S16 a0 = (S16)LO8(p[0], p[1]), a1 = (S16)HI8(p[0], p[1]), a2 = (S16)LO8(p[2], p[3]), a3 = (S16)HI8(p[2], p[3]);
  S16 b0 = LO16(a0, a2), b1 = HI16(a0, a2), b2 = LO16(a1, a3), b3 = HI16(a1, a3);
  out[0] = (U8)LO32(b0, b2), out[1] = (U8)HI32(b0, b2), out[2] = (U8)LO32(b1, b3), out[3] = (U8)HI32(b1, b3);
  return (beyond & (int16_t)(-2 * most)) | (beyond2 & (int16_t)-32768);
}

/* ------------------------------------------------ colors ------------------------------------------------ */

INLINE void color(S16 y, S16 cb, S16 cr, S16 *red, S16 *green, S16 *blue) {
  *red = y + cr + ((high(cr + cr, 26345) + 1) >> 1);
  *blue = y + cb + cb + ((high(cb + cb, -14942) + 1) >> 1);
  S32 low = (weigh(LO16(cb, cr), -22554, 18734) + 32768) >> 16, top = (weigh(HI16(cb, cr), -22554, 18734) + 32768) >> 16;
  *green = y - cr + pack32(low, top);
}

/* 32 pixels, of which the even and odd ones are apart. */
INLINE void put_pixels(S16 luma[2], S16 blue[2], S16 red[2], uint32_t *out) {
  S16 r[2], g[2], b[2];
  for (int k = 0; k < 2; k++) color(luma[k], blue[k] - 128, red[k] - 128, &r[k], &g[k], &b[k]);
  U8 R = pack16(r[0], r[1]), G = pack16(g[0], g[1]), B = pack16(b[0], b[1]), X = {0};
  S16 rg0 = (S16)LO8(R, G), rg1 = (S16)HI8(R, G), bx0 = (S16)LO8(B, X), bx1 = (S16)HI8(B, X);
  S16 e0 = LO16(rg0, bx0), e1 = HI16(rg0, bx0), o0 = LO16(rg1, bx1), o1 = HI16(rg1, bx1);
  S64 v0 = (S64)LO32(e0, o0), v1 = (S64)HI32(e0, o0), v2 = (S64)LO32(e1, o1), v3 = (S64)HI32(e1, o1);
  Anywhere *to = (Anywhere *)out;
  to[0] = SHUFFLE(S64, v0, v1, 0, 1, 4, 5), to[1] = SHUFFLE(S64, v2, v3, 0, 1, 4, 5);
  to[2] = SHUFFLE(S64, v0, v1, 2, 3, 6, 7), to[3] = SHUFFLE(S64, v2, v3, 2, 3, 6, 7);
}

INLINE void split(const uint8_t *bytes, S16 halves[2]) {
  U16 both;
  memcpy(&both, bytes, sizeof both);
  halves[0] = (S16)(both & 255), halves[1] = (S16)(both >> 8);
}

/* Chroma of 32 pixels from 16 columns that are 4 times it, weighed 3 to 1 with their neighbors. */
INLINE void widen(const int16_t *sums, const int16_t bias[2], S16 halves[2]) {
  S16 here, before, behind;
  memcpy(&here, sums, sizeof here), memcpy(&before, sums - 1, sizeof here), memcpy(&behind, sums + 1, sizeof here);
  here = here + here + here;
  halves[0] = (here + before + bias[0]) >> 4, halves[1] = (here + behind + bias[1]) >> 4;
}
