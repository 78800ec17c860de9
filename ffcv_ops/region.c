/* Part of a JPEG -> RGBX pixels, through libjpeg-turbo's public API. Built and bound by native.py; jpeg.py says what
 * the arguments mean. Only iMCU rows and columns that the box touches go through the inverse DCT, and nothing below
 * the box is read at all. The result equals the same part of a whole decoding, byte for byte. */

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001000
#error "libjpeg-turbo 2.1 or newer is needed: older ones skip rows inexactly"
#endif

typedef struct {
  struct jpeg_decompress_struct info;
  struct jpeg_error_mgr errors;
  jmp_buf failed;
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
  return decoder;
}

void region_close(void *handle) {
  Decoder *decoder = handle;
  jpeg_destroy_decompress(&decoder->info);
  free(decoder);
}

/* Gray values -> pixels whose three colours they are. */
static void spread(const uint8_t *gray, uint32_t *pixels, JDIMENSION count) {
  for (JDIMENSION x = 0; x < count; x++) pixels[x] = gray[x] * 0x010101u;
}

/* The box [top, bottom) x [left, right) of the image scaled by eighths / 8; pixel (y, x) goes to pixels[y * stride + x].
 * Up to a column of blocks on either side of the box may be written too. Returns 0, or 1 for a damaged stream or one
 * whose image is not height x width. */
int region_decode(void *handle, const unsigned char *data, uint64_t size, int height, int width, int eighths, int luma,
                  int top, int bottom, int left, int right, uint32_t *pixels, int64_t stride) {
  Decoder *decoder = handle;
  j_decompress_ptr info = &decoder->info;
  if (setjmp(decoder->failed)) {
    jpeg_abort_decompress(info);
    return 1;
  }
  jpeg_mem_src(info, data, size);
  jpeg_read_header(info, TRUE);
  if (info->image_height != (JDIMENSION)height || info->image_width != (JDIMENSION)width) {
    jpeg_abort_decompress(info);
    return 1;
  }
  info->out_color_space = luma ? JCS_GRAYSCALE : JCS_EXT_RGBX;
  info->dct_method = JDCT_ISLOW;
  info->scale_num = eighths;
  info->scale_denom = 8;
  jpeg_start_decompress(info);
  /* Chroma is interpolated from its neighbours, so at a cut the decoder must see one more pixel than is wanted. */
  JDIMENSION x = left > 0 ? left - 1 : 0, end = right < (int)info->output_width ? right + 1 : info->output_width;
  JDIMENSION count = end - x;
  if (count < info->output_width) jpeg_crop_scanline(info, &x, &count);
  if (top > 0) jpeg_skip_scanlines(info, top);
  JSAMPROW gray = luma ? (*info->mem->alloc_small)((j_common_ptr)info, JPOOL_IMAGE, count) : NULL;
  while (info->output_scanline < (JDIMENSION)bottom) {
    uint32_t *line = pixels + info->output_scanline * stride + x;
    JSAMPROW row = luma ? gray : (JSAMPROW)line;
    if (jpeg_read_scanlines(info, &row, 1) == 1 && luma) spread(gray, line, count);
  }
  if (info->output_scanline < info->output_height)
    jpeg_abort_decompress(info);
  else
    jpeg_finish_decompress(info);
  return decoder->errors.num_warnings != 0;
}
