/* Sums of products with AVX2, which adds pairs of products of bytes to numbers of 16 bits, and clips what they do not
   hold: two products of codes of 4 bits, 2 * 15 * 127, fit eight times (30,480 of 32,767). So eight are added before
   one instruction widens them, and codes of 8 bits are multiplied in two parts, their low halves and their high ones. */

#ifndef AVX2_SUMS_H
#define AVX2_SUMS_H

#include "../numbers.h"
#include "../products.h"
#include "vectors.h"

enum { PLANES = 2, TILE_ROWS = 4 };         /* parts in which codes of 8 bits are multiplied, most rows of a tile */
enum { QUADS = 1 };                         /* of a row's bytes that are multiplied at once */
enum { MOST_SUMS = 8 };                     /* of 16 bits */

/* Load int8 codes, of which `left` are there, as numbers of 16 bits, multiply them by words and add pairs to a sum. */
INLINE Ints dot_words(Ints sum, const int8_t *codes, int64_t left, const int16_t *words) {
    __m128i narrow = left >= BYTES / 2 ? _mm_loadu_si128((const __m128i *)codes) : load_8(codes, left);
    return add_ints(sum, _mm256_madd_epi16(_mm256_cvtepi8_epi16(narrow), load_bytes(words)));
}

/* A vector of codes as the processor multiplies it: their low halves and their high ones. */
typedef struct { Bytes low, high; } Codes;

INLINE Codes split(Bytes codes, const int halves) {
    (void)halves;
    return (Codes){low_nibbles(codes), high_nibbles(codes)};
}

/* The sums of one block, of 16 bits. With codes of 8 bits those of their high halves are apart: they count 16 times. */
typedef struct { __m256i low, high; } Sums;

INLINE Sums no_sums(void) { return (Sums){no_ints(), no_ints()}; }

INLINE Ints widened(__m256i sums, int times) { return _mm256_madd_epi16(sums, _mm256_set1_epi16((short)times)); }

INLINE Ints sums_to_ints(Sums sums, const int halves) {
    return halves == 2 ? widened(sums.low, 1) : add_ints(widened(sums.low, 1), widened(sums.high, 16));
}

/* sums + codes * x, at once: gcc would keep all products first and add them up as a tree, from memory. */
INLINE __m256i dot(__m256i sums, Bytes codes, Bytes x) {
    sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, x));
    __asm__("" : "+x"(sums));
    return sums;
}

/* Add W's codes * A's. With two codes in a byte, A's that meet the low halves lie at x and the others behind them. */
INLINE Sums add_products(Sums sums, Codes codes, const int8_t *x, const int halves) {
    sums.low = dot(sums.low, codes.low, load_bytes(x));
    if (halves == 2)
        sums.low = dot(sums.low, codes.high, load_bytes(x + BYTES));
    else
        sums.high = dot(sums.high, codes.high, load_bytes(x));
    return sums;
}

/* Multiply two vectors of a panel's columns by rows of A: dots[row] += codes[step] * x[step][row]. */
INLINE void tile_products(const uint8_t *codes, int64_t steps, const int planes, const int32_t *x, int64_t stride,
                          const int rows, Ints left[], Ints right[]) {
    for (int plane = 0; plane < planes; plane++)
        for (int64_t step = 0; step < steps; step += MOST_SUMS) {
            const int32_t *next = x + step * stride;
            __m256i lefts[TILE_ROWS], rights[TILE_ROWS];
            UNROLLED for (int row = 0; row < rows; row++) lefts[row] = rights[row] = no_ints();
            for (int i = 0; i < MOST_SUMS; i++, codes += 4 * COLUMNS, next += stride) {
                Bytes one = load_bytes(codes), other = load_bytes(codes + BYTES);
                UNROLLED for (int row = 0; row < rows; row++) {
                    Bytes all = all_bytes(next[row]);
                    lefts[row] = dot(lefts[row], one, all), rights[row] = dot(rights[row], other, all);
                }
            }
            UNROLLED for (int row = 0; row < rows; row++) {
                left[row] = add_ints(left[row], widened(lefts[row], plane ? 16 : 1));
                right[row] = add_ints(right[row], widened(rights[row], plane ? 16 : 1));
            }
        }
}

#endif
