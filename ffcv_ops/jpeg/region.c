/* Part of a JPEG -> RGBX pixels. Built by native.py, bound by decoder.py, which says what the arguments mean. Only
 * blocks that the box touches go through the inverse DCT, and nothing below the box is read at all. The result equals
 * the same part of a whole decoding by libjpeg-turbo, byte for byte.
 *
 * baseline.c does it, and libjpeg-turbo, through its public API, whatever that one leaves: other kinds of JPEG, scaled
 * ones, and all from the first row on that is not sound. So libjpeg alone says what is damaged. */

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "baseline.h"

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001000
#error "libjpeg-turbo 2.1 or newer is needed: older ones skip rows inexactly"
#endif

typedef struct {
  struct jpeg_decompress_struct info;
  struct jpeg_error_mgr errors;
  jmp_buf failed;
  JDIMENSION left, count; /* columns that are decoded */
  JSAMPROW gray;          /* a row of luma, or NULL where pixels are wanted */
  int luma;
  Jpeg jpeg;
  Box box;            /* the next row is its top */
  Baseline *baseline; /* or NULL */
  int is_baseline;    /* it decodes the box */
} Decoder;

static void fail(j_common_ptr info) { longjmp(((Decoder *)info->client_data)->failed, 1); }

static void say_nothing(j_common_ptr info) { (void)info; }

void *region_open(void) {
  Decoder *decoder = calloc(1, sizeof *decoder);
  if (!decoder) return NULL;
  decoder->info.err = jpeg_std_error(&decoder->errors);
  decoder->errors.error_exit = fail;
  decoder->errors.output_message = say_nothing;
  decoder->info.client_data = decoder;
  if (setjmp(decoder->failed)) {
    free(decoder);
    return NULL;
  }
  jpeg_create_decompress(&decoder->info);
  const char *wanted = getenv("FFCV_OPS_JPEG");
  decoder->baseline = wanted && !strcmp(wanted, "libjpeg") ? NULL : baseline_open();
  return decoder;
}

void region_close(void *handle) {
  Decoder *decoder = handle;
  jpeg_destroy_decompress(&decoder->info);
  if (decoder->baseline) baseline_close(decoder->baseline);
  free(decoder);
}

/* Gray values -> pixels whose three colors they are. */
static void spread(const uint8_t *gray, uint32_t *pixels, JDIMENSION count) {
  for (JDIMENSION x = 0; x < count; x++) pixels[x] = gray[x] * 0x010101u;
}

/* The stream, which must stay where it is, and the sides that its image should have. */
void region_header(void *handle, const unsigned char *data, uint64_t size, int height, int width) {
  ((Decoder *)handle)->jpeg = (Jpeg){data, size, height, width};
}

/* Returns 0, or 1 for a damaged stream or one whose image has other sides. Leaves the decoder ready for another stream
 * then, as the other functions do. */
static int libjpeg_begin(Decoder *decoder, int scale_num) {
  j_decompress_ptr info = &decoder->info;
  const Jpeg *jpeg = &decoder->jpeg;
  const Box *box = &decoder->box;
  if (setjmp(decoder->failed)) {
    jpeg_abort_decompress(info);
    return 1;
  }
  /* Else a stream that lacks its tables is decoded with those of the one before it. */
  jpeg_destroy_decompress(info);
  jpeg_create_decompress(info);
  jpeg_mem_src(info, jpeg->data, jpeg->size);
  jpeg_read_header(info, TRUE);
  if (info->image_height != (JDIMENSION)jpeg->height || info->image_width != (JDIMENSION)jpeg->width)
    fail((j_common_ptr)info);
  info->out_color_space = decoder->luma ? JCS_GRAYSCALE : JCS_EXT_RGBX;
  info->dct_method = JDCT_ISLOW;
  info->scale_num = scale_num;
  info->scale_denom = 8;
  jpeg_start_decompress(info);
  /* Chroma is interpolated from its neighbors, so at a cut the decoder must see one more pixel than is wanted; and it
   * does not interpolate at all where it sees fewer than three. */
  decoder->left = box->left > 4 ? box->left - 4 : 0;
  int wide = info->output_width;
  decoder->count = (box->right + 4 < wide ? box->right + 4 : wide) - decoder->left;
  if (decoder->count < info->output_width) jpeg_crop_scanline(info, &decoder->left, &decoder->count);
  if (box->top > 0) jpeg_skip_scanlines(info, box->top);
  decoder->gray = decoder->luma ? (*info->mem->alloc_small)((j_common_ptr)info, JPOOL_IMAGE, decoder->count) : NULL;
  return 0;
}

/* Ready for rows top and following of the image scaled by scale_num / 8, columns left to right. */
int region_start(void *handle, int scale_num, int luma, int top, int left, int right) {
  Decoder *decoder = handle;
  decoder->luma = luma;
  decoder->box = (Box){top, left, right};
  decoder->is_baseline = decoder->baseline && scale_num == 8 && !luma &&
                         baseline_begin(decoder->baseline, &decoder->jpeg, &decoder->box);
  return decoder->is_baseline ? 0 : libjpeg_begin(decoder, scale_num);
}

/* The next `count` rows, `stride` pixels apart; column x goes to place x of a row. Up to a column of blocks on either
 * side of the wanted ones is written too. */
int region_rows(void *handle, uint32_t *pixels, int64_t stride, int count) {
  Decoder *decoder = handle;
  j_decompress_ptr info = &decoder->info;
  if (decoder->is_baseline) {
    if (baseline_rows(decoder->baseline, pixels, stride, count)) {
      decoder->box.top += count;
      return 0;
    }
    decoder->is_baseline = 0;
    if (libjpeg_begin(decoder, 8)) return 1;
  }
  if (setjmp(decoder->failed)) {
    jpeg_abort_decompress(info);
    return 1;
  }
  for (int y = 0; y < count; y++) {
    uint32_t *line = pixels + y * stride + decoder->left;
    JSAMPROW row = decoder->gray ? decoder->gray : (JSAMPROW)line;
    if (jpeg_read_scanlines(info, &row, 1) != 1) fail((j_common_ptr)info);
    if (decoder->gray) spread(decoder->gray, line, decoder->count);
  }
  return 0;
}

/* After the last row. Returns 1 also where libjpeg has warned: it goes on behind damage with gray or stale pixels. */
int region_end(void *handle) {
  Decoder *decoder = handle;
  j_decompress_ptr info = &decoder->info;
  if (decoder->is_baseline) return 0;
  if (setjmp(decoder->failed)) {
    jpeg_abort_decompress(info);
    return 1;
  }
  if (info->output_scanline < info->output_height)
    jpeg_abort_decompress(info);
  else
    jpeg_finish_decompress(info);
  return decoder->errors.num_warnings != 0;
}
