/* Part of a JPEG -> RGBX pixels. Built by native.py, bound by decoder.py, which says what the arguments mean. Only blocks
 * that the box touches go through the inverse DCT, and nothing below the box is read at all. The result equals the same
 * part of a whole decoding by libjpeg-turbo, byte for byte.
 *
 * baseline.c does it, and libjpeg-turbo, through its public API, whatever that one leaves: other kinds of JPEG, scaled
 * ones, and all from the first row on that is not sound. So libjpeg alone says what is damaged. */

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

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
  Baseline *baseline;     /* or NULL */
  int is_baseline;        /* it has the stream */
  const unsigned char *data;
  uint64_t size;
  int luma, top, box_left, box_right, height, width; /* of the rows to come, for libjpeg to take over */
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
  decoder->baseline = baseline_open();
  return decoder;
}

void region_close(void *handle) {
  Decoder *decoder = handle;
  jpeg_destroy_decompress(&decoder->info);
  baseline_close(decoder->baseline);
  free(decoder);
}

/* Gray values -> pixels whose three colors they are. */
static void spread(const uint8_t *gray, uint32_t *pixels, JDIMENSION count) {
  for (JDIMENSION x = 0; x < count; x++) pixels[x] = gray[x] * 0x010101u;
}

static int libjpeg_header(Decoder *decoder) {
  j_decompress_ptr info = &decoder->info;
  jpeg_mem_src(info, decoder->data, decoder->size);
  jpeg_read_header(info, TRUE);
  return info->image_height != (JDIMENSION)decoder->height || info->image_width != (JDIMENSION)decoder->width;
}

static void libjpeg_start(Decoder *decoder, int scale_num) {
  j_decompress_ptr info = &decoder->info;
  int left = decoder->box_left, right = decoder->box_right;
  info->out_color_space = decoder->luma ? JCS_GRAYSCALE : JCS_EXT_RGBX;
  info->dct_method = JDCT_ISLOW;
  info->scale_num = scale_num;
  info->scale_denom = 8;
  jpeg_start_decompress(info);
  /* Chroma is interpolated from its neighbors, so at a cut the decoder must see one more pixel than is wanted; and it
   * does not interpolate at all where it sees fewer than three. */
  decoder->left = left > 4 ? left - 4 : 0;
  decoder->count = (right + 4 < (int)info->output_width ? right + 4 : (int)info->output_width) - decoder->left;
  if (decoder->count < info->output_width) jpeg_crop_scanline(info, &decoder->left, &decoder->count);
  if (decoder->top > 0) jpeg_skip_scanlines(info, decoder->top);
  decoder->gray = decoder->luma ? (*info->mem->alloc_small)((j_common_ptr)info, JPOOL_IMAGE, decoder->count) : NULL;
}

/* Reads as far as the first scan. Returns 0, or 1 for a damaged stream or one whose image is not height x width. The
 * other functions return 1 for damage too, and leave the decoder ready for another stream. */
int region_header(void *handle, const unsigned char *data, uint64_t size, int height, int width) {
  Decoder *decoder = handle;
  decoder->data = data, decoder->size = size, decoder->height = height, decoder->width = width;
  decoder->is_baseline = decoder->baseline && baseline_header(decoder->baseline, data, size, height, width);
  if (decoder->is_baseline) return 0;
  if (setjmp(decoder->failed) || libjpeg_header(decoder)) {
    jpeg_abort_decompress(&decoder->info);
    return 1;
  }
  return 0;
}

static int libjpeg_begin(Decoder *decoder, int has_header, int scale_num) {
  decoder->is_baseline = 0;
  if (setjmp(decoder->failed) || (!has_header && libjpeg_header(decoder))) {
    jpeg_abort_decompress(&decoder->info);
    return 1;
  }
  libjpeg_start(decoder, scale_num);
  return 0;
}

/* Ready for rows top and following of the image scaled by scale_num / 8, columns left to right. */
int region_start(void *handle, int scale_num, int luma, int top, int left, int right) {
  Decoder *decoder = handle;
  decoder->luma = luma, decoder->top = top, decoder->box_left = left, decoder->box_right = right;
  if (!decoder->is_baseline) return libjpeg_begin(decoder, 1, scale_num);
  if (scale_num == 8 && baseline_start(decoder->baseline, luma, top, left, right)) return 0;
  return libjpeg_begin(decoder, 0, scale_num);
}

/* The next `count` rows, `stride` pixels apart; column x goes to place x of a row. Up to a column of blocks on either
 * side of the wanted ones is written too. */
int region_rows(void *handle, uint32_t *pixels, int64_t stride, int count) {
  Decoder *decoder = handle;
  j_decompress_ptr info = &decoder->info;
  if (decoder->is_baseline) {
    if (baseline_rows(decoder->baseline, pixels, stride, count)) {
      decoder->top += count;
      return 0;
    }
    if (libjpeg_begin(decoder, 0, 8)) return 1;
  }
  if (setjmp(decoder->failed)) {
    jpeg_abort_decompress(info);
    return 1;
  }
  for (int y = 0; y < count; y++) {
    uint32_t *line = pixels + y * stride + decoder->left;
    JSAMPROW row = decoder->gray ? decoder->gray : (JSAMPROW)line;
    if (jpeg_read_scanlines(info, &row, 1) != 1) {
      jpeg_abort_decompress(info);
      return 1;
    }
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
