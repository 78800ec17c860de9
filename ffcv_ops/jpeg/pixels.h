/* Coefficients -> samples -> RGBX pixels with AVX2: the arithmetic of libjpeg-turbo's accurate inverse DCT, its "fancy"
 * upsampling and its conversion from YCbCr, to the bit. */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef int16_t S16 __attribute__((vector_size(32), may_alias));
typedef uint16_t U16 __attribute__((vector_size(32)));
typedef int32_t S32 __attribute__((vector_size(32)));
typedef uint32_t U32 __attribute__((vector_size(32))); /* sums that may wrap around, in what is damaged */
typedef uint8_t U8 __attribute__((vector_size(32)));

/* The first or second halves of both lanes (16 bytes), 1 to 8 bytes from each in turn. */
#define MIX(name, a, b) _mm256_unpack##name((__m256i)(a), (__m256i)(b))

/* Of each pair of numbers: first * a + second * b. */
INLINE U32 weigh(S16 pairs, int a, int b) {
  return (U32)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi32((a & 0xFFFF) | (uint32_t)b << 16));
}

/* 32 bits -> 16, and 16 -> 8 without a sign, clipped. Lane by lane, a's before b's. */
INLINE S16 pack32(S32 a, S32 b) { return (S16)_mm256_packs_epi32((__m256i)a, (__m256i)b); }

INLINE __m256i pack16(S16 a, S16 b) { return _mm256_packus_epi16((__m256i)a, (__m256i)b); }

/* a * b >> 16 */
INLINE S16 high(S16 a, int b) { return (S16)_mm256_mulhi_epi16((__m256i)a, _mm256_set1_epi16(b)); }

/* ------------------------------------------------ inverse DCT ------------------------------------------------ */

/* One dimension of half of the columns, whose places 0 and 4, 2 and 6, 1 and 3, 5 and 7 are interleaved. The constants
 * are sums of jidctint's, times 8192. add: to all results. */
INLINE void half(S16 p04, S16 p26, S16 p13, S16 p57, int shift, int add, S32 out[8]) {
  int bias = (add << shift) + (1 << (shift - 1));
  U32 t0 = weigh(p04, 8192, 8192) + bias, t1 = weigh(p04, 8192, -8192) + bias;
  U32 t3 = weigh(p26, 10703, 4433), t2 = weigh(p26, 4433, -10704);
  U32 e0 = t0 + t3, e3 = t0 - t3, e1 = t1 + t2, e2 = t1 - t2;
  U32 o3 = weigh(p13, 11363, 9633) + weigh(p57, 6437, 2260);
  U32 o2 = weigh(p13, 9633, -2259) + weigh(p57, -11362, -6436);
  U32 o1 = weigh(p13, 6437, -11362) + weigh(p57, 2261, 9633);
  U32 o0 = weigh(p13, 2260, -6436) + weigh(p57, 9633, -11363);
  out[0] = (S32)(e0 + o3) >> shift, out[7] = (S32)(e0 - o3) >> shift;
  out[1] = (S32)(e1 + o2) >> shift, out[6] = (S32)(e1 - o2) >> shift;
  out[2] = (S32)(e2 + o1) >> shift, out[5] = (S32)(e2 - o1) >> shift;
  out[3] = (S32)(e3 + o0) >> shift, out[4] = (S32)(e3 - o0) >> shift;
}

INLINE void columns(S16 v[8], int shift, int add) {
  S32 low[8], top[8];
  half(v[0], v[2], v[4], v[6], shift, add, low);
  half(v[1], v[3], v[5], v[7], shift, add, top);
  for (int k = 0; k < 8; k++) v[k] = pack32(low[k], top[k]);
}

/* Rows of pairs of columns -> pairs of rows. */
INLINE void transpose(S16 v[8]) {
  __m256i low[4], top[4];
  for (int k = 0; k < 4; k++)
    low[k] = MIX(lo_epi32, v[2 * k], v[2 * k + 1]), top[k] = MIX(hi_epi32, v[2 * k], v[2 * k + 1]);
  for (int k = 0; k < 2; k++) {
    v[k] = (S16)MIX(lo_epi64, low[2 * k], low[2 * k + 1]), v[2 + k] = (S16)MIX(hi_epi64, low[2 * k], low[2 * k + 1]);
    v[4 + k] = (S16)MIX(lo_epi64, top[2 * k], top[2 * k + 1]);
    v[6 + k] = (S16)MIX(hi_epi64, top[2 * k], top[2 * k + 1]);
  }
}

/* Two blocks, one in each lane, which become zeros -> samples: rows 2k and 2k + 1 of the first block in the low lane of
 * out[k], of the second in the high one. Returns something else than zeros where a coefficient is not within -most and
 * most - 1 (a power of 2; times its quantizer, at most 16384), or a sum not within 16 bits: there libjpeg's results are
 * those of its machine's code. */
