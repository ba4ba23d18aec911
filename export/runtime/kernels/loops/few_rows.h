/* Multiplies few rows of A: each row of W is read once, from end to end, and meets all of them. */

#ifndef FEW_ROWS_H
#define FEW_ROWS_H

enum { AHEAD = 4096, ROWS_AHEAD = 16, FETCHED = 64 };   /* FETCHED: bytes that one prefetch brings */

/* Load the scales of VECTOR blocks of a row, from `block` on, and prefetch those of a later row. */
INLINE Floats load_scales(const Weight *weight, int64_t n, int64_t block) {
    const int64_t at = n * weight->blocks + block, later = at + ROWS_AHEAD * weight->blocks;
    if (weight->bits == 3) {
        const uint16_t *scales = weight->scales;
        __builtin_prefetch(scales + later);
        return halves_as_floats(scales + at, weight->blocks - block);
    }
    const float *scales = weight->scales;
    __builtin_prefetch(scales + later);
    return load_first(scales + at, weight->blocks - block);
}

/* Load the zero points of VECTOR blocks of a row, from `block` on. */
INLINE Floats zero_points(const Weight *weight, int64_t n, int64_t block) {
    const float center = weight->bits == 8 ? (float)CENTER : 0.0f;
    if (!weight->zero_points) return all_floats((float)(1 << (weight->bits - 1)) - center);
    int64_t count = least(weight->blocks - block, VECTOR);
    if (weight->bits == 8)
        return bytes_as_floats(weight->zero_points + n * weight->blocks + block, count) - all_floats(center);
    const int64_t row = (weight->blocks + 1) / 2;
    const uint8_t *at = weight->zero_points + n * row + block / 2;
    __builtin_prefetch(at + ROWS_AHEAD * row);
    return nibbles_as_floats(at, count);
}

/* What of row n of W is no code: the scale of each block's product, and what its zero points take off the totals. */
INLINE void begin_row(const Weight *weight, const Rounded *rounded, int64_t n, float *scales, Floats total[FEW],
                      const int M) {
    const int64_t padded = rounded->padded_blocks;
    for (int m = 0; m < M; m++) total[m] = all_floats(0.0f);
    for (int64_t block = 0; block < weight->blocks; block += VECTOR) {
        Floats scale = load_scales(weight, n, block);
        Floats zero = scale * zero_points(weight, n, block);
        for (int m = 0; m < M; m++) {
            Floats of_a = load_floats(rounded->scales + m * padded + block);
            store_floats(scales + m * (padded + VECTOR) + block, scale * of_a);
            total[m] = fused_off(zero, load_floats(rounded->sums + m * padded + block), total[m]);
        }
    }
}

INLINE void end_row(const Weight *weight, float *y, int64_t n, const Floats total[FEW], const int M) {
    for (int m = 0; m < M; m++) y[m * weight->N + n] = sum_of(total[m]) + (weight->bias ? weight->bias[n] : 0.0f);
}

/* Multiply; a block of W is one or more vectors of codes. */
INLINE void rows_of_large_blocks(const Weight *weight, const Rounded *rounded, float *y, int64_t begin, int64_t end,
                                 const int bits, const int block_size, const int M) {
    const int halves = bits == 8 ? 1 : 2, columns = BYTES * halves, vectors = block_size / columns;
    const int64_t bytes = weight->blocks * block_size * bits / 8, stride = rounded->padded_blocks + VECTOR;
    float scales[M * stride];
    for (int64_t n = begin; n < end; n++) {
        const uint8_t *codes = weight->codes + n * bytes;
        const int8_t *x = rounded->codes;
        Floats total[FEW];
        begin_row(weight, rounded, n, scales, total, M);
        for (int64_t block = 0; block < weight->blocks; block++) {
            Sums acc[FEW];
            for (int m = 0; m < M; m++) acc[m] = no_sums();
            UNROLLED for (int v = 0; v < vectors; v++, codes += columns * bits / 8, x += columns) {
                if (v * BYTES % FETCHED == 0) __builtin_prefetch(codes + AHEAD);
                const int before = columns * bits / 8 * v;
                const Codes parts = split(bits == 3 ? widen(codes - before, v) : load_codes(codes, BYTES), halves);
                for (int m = 0; m < M; m++) acc[m] = add_products(acc[m], parts, x + m * rounded->width, halves);
            }
            for (int m = 0; m < M; m++) {
                Floats scale = all_floats(scales[m * stride + block]);
                total[m] = fused(to_floats(sums_to_ints(acc[m], halves)), scale, total[m]);
            }
        }
        end_row(weight, y, n, total, M);
    }
}

/* Multiply; several blocks of W share a vector of codes. */
INLINE void rows_of_small_blocks(const Weight *weight, const Rounded *rounded, float *y, int64_t begin, int64_t end,
                                 const int bits, const int block_size, const int M) {
    const int halves = bits == 8 ? 1 : 2, columns = BYTES * halves, shared = columns / block_size;
    const int64_t bytes = weight->blocks * block_size * bits / 8, stride = rounded->padded_blocks + VECTOR;
    float scales[M * stride];
    for (int64_t n = begin; n < end; n++) {
        const uint8_t *codes = weight->codes + n * bytes;
        const int8_t *x = rounded->codes;
        int64_t left = bytes;
        Floats total[FEW];
        begin_row(weight, rounded, n, scales, total, M);
        for (int64_t block = 0; block < weight->blocks; block += shared, codes += BYTES, x += columns, left -= BYTES) {
            __builtin_prefetch(codes + AHEAD);
            const Codes parts = split(load_codes(codes, left), halves);
            for (int m = 0; m < M; m++) {
                Sums acc = add_products(no_sums(), parts, x + m * rounded->width, halves);
                Floats scale = spread(scales + m * stride + block, shared);
                total[m] = fused(to_floats(sums_to_ints(acc, halves)), scale, total[m]);
            }
        }
        end_row(weight, y, n, total, M);
    }
}

INLINE void few_rows(const Weight *weight, const Rounded *rounded, float *y, int64_t begin, int64_t end, const int bits,
                     const int block_size, const int M) {
    if (block_size >= (bits == 8 ? BYTES : 2 * BYTES))
        rows_of_large_blocks(weight, rounded, y, begin, end, bits, block_size, M);
    else
        rows_of_small_blocks(weight, rounded, y, begin, end, bits, block_size, M);
}

#endif
