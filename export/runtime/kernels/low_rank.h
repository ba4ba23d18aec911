/* y = unchanged + (x A^T) B: what a low-rank adapter adds to a product, of one row of a batch with its own adapter.

   x   float [T, K]                unchanged, y   float [T, N], which may be the same memory
   A   float [R, K]                h              float [T, R], x A^T
   B   float [L, N]

   A product of several matrices has ranks for each, L of A's R rows; columns of y belong to one matrix and take only
   its part of h, so B has no zeros for the others.

   Every sum has its own accumulator and the same order, whatever is computed beside it. So a token's result does not
   depend on the other tokens and rows. */

#ifndef LOW_RANK_H
#define LOW_RANK_H

#include <stdint.h>

typedef struct {
    int64_t T, K, N, R, L;
    const float *x, *A, *B, *unchanged;
    float *h, *y;
} Change;

/* A part of a change: tokens [first, last), and either ranks of h or columns of y [begin, end), which take h from
   `rank` on. */
typedef struct {
    int64_t first, last, begin, end, rank;
} Part;

/* Tokens, ranks and columns of one part. */
enum { PART_TOKENS = 32, PART_RANKS = 8, PART_COLUMNS = 512 };

/* The two products, of one instruction set. */
typedef struct {
    void (*down)(const Change *change, const Part *part);       /* compute h */
    void (*up)(const Change *change, const Part *part);         /* compute y from h */
} LowRank;

extern const LowRank AVX512VNNI_LOW_RANK, AVXVNNI_LOW_RANK, AVX2_LOW_RANK, I8MM_LOW_RANK, NEON_LOW_RANK, SCALAR_LOW_RANK;

#endif
