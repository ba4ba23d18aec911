/* Products in plain C: slow, for every processor, and the reference that the fast ones must equal up to the order of
   sums. A's codes are stored one after another. */

#include "../low_rank.h"
#include "../products.h"

#include <math.h>
#include <string.h>

#include "../numbers.h"

static void round_rows(const Weight *weight, const float *a, Rounded *rounded, int64_t begin, int64_t end) {
    memset(rounded->codes + begin * rounded->width, 0, (size_t)((end - begin) * rounded->width));
    for (int64_t m = begin; m < end; m++)
        for (int64_t block = 0; block < weight->blocks; block++) {
            const float *row = a + m * weight->K;
            const int64_t from = block * weight->block_size, to = least(from + weight->block_size, weight->K);
            float largest = 0.0f;
            for (int64_t k = from; k < to; k++) largest = fmaxf(largest, fabsf(row[k]));
            const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f, scale = largest / 127.0f;
            int sum = 0;
            for (int64_t k = from; k < to; k++) {
                const int code = (int)lrintf(row[k] * inverse);
                rounded->codes[m * rounded->width + k] = (int8_t)code;
                sum += code;
            }
            rounded->scales[m * rounded->padded_blocks + block] = scale;
            rounded->sums[m * rounded->padded_blocks + block] = scale * (float)sum;
        }
}

/* Return column k of a block of 3 bits as an even code of 4 bits. A byte holds two bits of each of four columns: two
   neighbours in the block's first half and two in its second half. The third bits follow these bytes. */
static int code_of_3(const uint8_t *block, int64_t k) {
    const int64_t half = k / (THREE_BITS_BLOCK / 2), byte = k % (THREE_BITS_BLOCK / 2) / 2, odd = k % 2;
    const int64_t thirds = THREE_BITS_BLOCK / 8;
    const int low = block[byte] >> (4 * odd + 2 * half) & 3;
    const int third = block[THREE_BITS_BLOCK / 4 + byte % thirds] >> (4 * odd + 2 * half + byte / thirds) & 1;
    return 2 * low + 8 * third;
}

static int code_of(const Weight *weight, int64_t n, int64_t block, int64_t k) {
    const uint8_t *codes = weight->codes + (n * weight->blocks + block) * weight->block_size * weight->bits / 8;
    if (weight->bits == 3) return code_of_3(codes, k);
    return weight->bits == 4 ? codes[k / 2] >> (4 * (k % 2)) & 15 : codes[k];
}

static int zero_point_of(const Weight *weight, int64_t n, int64_t block) {
    if (!weight->zero_points) return 1 << (weight->bits - 1);
    if (weight->bits == 8) return weight->zero_points[n * weight->blocks + block];
    return weight->zero_points[n * pieces(weight->blocks, 2) + block / 2] >> (4 * (block % 2)) & 15;
}

/* Convert a number of 16 bits: a sign, 5 bits of exponent, 10 of fraction. */
static float from_fp16(uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                       : exponent     ? ldexpf((float)(1024 + fraction), exponent - 25)
                                      : ldexpf((float)fraction, -24);
    return half >> 15 ? -size : size;
}

static float scale_of(const Weight *weight, int64_t n, int64_t block) {
    const int64_t at = n * weight->blocks + block;
    return weight->bits == 3 ? from_fp16(((const uint16_t *)weight->scales)[at]) : ((const float *)weight->scales)[at];
}

static void multiply(const Weight *weight, const Rounded *rounded, float *y, int64_t begin, int64_t end) {
    for (int64_t m = 0; m < rounded->M; m++)
        for (int64_t n = begin; n < end; n++) {
            double total = weight->bias ? weight->bias[n] : 0.0;
            for (int64_t block = 0; block < weight->blocks; block++) {
                const int8_t *x = rounded->codes + m * rounded->width + block * weight->block_size;
                const int64_t at = m * rounded->padded_blocks + block;
                int dot = 0;
                for (int64_t k = 0; k < weight->block_size; k++) dot += code_of(weight, n, block, k) * x[k];
                const double product = (double)rounded->scales[at] * dot;
                const double of_zero = (double)rounded->sums[at] * zero_point_of(weight, n, block);
                total += scale_of(weight, n, block) * (product - of_zero);
            }
            y[m * weight->N + n] = (float)total;
        }
}

static void down(const Change *change, const Part *part) {
    for (int64_t t = part->first; t < part->last; t++)
        for (int64_t r = part->begin; r < part->end; r++) {
            double total = 0.0;
            for (int64_t k = 0; k < change->K; k++)
                total += (double)change->x[t * change->K + k] * change->A[r * change->K + k];
            change->h[t * change->R + r] = (float)total;
        }
}

static void up(const Change *change, const Part *part) {
    for (int64_t t = part->first; t < part->last; t++)
        for (int64_t n = part->begin; n < part->end; n++) {
            double total = change->unchanged[t * change->N + n];
            for (int64_t r = 0; r < change->L; r++)
                total += (double)change->h[t * change->R + part->rank + r] * change->B[r * change->N + n];
            change->y[t * change->N + n] = (float)total;
        }
}

const Products SCALAR_PRODUCTS = {.round_rows = round_rows, .multiply = multiply};
const LowRank SCALAR_LOW_RANK = {.down = down, .up = up};
