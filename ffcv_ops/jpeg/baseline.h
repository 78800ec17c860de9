#include <stdint.h>

typedef struct {
  const uint8_t *data;
  uint64_t size;
  int height, width; /* that it should have */
} Jpeg;

/* Rows from top on, columns left to right. */
typedef struct {
  int top, left, right;
} Box;

typedef struct Baseline Baseline;

Baseline *baseline_open(void);
void baseline_close(Baseline *b);
int baseline_begin(Baseline *b, const Jpeg *jpeg, const Box *box);
int baseline_rows(Baseline *b, uint32_t *pixels, int64_t stride, int count);
int64_t baseline_end(Baseline *b, const uint8_t *data, int64_t size);
