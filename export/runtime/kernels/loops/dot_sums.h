/* Sums of products where one instruction adds four products of bytes to a number of 32 bits. The instruction set has
   defined it as `dot`: acc + codes * x, of `centered` codes and signed x. */

#ifndef DOT_SUMS_H
#define DOT_SUMS_H

#include "../numbers.h"
#include "../products.h"

/* A vector of codes as the processor multiplies it: bytes as they are, or their low halves and their high ones. */
typedef struct { Bytes low, high; } Codes;

INLINE Codes split(Bytes codes, const int halves) {
    return halves == 1 ? (Codes){centered(codes), codes} : (Codes){low_nibbles(codes), high_nibbles(codes)};
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

#endif
