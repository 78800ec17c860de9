/* Altered JPEGs, decoded by baseline.c and by libjpeg alone: equal statuses and, where they are sound, equal pixels;
 * and baseline_end's answer is 0 or that of a stream at which libjpeg has no doubt. Only of damage just below a box,
 * which libjpeg sees while it looks ahead, baseline.c need not know.
 *
 *     fuzz SEED COUNT FILE...      alteration SEED and the following ones; test_baseline.py builds it, with sanitizers
 *
 * Prints the seeds of what differs, and ends with status 1 then. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../../ffcv_ops/jpeg/baseline.h"

void *region_open(void);
void region_close(void *handle);
void region_header(void *handle, const unsigned char *data, uint64_t size, int height, int width);
int region_start(void *handle, int scale_num, int luma, int top, int left, int right);
int region_rows(void *handle, uint32_t *pixels, int64_t stride, int count);
int region_end(void *handle);

enum { MOST_BYTES = 1 << 16, MOST_SIDE = 128, MOST_FILES = 1000 };

static uint64_t state;

static int below(int n) {
  state += 0x9E3779B97F4A7C15u;
  uint64_t z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return (int)((z ^ z >> 31) % (uint64_t)n);
}

static int alter(uint8_t *data, int size) {
  for (int changes = 1 + below(4); changes > 0 && size > 8; changes--) {
    int at = below(below(2) ? size : size < 700 ? size : 700), length = 1 + below(below(4) ? 3 : 60);
    if (length > size - at) length = size - at;
    switch (below(7)) {
      case 0: data[at] = below(256); break;
      case 1: data[at] ^= 1 << below(8); break;
      case 2: data[at] = (int[]){0, 1, 2, 17, 127, 255}[below(6)]; break;
      case 3: memmove(data + at, data + at + length, size - at - length), size -= length; break;
      case 4: memmove(data + at, data + below(size - length + 1), length); break;
      case 5: if (size + length <= MOST_BYTES) memmove(data + at + length, data + at, size - at), size += length; break;
      case 6: if (!below(8)) size = at + 1; break;
    }
  }
  return size;
}

static int decode(void *handle, const Jpeg *jpeg, const Box *box, int bottom, int at_once, uint32_t *pixels) {
  region_header(handle, jpeg->data, jpeg->size, jpeg->height, jpeg->width);
  if (region_start(handle, 8, 0, box->top, box->left, box->right)) return 1;
  for (int y = box->top; y < bottom; y += at_once) {
    int count = at_once < bottom - y ? at_once : bottom - y;
    if (region_rows(handle, pixels + (y - box->top) * jpeg->width, jpeg->width, count)) return 1;
  }
  return region_end(handle);
}

int main(int argc, char **argv) {
  static uint8_t files[MOST_FILES][MOST_BYTES / 8];
  int sizes[MOST_FILES], count = argc - 3;
  for (int k = 0; k < count; k++) {
    FILE *file = fopen(argv[3 + k], "rb");
    if (k >= MOST_FILES || !file) return 2;
    sizes[k] = fread(files[k], 1, MOST_BYTES / 8, file);
    fclose(file);
  }
  void *ours = region_open();
  setenv("FFCV_OPS_JPEG", "libjpeg", 1);
  void *libjpeg = region_open();
  Baseline *check = baseline_open();
  uint64_t seed = strtoull(argv[1], NULL, 10), end = seed + strtoull(argv[2], NULL, 10);
  uint64_t wrong = 0, sound = 0, checked = 0;
  for (; seed < end; seed++) {
    state = seed / 64; /* of a file, many in a row: its tables take longer to build than it takes to decode */
    int k = below(count);
    state = seed * 0xD1342543DE82EF95u;
    uint8_t *work = malloc(MOST_BYTES);
    memcpy(work, files[k], sizes[k]);
    int size = alter(work, sizes[k]), height = 0, width = 0;
    uint8_t *data = malloc(size); /* of this size, so that a sanitizer sees what is read behind it */
    memcpy(data, work, size);
    free(work);
    for (int at = 2; at + 9 < size && data[at] == 0xFF; at += 2 + (data[at + 2] << 8 | data[at + 3]))
      if (data[at + 1] >= 0xC0 && data[at + 1] < 0xC3) {
        height = data[at + 5] << 8 | data[at + 6], width = data[at + 7] << 8 | data[at + 8];
        break;
      }
    if (height > 0 && width > 0 && height <= MOST_SIDE && width <= MOST_SIDE) {
      int whole = below(2), top = whole ? 0 : below(height), left = whole ? 0 : below(width);
      int bottom = whole ? height : top + 1 + below(height - top), at_once = 1 + below(20);
      Box box = {top, left, whole ? width : left + 1 + below(width - left)};
      Jpeg jpeg = {data, size, height, width};
      uint32_t *a = calloc(height * width, 4), *b = calloc(height * width, 4);
      int failed = decode(libjpeg, &jpeg, &box, bottom, at_once, a);
      int ours_failed = decode(ours, &jpeg, &box, bottom, at_once, b);
      int differs = failed ? !ours_failed && bottom == height : ours_failed;
      for (int y = 0; !failed && y < bottom - top; y++)
        for (int x = box.left; x < box.right; x++) differs |= ((a[y * width + x] ^ b[y * width + x]) & 0xFFFFFF) != 0;
      int accepted = baseline_end(check, data, size) != 0;
      differs |= accepted && whole && failed;
      sound += !failed, checked += accepted, wrong += differs;
      if (differs) printf("seed %llu: libjpeg says %d\n", (unsigned long long)seed, failed);
      free(a), free(b);
    }
    free(data);
  }
  baseline_close(check), region_close(ours), region_close(libjpeg);
  printf("%llu differ, %llu sound, %llu accepted\n", (unsigned long long)wrong, (unsigned long long)sound,
         (unsigned long long)checked);
  return wrong != 0;
}
