/* Sums of products with I8MM's SMMLA, which multiplies two rows of eight signed bytes by two others: four sums. */

#ifndef I8MM_SUMS_H
#define I8MM_SUMS_H

#define TARGET "arch=armv8.2-a+dotprod+i8mm"
#include "../neon/vectors.h"

enum { PLANES = 1, TILE_ROWS = 12 };        /* parts in which codes of 8 bits are multiplied, most rows of a tile */

#include "../neon/dot.h"

/* Two vectors of four quads each, of one step and of the next, as two vectors of two rows of eight bytes. */
typedef struct { int8x16_t of[2]; } Eights;

INLINE Eights eights(const void *step, const void *next) {
    const Ints one = vld1q_s32(step), other = vld1q_s32(next);
    return (Eights){{vreinterpretq_s8_s32(vzip1q_s32(one, other)), vreinterpretq_s8_s32(vzip2q_s32(one, other))}};
}

/* Sums of two rows and two columns each, [row][column], as sums of each row. */
INLINE void add_rows(Ints *even, Ints *odd, Ints first, Ints second) {
    *even = add_ints(*even, vcombine_s32(vget_low_s32(first), vget_low_s32(second)));
    *odd = add_ints(*odd, vcombine_s32(vget_high_s32(first), vget_high_s32(second)));
}

/* Multiply two vectors of a panel's columns by rows of A: dots[row] += codes[step] * x[step][row], two steps at once. */
INLINE void tile_products(const uint8_t *codes, int64_t steps, const int planes, const int32_t *x, int64_t stride,
                          const int rows, Ints left[], Ints right[]) {
    (void)planes;
    Ints sums[TILE_ROWS / 2][4];            /* of two rows and two columns */
    UNROLLED for (int pair = 0; pair < rows / 2; pair++)
        for (int columns = 0; columns < 4; columns++) sums[pair][columns] = no_ints();
    for (int64_t step = 0; step < steps; step += 2, codes += 8 * COLUMNS, x += 2 * stride) {
        const Eights one = eights(codes, codes + 4 * COLUMNS);
        const Eights other = eights(codes + BYTES, codes + 4 * COLUMNS + BYTES);
        UNROLLED for (int row = 0; row < rows; row += 4) {
            const Eights four = eights(x + row, x + stride + row);
            UNROLLED for (int i = 0; i < 2; i++) {
                Ints *of = sums[row / 2 + i];
                of[0] = vmmlaq_s32(of[0], four.of[i], one.of[0]);
                of[1] = vmmlaq_s32(of[1], four.of[i], one.of[1]);
                of[2] = vmmlaq_s32(of[2], four.of[i], other.of[0]);
                of[3] = vmmlaq_s32(of[3], four.of[i], other.of[1]);
            }
        }
    }
    UNROLLED for (int pair = 0; pair < rows / 2; pair++) {
        add_rows(&left[2 * pair], &left[2 * pair + 1], sums[pair][0], sums[pair][1]);
        add_rows(&right[2 * pair], &right[2 * pair + 1], sums[pair][2], sums[pair][3]);
    }
}

#endif
