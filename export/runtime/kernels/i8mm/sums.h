/* Sums of products with I8MM's SMMLA, which multiplies two rows of eight signed bytes by two others: four sums. */

#ifndef I8MM_SUMS_H
#define I8MM_SUMS_H

#define TARGET "arch=armv8.2-a+dotprod+i8mm"
#include "../neon/vectors.h"

enum { PLANES = 1, TILE_ROWS = 12 };        /* parts in which codes of 8 bits are multiplied, most rows of a tile */
enum { QUADS = 2 };                         /* of a row's bytes that are multiplied at once */

#include "../neon/dot.h"

/* Reorder 4 rows of two steps of 8 bytes: r[2 * step] gets those of two rows, and r[2 * step + 1] those of the others. */
INLINE void transpose(Bytes r[VECTOR]) {
    int64x2_t rows[VECTOR];
    for (int i = 0; i < VECTOR; i++) rows[i] = vreinterpretq_s64_u8(r[i]);
    for (int i = 0; i < 2; i++) {
        r[i] = vreinterpretq_u8_s64(vtrn1q_s64(rows[2 * i], rows[2 * i + 1]));
        r[i + 2] = vreinterpretq_u8_s64(vtrn2q_s64(rows[2 * i], rows[2 * i + 1]));
    }
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
        int8x16_t of_w[4];
        UNROLLED for (int i = 0; i < 4; i++) of_w[i] = vreinterpretq_s8_u8(load_bytes(codes + i * BYTES));
        UNROLLED for (int pair = 0; pair < rows / 2; pair++) {
            const int8x16_t of_a = vreinterpretq_s8_s32(vld1q_s32(x + 4 * pair));
            UNROLLED for (int i = 0; i < 4; i++) sums[pair][i] = vmmlaq_s32(sums[pair][i], of_a, of_w[i]);
        }
    }
    UNROLLED for (int pair = 0; pair < rows / 2; pair++) {
        add_rows(&left[2 * pair], &left[2 * pair + 1], sums[pair][0], sums[pair][1]);
        add_rows(&right[2 * pair], &right[2 * pair + 1], sums[pair][2], sums[pair][3]);
    }
}

#endif
