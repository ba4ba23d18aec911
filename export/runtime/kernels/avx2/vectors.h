/* Vectors of AVX2: 8 lanes of 32 bits. `loops/` computes with them. */

#ifndef AVX2_VECTORS_H
#define AVX2_VECTORS_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { VECTOR = 8, BYTES = 32 };            /* lanes of a vector, and its bytes */

#define KERNEL __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) KERNEL

typedef __m256 Floats;
typedef __m256i Ints;                       /* of 32 bits */
typedef __m256i Bytes;

/* Floats. `count` is any number; lanes after the first `count` are not read or written. */

/* A mask of the first `count` lanes. */
INLINE __m256i first(int64_t count) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count >= VECTOR ? VECTOR : (int)count), lanes);
}

INLINE Floats all_floats(float x) { return _mm256_set1_ps(x); }
INLINE Floats load_floats(const float *from) { return _mm256_loadu_ps(from); }
INLINE Floats load_first(const float *from, int64_t count) {
    return count >= VECTOR ? load_floats(from) : _mm256_maskload_ps(from, first(count));
}
INLINE void store_floats(float *to, Floats x) { _mm256_storeu_ps(to, x); }
INLINE void store_first(float *to, Floats x, int64_t count) {
    if (count >= VECTOR)
        store_floats(to, x);
    else
        _mm256_maskstore_ps(to, first(count), x);
}

/* The first lanes of x, and `rest` in the others. */
INLINE Floats first_of(Floats x, int64_t count, Floats rest) {
    return _mm256_blendv_ps(rest, x, _mm256_castsi256_ps(first(count)));
}

INLINE Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }          /* a * b + c */
INLINE Floats fused_off(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }     /* c - a * b */
INLINE Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
INLINE Floats magnitude(Floats x) { return _mm256_andnot_ps(all_floats(-0.0f), x); }
INLINE float largest_of(Floats x) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
INLINE float sum_of(Floats x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
INLINE Floats nearest(Floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

/* x * 2^n, for whole n whose powers a float holds. */
INLINE Floats times_power_of_2(Floats x, Floats n) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return x * _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}

/* Numbers of 32 bits. */

INLINE Ints no_ints(void) { return _mm256_setzero_si256(); }
INLINE Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
INLINE int32_t sum_of_ints(Ints x) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}
INLINE Ints to_ints(Floats x) { return _mm256_cvtps_epi32(x); }
INLINE Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }

/* Transpose 8 x 8 numbers. */
INLINE void transpose(Bytes r[VECTOR]) {
    Ints t[VECTOR];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) r[i] = t[i];
}

/* The sums of each vector's lanes. */
INLINE Ints sums_of_each(Ints r[VECTOR]) {
    Ints left = _mm256_hadd_epi32(_mm256_hadd_epi32(r[0], r[1]), _mm256_hadd_epi32(r[2], r[3]));
    Ints right = _mm256_hadd_epi32(_mm256_hadd_epi32(r[4], r[5]), _mm256_hadd_epi32(r[6], r[7]));
    return add_ints(_mm256_permute2x128_si256(left, right, 0x20), _mm256_permute2x128_si256(left, right, 0x31));
}

/* Scales and zero points as floats, and zeros after the first `count`. */

INLINE float half_as_float(uint16_t half) { return _cvtsh_ss(half); }
INLINE Floats halves_as_floats(const uint16_t *from, int64_t count) {
    if (count >= VECTOR) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
    uint16_t some[VECTOR] = {0};
    for (int64_t i = 0; i < count; i++) some[i] = from[i];
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)some));
}

/* Load `count` bytes, 8 at most; the others are zeros. */
INLINE __m128i load_8(const void *from, int64_t count) {
    if (count >= 8) return _mm_loadl_epi64(from);
    uint64_t some = 0;
    for (int64_t i = count - 1; i >= 0; i--) some = some << 8 | ((const uint8_t *)from)[i];
    return _mm_cvtsi64_si128((int64_t)some);
}
INLINE Floats bytes_as_floats(const uint8_t *from, int64_t count) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_8(from, count)));
}