INLINE S16 inverse(S16 coefficients[8], const S16 quantizers[8], int16_t most, U8 out[4]) {
  S16 v[8];
  U16 beyond = {0}, overflow = {0};
  for (int k = 0; k < 8; k++) {
    beyond |= (U16)coefficients[k] + (uint16_t)most;
    v[k] = (S16)((U16)coefficients[k] * (U16)quantizers[k]);
    coefficients[k] = (S16){0};
  }
  columns(v, 11, 0);
  for (int k = 0; k < 8; k++) overflow |= (U16)v[k] + 16384;
  transpose(v);
  columns(v, 18, 128);
  __m256i p[4], a[4];
  for (int k = 0; k < 4; k++) p[k] = pack16(v[k], v[k + 4]);
  a[0] = MIX(lo_epi8, p[0], p[1]), a[1] = MIX(hi_epi8, p[0], p[1]);
  a[2] = MIX(lo_epi8, p[2], p[3]), a[3] = MIX(hi_epi8, p[2], p[3]);
  p[0] = MIX(lo_epi16, a[0], a[2]), p[1] = MIX(hi_epi16, a[0], a[2]);
  p[2] = MIX(lo_epi16, a[1], a[3]), p[3] = MIX(hi_epi16, a[1], a[3]);
  out[0] = (U8)MIX(lo_epi32, p[0], p[2]), out[1] = (U8)MIX(hi_epi32, p[0], p[2]);
  out[2] = (U8)MIX(lo_epi32, p[1], p[3]), out[3] = (U8)MIX(hi_epi32, p[1], p[3]);
  return (S16)((beyond & (uint16_t)(-2 * most)) | (overflow & 32768));
}

/* ------------------------------------------------ colors ------------------------------------------------ */

INLINE void color(S16 y, S16 cb, S16 cr, S16 *red, S16 *green, S16 *blue) {
  *red = y + cr + ((high(cr + cr, 26345) + 1) >> 1);
  *blue = y + cb + cb + ((high(cb + cb, -14942) + 1) >> 1);
  U32 low = weigh((S16)MIX(lo_epi16, cb, cr), -22554, 18734), top = weigh((S16)MIX(hi_epi16, cb, cr), -22554, 18734);
  *green = y - cr + pack32((S32)(low + 32768) >> 16, (S32)(top + 32768) >> 16);
}

/* 32 pixels, of which the even and odd ones are apart. */
INLINE void put_pixels(S16 luma[2], S16 blue[2], S16 red[2], uint32_t *out) {
  S16 r[2], g[2], b[2];
  for (int k = 0; k < 2; k++) color(luma[k], blue[k] - 128, red[k] - 128, &r[k], &g[k], &b[k]);
  __m256i R = pack16(r[0], r[1]), G = pack16(g[0], g[1]), B = pack16(b[0], b[1]), X = _mm256_setzero_si256();
  for (int k = 0; k < 2; k++) { /* even ones are in the first half of a lane */
    __m256i rg0 = MIX(lo_epi8, R, G), bx0 = MIX(lo_epi8, B, X), rg1 = MIX(hi_epi8, R, G), bx1 = MIX(hi_epi8, B, X);
    __m256i even = k ? MIX(hi_epi16, rg0, bx0) : MIX(lo_epi16, rg0, bx0);
    __m256i odd = k ? MIX(hi_epi16, rg1, bx1) : MIX(lo_epi16, rg1, bx1);
    __m256i low = MIX(lo_epi32, even, odd), top = MIX(hi_epi32, even, odd);
    _mm256_storeu_si256((__m256i *)out + k, _mm256_permute2x128_si256(low, top, 0x20));
    _mm256_storeu_si256((__m256i *)out + k + 2, _mm256_permute2x128_si256(low, top, 0x31));
  }
}

INLINE S16 load(const void *from) { return (S16)_mm256_loadu_si256(from); }

INLINE void split(const uint8_t *bytes, S16 halves[2]) {
  halves[0] = load(bytes) & 255, halves[1] = (S16)_mm256_srli_epi16((__m256i)load(bytes), 8);
}

/* Chroma of 32 pixels from 16 columns that are 4 times it, weighed 3 to 1 with their neighbors. */
INLINE void widen(const int16_t *sums, int down, S16 halves[2]) {
  U16 here = 3 * (U16)load(sums);
  halves[0] = (S16)((here + (U16)load(sums - 1) + (uint16_t)(down == 2 ? 8 : 4)) >> 4);
  halves[1] = (S16)((here + (U16)load(sums + 1) + (uint16_t)(down == 2 ? 7 : 8)) >> 4);
}
