#include <stdint.h>

typedef struct Baseline Baseline;

Baseline *baseline_open(void);
void baseline_close(Baseline *b);
int baseline_header(Baseline *b, const uint8_t *data, int64_t size, int height, int width);
int baseline_start(Baseline *b, int luma, int top, int left, int right);
int baseline_rows(Baseline *b, uint32_t *pixels, int64_t stride, int count);
int64_t baseline_end(Baseline *b, const uint8_t *data, int64_t size);
