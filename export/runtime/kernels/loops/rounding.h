/* Rounds rows of A to codes of 8 bits, in the order that `products.h` beside this file draws. */

#ifndef ROUNDING_H
#define ROUNDING_H

#include <string.h>

enum { FEW = 8, GROUP = 2 * BYTES };

/* Round one row; its codes are stored one after another. */
INLINE void round_row(const Weight *weight, const float *row, int8_t *codes, float *scales, float *sums,
                      const int64_t group) {
    for (int64_t block = 0; block < weight->blocks; block++) {
        int64_t from = block * weight->block_size, to = from + weight->block_size;
        Floats most = all_floats(0.0f);
        for (int64_t k = from; k < to; k += VECTOR) most = larger(most, magnitude(load_first(row + k, weight->K - k)));
        float largest = largest_of(most);
        Floats inverse = all_floats(largest > 0 ? 127.0f / largest : 0.0f);
        Ints sum = no_ints();
        for (int64_t k = from; k < to; k += 2 * VECTOR) {
            Ints low = to_ints(load_first(row + k, weight->K - k) * inverse);
            Ints high = to_ints(load_first(row + k + VECTOR, weight->K - k - VECTOR) * inverse);
            sum = add_ints(sum, add_ints(low, high));
            int8_t *one = codes + k, *other = one + VECTOR;
            if (weight->bits < 8) {
                one = codes + k / group * group + k % group / 2;
                other = one + group / 2;
            }
            store_pair(one, other, low, high, weight->bits < 8);
        }
        scales[block] = largest / 127.0f;
        sums[block] = scales[block] * (float)sum_of_ints(sum);
    }
}

KERNEL static void round_rows(const Weight *weight, const float *a, Rounded *rounded, int64_t begin, int64_t end) {
    const int64_t width = rounded->width, padded = rounded->padded_blocks, count = padded_to(ROWS, end - begin);
    const int few = rounded->M <= FEW;
    const int64_t group = few || weight->block_size > GROUP ? GROUP : weight->block_size;
    int8_t *tile = rounded->codes + begin * width, one[width];
    memset(rounded->scales + begin * padded, 0, sizeof(float) * (size_t)(count * padded));
    memset(rounded->sums + begin * padded, 0, sizeof(float) * (size_t)(count * padded));
    memset(tile, 0, (size_t)(count * width));
    for (int64_t m = begin; m < end; m++) {
        int8_t *codes = few ? tile + (m - begin) * width : one;
        round_row(weight, a + m * weight->K, codes, rounded->scales + m * padded, rounded->sums + m * padded, group);
        if (!few)
            for (int64_t k = 0; k < width; k += QUADS * 4)
                memcpy(tile + k * count + (m - begin) * QUADS * 4, one + k, QUADS * 4);
    }
}

#endif
