/* `low_rank.h` in vectors: an instruction set includes this after its vectors.

   A few tokens meet a few rows of A, or a few vectors of B's columns, so that each value that is loaded is used several
   times. */

#ifndef LOOPS_LOW_RANK_H
#define LOOPS_LOW_RANK_H

/* Several tokens with few ranks or vectors, or one token with several, so that all sums are in registers. */
enum { TOKENS = 4, FEW_RANKS = 2, RANKS = 8, FEW_VECTORS = 2, VECTORS = 4 };

/* Compute h of some tokens and ranks. */
INLINE void down_tile(const Change *change, int64_t t, int64_t r, const int tokens, const int ranks) {
    const int64_t K = change->K, whole = K - K % VECTOR;
    const float *x = change->x + t * K, *A = change->A + r * K;
    Floats sums[TOKENS][RANKS];
    for (int i = 0; i < tokens; i++)
        for (int j = 0; j < ranks; j++) sums[i][j] = all_floats(0.0f);
    for (int64_t k = 0; k < K; k += VECTOR) {
        Floats a[RANKS];
        UNROLLED for (int j = 0; j < ranks; j++)
            a[j] = k < whole ? load_floats(A + j * K + k) : load_first(A + j * K + k, K - k);
        UNROLLED for (int i = 0; i < tokens; i++) {
            const Floats values = k < whole ? load_floats(x + i * K + k) : load_first(x + i * K + k, K - k);
            UNROLLED for (int j = 0; j < ranks; j++) sums[i][j] = fused(values, a[j], sums[i][j]);
        }
    }
    for (int i = 0; i < tokens; i++)
        for (int j = 0; j < ranks; j++) change->h[(t + i) * change->R + r + j] = sum_of(sums[i][j]);
}

/* Compute some vectors of y of some tokens from h; `count` columns are left from the first vector on. */
INLINE void up_tile(const Change *change, const float *h, int64_t t, int64_t n, int64_t count, const int tokens,
                    const int vectors) {
    const int64_t N = change->N, R = change->R, L = change->L;
    Floats sums[TOKENS][VECTORS];
    UNROLLED for (int i = 0; i < tokens; i++)
        UNROLLED for (int j = 0; j < vectors; j++)
            sums[i][j] = load_first(change->unchanged + (t + i) * N + n + j * VECTOR, count - j * VECTOR);
    for (int64_t r = 0; r < L; r++) {
        Floats b[VECTORS];
        UNROLLED for (int j = 0; j < vectors; j++)
            b[j] = load_first(change->B + r * N + n + j * VECTOR, count - j * VECTOR);
        UNROLLED for (int i = 0; i < tokens; i++) {
            const Floats factor = all_floats(h[(t + i) * R + r]);
            UNROLLED for (int j = 0; j < vectors; j++) sums[i][j] = fused(factor, b[j], sums[i][j]);
        }
    }
    UNROLLED for (int i = 0; i < tokens; i++)
        UNROLLED for (int j = 0; j < vectors; j++)
            store_first(change->y + (t + i) * N + n + j * VECTOR, sums[i][j], count - j * VECTOR);
}

KERNEL static void down(const Change *change, const Part *part) {
    int64_t t = part->first;
    for (; t + TOKENS <= part->last; t += TOKENS) {
        int64_t r = part->begin;
        for (; r + FEW_RANKS <= part->end; r += FEW_RANKS) down_tile(change, t, r, TOKENS, FEW_RANKS);
        for (; r < part->end; r++) down_tile(change, t, r, TOKENS, 1);
    }
    for (; t < part->last; t++) {
        int64_t r = part->begin;
        for (; r + RANKS <= part->end; r += RANKS) down_tile(change, t, r, 1, RANKS);
        for (; r < part->end; r++) down_tile(change, t, r, 1, 1);
    }
}

KERNEL static void up(const Change *change, const Part *part) {
    const float *h = change->h + part->rank;
    const int64_t few = FEW_VECTORS * VECTOR, several = VECTORS * VECTOR;
    int64_t t = part->first;
    for (; t + TOKENS <= part->last; t += TOKENS) {
        int64_t n = part->begin;
        for (; n + few <= part->end; n += few) up_tile(change, h, t, n, few, TOKENS, FEW_VECTORS);
        for (; n < part->end; n += VECTOR) up_tile(change, h, t, n, part->end - n, TOKENS, 1);
    }
    for (; t < part->last; t++) {
        int64_t n = part->begin;
        for (; n + several <= part->end; n += several) up_tile(change, h, t, n, several, 1, VECTORS);
        for (; n < part->end; n += VECTOR) up_tile(change, h, t, n, part->end - n, 1, 1);
    }
}

#endif
