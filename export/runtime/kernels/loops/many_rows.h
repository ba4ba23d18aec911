/* Multiplies many rows of A: panels of W are reordered for the processor, once for SLAB rows. */

#ifndef MANY_ROWS_H
#define MANY_ROWS_H

enum { SLAB = 11 * TILE, MOST_BLOCK = 256, PAIR = 2 * VECTOR };    /* PAIR: columns of Y that a tile computes */

/* A panel: one block of COLUMNS rows of W in the order in which the processor multiplies them, [k / 4][row][4], or with
   two QUADS [k / 8][row][8]. If it multiplies codes of 8 bits in two parts, all low halves come before all high ones. */
typedef struct {
    uint8_t codes[MOST_BLOCK * COLUMNS * PLANES];
    float scales[COLUMNS], zeros[COLUMNS];      /* zeros: scale * zero point */
    int planes;
} __attribute__((aligned(64))) Panel;

/* Reorder a block of COLUMNS rows of W. */
INLINE void fill(Panel *panel, const Weight *weight, int64_t n, int64_t block) {
    const int bytes = weight->block_size * weight->bits / 8;
    const int widened = weight->bits == 3 ? THREE_BITS_BLOCK / 2 : bytes;
    for (int column = 0; column < COLUMNS; column++) {
        int64_t row = least(n + column, weight->N - 1);
        const int64_t at = row * weight->blocks + block;
        panel->scales[column] = weight->bits == 3 ? half_as_float(((const uint16_t *)weight->scales)[at])
                                                  : ((const float *)weight->scales)[at];
        int zero = 1 << (weight->bits - 1);
        if (weight->zero_points && weight->bits == 8) zero = weight->zero_points[row * weight->blocks + block];
        if (weight->bits == 8) zero -= CENTER;
        if (weight->zero_points && weight->bits < 8)
            zero = weight->zero_points[row * ((weight->blocks + 1) / 2) + block / 2] >> (block % 2 * 4) & 15;
        panel->zeros[column] = panel->scales[column] * (float)zero;
    }
    panel->planes = weight->bits == 8 ? PLANES : 1;
    for (int part = 0; part < COLUMNS; part += VECTOR)
        for (int from = 0; from < widened; from += BYTES) {
            Bytes r[VECTOR];
            int count = (widened - from >= BYTES ? BYTES : widened - from) / 4;
            for (int i = 0; i < VECTOR; i++) {
                int64_t row = least(n + part + i, weight->N - 1);
                const uint8_t *codes = weight->codes + (row * weight->blocks + block) * bytes;
                const int at = weight->bits == 3 ? from * 3 / 4 : from;
                __builtin_prefetch(codes + at + COLUMNS * weight->blocks * bytes, 0, 2);        /* the next panel's */
                r[i] = weight->bits == 3 ? widen(codes, from / BYTES) : load_codes(codes + from, widened - from);
            }
            transpose(r);
            uint8_t *to = panel->codes + (int64_t)from * (weight->bits < 8 ? 2 : 1) * COLUMNS;
            const int64_t apart = (int64_t)COLUMNS * (weight->bits < 8 ? count * 4 : weight->block_size);
            for (int i = 0; i < count; i++) {
                uint8_t *low = to + (i / QUADS * COLUMNS + part) * QUADS * 4 + i % QUADS * BYTES;
                if (weight->bits == 8 && PLANES == 1) {
                    store_bytes(low, centered(r[i]));
                } else {
                    store_bytes(low, low_nibbles(r[i]));
                    store_bytes(low + apart, high_nibbles(r[i]));
                }
            }
        }
}

/* total += scale (w_scale * dot) - sum * w_scale * zero */
INLINE void add(float *total, Ints dot, Floats scale, Floats sum, const float *w_scales, const float *zeros) {
    Floats before = fused_off(sum, load_floats(zeros), load_floats(total));
    store_floats(total, fused(to_floats(dot) * load_floats(w_scales), scale, before));
}

/* Add a panel's products to totals[row][column], of PAIR columns and some rows of A; x is [steps][stride], or with two
   QUADS [steps / 2][2 * stride]. */
