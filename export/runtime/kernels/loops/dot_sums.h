/* Sums of products where one instruction adds four products of bytes to a number of 32 bits. The instruction set has
   defined it as `dot`: acc + codes * x, of unsigned codes and signed x. */

#ifndef DOT_SUMS_H
#define DOT_SUMS_H

#include "../numbers.h"
#include "../products.h"

/* A vector of codes as the processor multiplies it: bytes as they are, or their low halves and their high ones. */
typedef struct { Bytes low, high; } Codes;

INLINE Codes split(Bytes codes, const int halves) {
    return halves == 1 ? (Codes){codes, codes} : (Codes){low_nibbles(codes), high_nibbles(codes)};
}

/* The sums of one block. */
typedef Ints Sums;

INLINE Sums no_sums(void) { return no_ints(); }
INLINE Ints sums_to_ints(Sums sums, const int halves) { (void)halves; return sums; }

/* Add W's codes * A's, where those that meet the low halves lie at x and the others behind them. */
INLINE Sums add_products(Sums acc, Codes codes, const int8_t *x, const int halves) {
    Bytes one = load_bytes(x), other = load_bytes(x + BYTES);
    acc = dot(acc, codes.low, one);
    return halves == 2 ? dot(acc, codes.high, other) : acc;
}

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
