/* bench FOLDERLIST rounds: equality, then interleaved times, one core. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <jpeglib.h>

void *region_open(void);
int region_header(void *, const unsigned char *, uint64_t, int, int);
int region_start(void *, int, int, int, int, int);
int region_rows(void *, uint32_t *, int64_t, int);
int region_end(void *);
void *fast_open(void);
int fast_begin(void *, const uint8_t *, int64_t, int, int, int);
int fast_rows(void *, uint32_t *, int64_t, int);
int fast_codes(void *, const uint8_t *, int64_t, int);
void *coef_open(void);
int coef_codes(void *, const uint8_t *, int64_t, int);
void *scan_open(void);
int64_t scan_end(void *, const uint8_t *, int64_t);

typedef struct { uint8_t *data; int64_t size; int height, width; } File;
typedef struct { int top, bottom, left, right; } Box;
enum { MOST = 4096, BOXES = 4 };
static File files[MOST];
static Box boxes[MOST][BOXES], whole[MOST][BOXES];
static int count;
static void *lib, *fast, *coef, *scan;
static uint32_t rows[16 * 600 + 1000], a[600 * 600 + 1000], b[600 * 600 + 1000];

static double now(void) { struct timespec t; clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }
static uint64_t seed = 88172645463325252ull;
static double uniform(double lo, double hi) { seed ^= seed << 13; seed ^= seed >> 7; seed ^= seed << 17; return lo + (hi - lo) * (seed >> 11) / 9007199254740992.0; }
static int below(int n) { return (int)uniform(0, n); }

static Box rrc(int h, int w) {
  for (int k = 0; k < 10; k++) {
    double area = h * w * uniform(0.08, 1), ratio = exp(uniform(log(3 / 4.), log(4 / 3.)));
    int bw = (int)nearbyint(sqrt(area * ratio)), bh = (int)nearbyint(sqrt(area / ratio));
    if (bw > 0 && bw <= w && bh > 0 && bh <= h) { int t = below(h - bh + 1), l = below(w - bw + 1); return (Box){t, t + bh, l, l + bw}; }
  }
  int side = h < w ? h : w; double r = (double)w / h; int bw = w, bh = h; (void)side;
  if (r < 3 / 4.) bh = (int)nearbyint(w / 0.75); else if (r > 4 / 3.) bw = (int)nearbyint(h * 4 / 3.);
  int t = (h - bh) / 2, l = (w - bw) / 2;
  return (Box){t, t + bh, l, l + bw};
}

static void by_lib(const File *f, Box box, uint32_t *to, int step) {
  if (region_header(lib, f->data, f->size, f->height, f->width)) abort();
  if (region_start(lib, 8, 0, box.top, box.left, box.right)) abort();
  for (int y = box.top; y < box.bottom; y += 16) {
    int n = box.bottom - y < 16 ? box.bottom - y : 16;
    if (region_rows(lib, to + (int64_t)step * (y - box.top) * f->width, f->width, n)) abort();
  }
  if (region_end(lib)) abort();
}
static void by_fast(const File *f, Box box, uint32_t *to, int step) {
  if (fast_begin(fast, f->data, f->size, box.top, box.left, box.right)) abort();
  for (int y = box.top; y < box.bottom; y += 16) {
    int n = box.bottom - y < 16 ? box.bottom - y : 16;
    if (fast_rows(fast, to + (int64_t)step * (y - box.top) * f->width, f->width, n)) abort();
  }
}
static struct jpeg_decompress_struct info;
static struct jpeg_error_mgr errors;
static void by_eighth(const File *f) {
  if (region_header(lib, f->data, f->size, f->height, f->width)) abort();
  if (region_start(lib, 1, 0, 0, 0, (f->width + 7) / 8)) abort();
  for (int y = 0; y < (f->height + 7) / 8; y++) region_rows(lib, rows, 600, 1);
  region_end(lib);
}
static void by_coefficients(const File *f) {
  jpeg_mem_src(&info, f->data, f->size);
  jpeg_read_header(&info, TRUE);
  jpeg_read_coefficients(&info);
  jpeg_finish_decompress(&info);
}

static const char *names[] = {"lib whole", "our whole", "lib boxes", "our boxes", "lib 1/8", "lib coefs", "our coefs", "our pass", "scan.c"};
static double run(int mode) {
  double begin = now();
  for (int i = 0; i < count; i++) {
    File *f = files + i;
    switch (mode) {
      case 0: for (int k = 0; k < 1; k++) by_lib(f, whole[i][k], rows, 0); break;
      case 1: for (int k = 0; k < 1; k++) by_fast(f, whole[i][k], rows, 0); break;
      case 2: for (int k = 0; k < BOXES; k++) by_lib(f, boxes[i][k], rows, 0); break;
      case 3: for (int k = 0; k < BOXES; k++) by_fast(f, boxes[i][k], rows, 0); break;
      case 4: by_eighth(f); break;
      case 5: by_coefficients(f); break;
      case 6: if (coef_codes(coef, f->data, f->size, 1)) abort(); break;
      case 7: if (fast_codes(fast, f->data, f->size, 0)) abort(); break;
      case 8: if (scan_end(scan, f->data, f->size) <= 0) abort(); break;
    }
  }
  return (now() - begin) / count * 1e3 / (mode == 2 || mode == 3 ? BOXES : 1);
}
static int compare(const void *x, const void *y) { double a = *(double *)x, b = *(double *)y; return (a > b) - (a < b); }
static double median(double *v, int n) { double c[256]; memcpy(c, v, n * sizeof *v); qsort(c, n, sizeof *c, compare); return c[n / 2]; }

int main(int argc, char **argv) {
  FILE *list = fopen(argv[1], "r");
  int rounds = argc > 2 ? atoi(argv[2]) : 9, most = argc > 3 ? atoi(argv[3]) : MOST;
  char line[512];
  info.err = jpeg_std_error(&errors);
  jpeg_create_decompress(&info);
  lib = region_open(), fast = fast_open(), coef = coef_open(), scan = scan_open();
  while (fgets(line, sizeof line, list) && count < most) {
    line[strcspn(line, "\n")] = 0;
    FILE *f = fopen(line, "rb");
    fseek(f, 0, SEEK_END);
    File *to = files + count;
    to->size = ftell(f);
    rewind(f);
    to->data = malloc(to->size);
    if (fread(to->data, 1, to->size, f) != (size_t)to->size) abort();
    fclose(f);
    jpeg_mem_src(&info, to->data, to->size);
    jpeg_read_header(&info, TRUE);
    to->height = info.image_height, to->width = info.image_width;
    jpeg_abort_decompress(&info);
    for (int k = 0; k < BOXES; k++) whole[count][k] = (Box){0, to->height, 0, to->width}, boxes[count][k] = rrc(to->height, to->width);
    count++;
  }
  double area = 0, bottom = 0, bytes = 0; long wrong = 0, checked = 0;
  for (int i = 0; i < count; i++) {
    File *f = files + i;
    bytes += f->size;
    for (int k = 0; k <= BOXES; k++) {
      Box x = k < BOXES ? boxes[i][k] : whole[i][0];
      if (k < BOXES) area += (x.bottom - x.top) * (double)(x.right - x.left) / f->height / f->width, bottom += (double)x.bottom / f->height;
      by_lib(f, x, a, 1);
      by_fast(f, x, b, 1);
      checked++;
      for (int y = 0; y < x.bottom - x.top; y++)
        for (int c = x.left; c < x.right; c++)
          if ((a[y * f->width + c] ^ b[y * f->width + c]) & 0xFFFFFF) {
            if (wrong < 5) printf("%d box %d,%d,%d,%d: y %d x %d %08x %08x\n", i, x.top, x.bottom, x.left, x.right, y, c, a[y * f->width + c], b[y * f->width + c]);
            wrong++; y = 10000; break;
          }
    }
  }
  printf("%d files, %.1f KB, boxes: area %.3f bottom %.3f; %ld of %ld differ\n", count, bytes / count / 1e3, area / count / BOXES, bottom / count / BOXES, wrong, checked);
  if (rounds > 256) rounds = 256;
  static double times[9][256];
  for (int m = 0; m < 9; m++) run(m);
  for (int r = 0; r < rounds; r++) for (int m = 0; m < 9; m++) times[m][r] = run(m);
  for (int m = 0; m < 9; m++) printf("%-10s %.3f ms\n", names[m], median(times[m], rounds));
  double w[256], x[256], lo[4] = {9, 9}, hi[4] = {0, 0};
  for (int r = 0; r < rounds; r++) {
    w[r] = times[0][r] / times[1][r], x[r] = times[2][r] / times[3][r];
    if (w[r] < lo[0]) lo[0] = w[r]; if (w[r] > hi[0]) hi[0] = w[r];
    if (x[r] < lo[1]) lo[1] = x[r]; if (x[r] > hi[1]) hi[1] = x[r];
  }
  printf("whole x %.3f (%.3f-%.3f)   boxes x %.3f (%.3f-%.3f)\n", median(w, rounds), lo[0], hi[0], median(x, rounds), lo[1], hi[1]);
}
