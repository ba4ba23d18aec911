/* Sums of products of a panel and rows of A, a quad of each row at a time, by the instruction set's `dot`. */

#ifndef DOT_TILES_H
#define DOT_TILES_H

#include "../numbers.h"
#include "../products.h"

/* Multiply two vectors of a panel's columns by rows of A: dots[row] += codes[step] * x[step][row]. */
INLINE void tile_products(const uint8_t *codes, int64_t steps, const int planes, const int32_t *x, int64_t stride,
                          const int rows, Ints left[], Ints right[]) {
    (void)planes;
    for (const uint8_t *end = codes + steps * 4 * COLUMNS; codes < end; codes += 4 * COLUMNS, x += stride) {
        Bytes one = load_bytes(codes), other = load_bytes(codes + BYTES), all;
        UNROLLED for (int row = 0; row < rows; row++) {
            all = all_bytes(x[row]);
            left[row] = dot(left[row], one, all), right[row] = dot(right[row], other, all);
        }
    }
}

#endif
