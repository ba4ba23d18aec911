/* Sums of products with NEON's SDOT, which adds four products of signed bytes to each number of 32 bits. */

#ifndef NEON_SUMS_H
#define NEON_SUMS_H

#include "vectors.h"

enum { PLANES = 1, TILE_ROWS = 12 };        /* parts in which codes of 8 bits are multiplied, most rows of a tile */
enum { QUADS = 1 };                         /* of a row's bytes that are multiplied at once */

#include "dot.h"

/* Transpose 4 x 4 numbers of 32 bits. */
INLINE void transpose(Bytes r[VECTOR]) {
    Ints t[VECTOR];
    for (int i = 0; i < VECTOR; i += 2) {
        const Ints one = vreinterpretq_s32_u8(r[i]), other = vreinterpretq_s32_u8(r[i + 1]);
        t[i] = vtrn1q_s32(one, other);
        t[i + 1] = vtrn2q_s32(one, other);
    }
    for (int i = 0; i < 2; i++) {
        const int64x2_t top = vreinterpretq_s64_s32(t[i]), bottom = vreinterpretq_s64_s32(t[i + 2]);
        r[i] = vreinterpretq_u8_s64(vtrn1q_s64(top, bottom));
        r[i + 2] = vreinterpretq_u8_s64(vtrn2q_s64(top, bottom));
    }
}

/* Multiply two vectors of a panel's columns by rows of A: dots[row] += codes[step] * x[step][row]. */
INLINE void tile_products(const uint8_t *codes, int64_t steps, const int planes, const int32_t *x, int64_t stride,
                          const int rows, Ints left[], Ints right[]) {
    (void)planes;
    for (const uint8_t *end = codes + steps * 4 * COLUMNS; codes < end; codes += 4 * COLUMNS, x += stride) {
        const int8x16_t one = vreinterpretq_s8_u8(load_bytes(codes));
        const int8x16_t other = vreinterpretq_s8_u8(load_bytes(codes + BYTES));
        UNROLLED for (int row = 0; row < rows; row += 4) {
            const int8x16_t four = vreinterpretq_s8_s32(vld1q_s32(x + row));
#define OF_ROW(i)                                                                                                    \
    left[row + i] = vdotq_laneq_s32(left[row + i], one, four, i);                                                    \
    right[row + i] = vdotq_laneq_s32(right[row + i], other, four, i);
            OF_ROW(0) OF_ROW(1) OF_ROW(2) OF_ROW(3)
#undef OF_ROW
        }
    }
}

#endif
