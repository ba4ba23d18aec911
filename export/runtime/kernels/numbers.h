/* Arithmetic on whole numbers for the kernels, and loops that are unrolled. */

#ifndef NUMBERS_H
#define NUMBERS_H

#include <stdint.h>

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* How many pieces cover a whole. */
static inline int64_t pieces(int64_t whole, int64_t piece) { return (whole + piece - 1) / piece; }

/* A whole, rounded up to a multiple of a piece. */
static inline int64_t padded_to(int64_t piece, int64_t whole) { return pieces(whole, piece) * piece; }

/* Before a loop of a few rounds, whose array is then in registers. */
#ifdef __clang__
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif

#endif
