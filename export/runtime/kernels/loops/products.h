/* `products.h` in vectors: an instruction set includes this after its vectors and sums.

   With few rows of A, each row of W is read once, from end to end, and multiplied by all of them, as fast as the memory
   allows. With many, panels of W are reordered for the processor, once for SLAB rows of A.

   A's codes are in the order in which W's are unpacked: with 8 bits their own; with 4 bits, in groups of columns, the
   even ones, which meet the low halves of W's bytes, before the odd ones, which meet the high halves. 3 bits are
   widened to the bytes of 4 bits on the way. Few rows are stored one after another. Of many, each TILE is stored
   together, [width / 4][row][4], or with two QUADS [width / 8][row][8]; the last has the remaining rows, and zeros up to a multiple of ROWS. */

#ifndef LOOPS_PRODUCTS_H
#define LOOPS_PRODUCTS_H

#include "rounding.h"

#include "few_rows.h"
#include "many_rows.h"

/* If a block is whole vectors, their number is a constant to the compiler, as bits and M are; the unrolled loops are 8
   to 15 % faster on one core. */
INLINE void multiply_few(const Weight *weight, const Rounded *rounded, float *y, int64_t begin, int64_t end,
                         const int M) {
    switch (weight->bits * 1000 + weight->block_size) {
        case 3256: few_rows(weight, rounded, y, begin, end, 3, 256, M); break;
        case 4256: few_rows(weight, rounded, y, begin, end, 4, 256, M); break;
        case 4128: few_rows(weight, rounded, y, begin, end, 4, 128, M); break;
        case 4064: few_rows(weight, rounded, y, begin, end, 4, 64, M); break;
        case 4032: few_rows(weight, rounded, y, begin, end, 4, 32, M); break;
        case 8256: few_rows(weight, rounded, y, begin, end, 8, 256, M); break;
        case 8128: few_rows(weight, rounded, y, begin, end, 8, 128, M); break;
        case 8064: few_rows(weight, rounded, y, begin, end, 8, 64, M); break;
        default: few_rows(weight, rounded, y, begin, end, 8, 32, M);
    }
}

KERNEL static void multiply(const Weight *weight, const Rounded *rounded, float *y, int64_t begin, int64_t end) {
    switch (rounded->M) {
        case 1: multiply_few(weight, rounded, y, begin, end, 1); break;
        case 2: multiply_few(weight, rounded, y, begin, end, 2); break;
        case 3: multiply_few(weight, rounded, y, begin, end, 3); break;
        case 4: multiply_few(weight, rounded, y, begin, end, 4); break;
        case 5: multiply_few(weight, rounded, y, begin, end, 5); break;
        case 6: multiply_few(weight, rounded, y, begin, end, 6); break;
        case 7: multiply_few(weight, rounded, y, begin, end, 7); break;
        case 8: multiply_few(weight, rounded, y, begin, end, 8); break;
        default: many_rows(weight, rounded, y, begin, end);
    }
}

#endif
