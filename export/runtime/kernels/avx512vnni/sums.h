/* Sums of products with AVX-512 VNNI, which adds four products of bytes to each number of 32 bits. */

#ifndef SUMS_H
#define SUMS_H

#include "vectors.h"

enum { PLANES = 1, TILE_ROWS = 12 };        /* parts in which codes of 8 bits are multiplied, most rows of a tile */
enum { QUADS = 1 };                         /* of a row's bytes that are multiplied at once */

/* acc + codes * x, in place. With the intrinsics, gcc 12 copies each sum at each step, which halves the speed. */
INLINE Ints dot(Ints acc, Bytes codes, Bytes x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(codes), "v"(x));
    return acc;
}
INLINE Ints dot_16(Ints acc, __m512i words, __m512i x) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(words), "v"(x));
    return acc;
}

/* Load int8 codes, of which `left` are there, as numbers of 16 bits, multiply them by words and add pairs to a sum. */
INLINE Ints dot_words(Ints sum, const int8_t *codes, int64_t left, const int16_t *words) {
    const __m256i narrow = left >= BYTES / 2 ? _mm256_loadu_si256((const __m256i *)codes)
                                             : _mm256_maskz_loadu_epi8(((__mmask32)1 << left) - 1, codes);
    return dot_16(sum, _mm512_cvtepi8_epi16(narrow), _mm512_loadu_si512(words));
}

#include "../loops/dot_sums.h"
#include "../loops/dot_tiles.h"

#endif