INLINE void tile(const Panel *panel, int column, int64_t steps, const int32_t *x, int64_t stride, const float *scales,
                 const float *sums, int64_t padded, float *totals, const int rows) {
    Ints left[TILE], right[TILE];
    UNROLLED for (int row = 0; row < rows; row++) left[row] = right[row] = no_ints();
    tile_products(panel->codes + column * QUADS * 4, steps, panel->planes, x, stride, rows, left, right);
    UNROLLED for (int row = 0; row < rows; row++) {
        Floats scale = all_floats(scales[row * padded]), sum = all_floats(sums[row * padded]);
        float *total = totals + row * COLUMNS + column;
        const float *w_scales = panel->scales + column, *zeros = panel->zeros + column;
        add(total, left[row], scale, sum, w_scales, zeros);
        add(total + VECTOR, right[row], scale, sum, w_scales + VECTOR, zeros + VECTOR);
    }
}

/* A function of its own, whose sums stay in registers; gcc spills those of a copy that knows its arguments. */
#ifdef __clang__
#define ALONE __attribute__((noinline))
#else
#define ALONE __attribute__((noinline, noclone))
#endif
#define TILE_KERNEL(rows)                                                                                            \
    KERNEL ALONE static void tile_##rows(const Panel *panel, int column, int64_t steps, const int32_t *x,            \
                                         int64_t stride, const float *scales, const float *sums, int64_t padded,     \
                                         float *totals) {                                                            \
        tile(panel, column, steps, x, stride, scales, sums, padded, totals, rows);                                   \
    }

TILE_KERNEL(4)
TILE_KERNEL(6)
TILE_KERNEL(8)
TILE_KERNEL(12)

/* Add a panel's products to the totals of `count` rows of A, 4, 8 or 12, in as few tiles as the registers allow. */
INLINE void tiles(const Panel *panel, int64_t steps, const int32_t *x, int64_t count, const float *scales,
                  const float *sums, int64_t padded, float *totals) {
    const int64_t rows = count <= TILE_ROWS ? count : count % TILE_ROWS ? ROWS : TILE_ROWS;
    for (int64_t row = 0; row < count; row += rows, scales += rows * padded, sums += rows * padded)
        for (int column = 0; column < COLUMNS; column += PAIR) {
            float *to = totals + row * COLUMNS;
            if (TILE_ROWS >= 12 && rows == 12)
                tile_12(panel, column, steps, x + row * QUADS, count, scales, sums, padded, to);
            else if (TILE_ROWS >= 8 && rows == 8)
                tile_8(panel, column, steps, x + row * QUADS, count, scales, sums, padded, to);
            else if (TILE_ROWS == 6 && rows == 6)
                tile_6(panel, column, steps, x + row * QUADS, count, scales, sums, padded, to);
            else
                tile_4(panel, column, steps, x + row * QUADS, count, scales, sums, padded, to);
        }
}

KERNEL static void many_rows(const Weight *weight, const Rounded *rounded, float *y, int64_t begin, int64_t end) {
    static _Thread_local float totals[SLAB * COLUMNS] __attribute__((aligned(64)));
    static _Thread_local Panel panel;
    const int64_t steps = weight->block_size / 4, padded = rounded->padded_blocks;
    for (int64_t n = begin; n < end; n += COLUMNS)
        for (int64_t slab = 0; slab < rounded->M; slab += SLAB) {
            int64_t rows = least(rounded->M - slab, SLAB);
            memset(totals, 0, sizeof totals);
            for (int64_t block = 0; block < weight->blocks; block++) {
                fill(&panel, weight, n, block);
                for (int64_t m = 0; m < rows; m += TILE) {
                    int64_t count = padded_to(ROWS, least(rows - m, TILE)), at = slab + m;
                    const int32_t *x = (const int32_t *)(rounded->codes + at * rounded->width) + block * steps * count;
                    const float *scales = rounded->scales + at * padded + block;
                    const float *sums = rounded->sums + at * padded + block;
                    tiles(&panel, steps, x, count, scales, sums, padded, totals + m * COLUMNS);
                }
            }
            for (int64_t m = 0; m < rows; m++)
                for (int64_t column = n; column < least(n + COLUMNS, end); column += VECTOR) {
                    Floats sum = load_floats(totals + m * COLUMNS + column - n);
                    int64_t count = least(n + COLUMNS, end) - column;
                    if (weight->bias) sum += load_first(weight->bias + column, count);
                    store_first(y + (slab + m) * weight->N + column, sum, count);
                }
        }
}

#endif