/* The same of numbers of 4 bits, of which the first of two is in a byte's low half. */
INLINE Floats nibbles_as_floats(const uint8_t *from, int64_t count) {
    uint32_t packed;
    if (count >= VECTOR)
        memcpy(&packed, from, 4);
    else
        packed = (uint32_t)_mm_cvtsi128_si32(load_8(from, (count + 1) / 2));
    const __m256i moves = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    __m256i moved = _mm256_srlv_epi32(_mm256_set1_epi32((int)packed), moves);
    return _mm256_cvtepi32_ps(_mm256_and_si256(moved, _mm256_set1_epi32(15)));
}

/* Load the scales of the two blocks that share a vector of codes, each into the lanes of its block. */
INLINE Floats spread(const float *scales, int shared) {
    (void)shared;
    return _mm256_set_m128(_mm_set1_ps(scales[1]), _mm_set1_ps(scales[0]));
}

/* Codes. */

/* Codes of 8 bits are multiplied as they are: instructions take unsigned ones. */
enum { CENTER = 0 };
INLINE Bytes centered(Bytes codes) { return codes; }

INLINE Bytes all_bytes(int32_t four) { return _mm256_set1_epi32(four); }

/* Load codes, and zeros in the other half if only half a vector is left. */
INLINE Bytes load_codes(const uint8_t *codes, int64_t left) {
    return left >= BYTES ? _mm256_loadu_si256((const __m256i *)codes)
                         : _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)codes));
}
INLINE Bytes load_bytes(const void *from) { return _mm256_loadu_si256(from); }
INLINE void store_bytes(void *to, Bytes x) { _mm256_store_si256(to, x); }       /* to a multiple of BYTES */
INLINE Bytes low_nibbles(Bytes x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
INLINE Bytes high_nibbles(Bytes x) { return low_nibbles(_mm256_srli_epi16(x, 4)); }

/* Widen the v-th vector of a block of 3 bits, a quarter of it, to even codes of 4 bits: first two bits of each, then
   the third bits, which are shifted differently for each quarter. */
INLINE Bytes widen(const uint8_t *block, int v) {
    __m256i low = load_bytes(block + v % 2 * BYTES), third = load_bytes(block + 2 * BYTES);
    low = _mm256_and_si256(v < 2 ? _mm256_slli_epi16(low, 1) : _mm256_srli_epi16(low, 1), _mm256_set1_epi8(0x66));
    third = _mm256_sll_epi16(third, _mm_cvtsi32_si128(3 - v));
    return _mm256_or_si256(low, _mm256_and_si256(third, _mm256_set1_epi8((char)0x88)));
}

/* Load int8 codes as numbers of 32 bits; lanes after the first `count` are zeros. */
INLINE Ints load_int8(const int8_t *from, int64_t count) { return _mm256_cvtepi8_epi32(load_8(from, count)); }

/* Two vectors of numbers as int8 codes, as near as int8 comes to them. */
INLINE __m128i to_int8(Ints low, Ints high) {
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

/* Store numbers as int8 codes. */
INLINE void store_int8(int8_t *to, Ints x, int64_t count) {
    __m128i codes = to_int8(x, x);
    if (count >= VECTOR)
        _mm_storel_epi64((__m128i *)to, codes);
    else
        memcpy(to, &codes, (size_t)count);
}

/* Store two vectors of numbers as int8 codes, either one after the other, or the even ones of both and the odd ones. */
INLINE void store_pair(int8_t *one, int8_t *other, Ints low, Ints high, int by_parity) {
    const __m128i parity = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    __m128i codes = to_int8(low, high);
    if (by_parity) codes = _mm_shuffle_epi8(codes, parity);
    _mm_storel_epi64((__m128i *)one, codes);
    _mm_storel_epi64((__m128i *)other, _mm_unpackhi_epi64(codes, codes));
}

#endif
