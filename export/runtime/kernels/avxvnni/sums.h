/* Sums of products with AVX-VNNI, which adds four products of bytes to each number of 32 bits. */

#ifndef AVXVNNI_SUMS_H
#define AVXVNNI_SUMS_H

#include "../avx2/vectors.h"

enum { PLANES = 1, TILE_ROWS = 6 };         /* parts in which codes of 8 bits are multiplied, most rows of a tile */
enum { QUADS = 1 };                         /* of a row's bytes that are multiplied at once */

/* acc + codes * x, in place. The prefix asks for the form of processors without AVX-512. */
INLINE Ints dot(Ints acc, Bytes codes, Bytes x) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(codes), "x"(x));
    return acc;
}
INLINE Ints dot_16(Ints acc, __m256i words, __m256i x) {
    __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(acc) : "x"(words), "x"(x));
    return acc;
}

/* Load int8 codes, of which `left` are there, as numbers of 16 bits, multiply them by words and add pairs to a sum. */
INLINE Ints dot_words(Ints sum, const int8_t *codes, int64_t left, const int16_t *words) {
    __m128i narrow = left >= BYTES / 2 ? _mm_loadu_si128((const __m128i *)codes) : load_8(codes, left);
    return dot_16(sum, _mm256_cvtepi8_epi16(narrow), load_bytes(words));
}

#include "../loops/dot_sums.h"
#include "../loops/dot_tiles.h"

#endif
