/* Vectors of AVX-512: 16 lanes of 32 bits. `loops/` computes with them. */

#ifndef VECTORS_H
#define VECTORS_H

#include <immintrin.h>
#include <stdint.h>

enum { VECTOR = 16, BYTES = 64 };           /* lanes of a vector, and its bytes */

#define KERNEL __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) KERNEL

typedef __m512 Floats;
typedef __m512i Ints;                       /* of 32 bits */
typedef __m512i Bytes;

/* Floats. `count` is any number; lanes after the first `count` are not read or written. */

/* A mask of the first `count` lanes. */
INLINE __mmask16 first(int64_t count) {
    return count >= VECTOR ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

INLINE Floats all_floats(float x) { return _mm512_set1_ps(x); }
INLINE Floats load_floats(const float *from) { return _mm512_loadu_ps(from); }
INLINE Floats load_first(const float *from, int64_t count) { return _mm512_maskz_loadu_ps(first(count), from); }
INLINE void store_floats(float *to, Floats x) { _mm512_storeu_ps(to, x); }
INLINE void store_first(float *to, Floats x, int64_t count) { _mm512_mask_storeu_ps(to, first(count), x); }

/* The first lanes of x, and `rest` in the others. */
INLINE Floats first_of(Floats x, int64_t count, Floats rest) { return _mm512_mask_mov_ps(rest, first(count), x); }

INLINE Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }          /* a * b + c */
INLINE Floats fused_off(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }     /* c - a * b */
INLINE Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
INLINE Floats magnitude(Floats x) { return _mm512_abs_ps(x); }
INLINE float largest_of(Floats x) { return _mm512_reduce_max_ps(x); }
INLINE float sum_of(Floats x) { return _mm512_reduce_add_ps(x); }
INLINE Floats nearest(Floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }
INLINE Floats times_power_of_2(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }

/* Numbers of 32 bits. */

INLINE Ints no_ints(void) { return _mm512_setzero_si512(); }
INLINE Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
INLINE int32_t sum_of_ints(Ints x) { return _mm512_reduce_add_epi32(x); }
INLINE Ints to_ints(Floats x) { return _mm512_cvtps_epi32(x); }
INLINE Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }

/* Transpose 16 x 16 numbers. */
INLINE void transpose(Bytes r[VECTOR]) {
    Ints t[VECTOR];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

/* The sums of each vector's lanes. */
INLINE Ints sums_of_each(Ints r[VECTOR]) {
    transpose(r);
    for (int j = 1; j < VECTOR; j++) r[0] = add_ints(r[0], r[j]);
    return r[0];
}

/* Scales and zero points as floats, and zeros after the first `count`. */

INLINE float half_as_float(uint16_t half) { return _cvtsh_ss(half); }
INLINE Floats halves_as_floats(const uint16_t *from, int64_t count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), from));
}
INLINE Floats bytes_as_floats(const uint8_t *from, int64_t count) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(count), from)));
}

/* The same of numbers of 4 bits, of which the first of two is in a byte's low half. */
INLINE Floats nibbles_as_floats(const uint8_t *from, int64_t count) {
    __m128i packed = _mm_maskz_loadu_epi8(first((count + 1) / 2), from);
    __m128i low = _mm_and_si128(packed, _mm_set1_epi8(15));
    __m128i high = _mm_and_si128(_mm_srli_epi16(packed, 4), _mm_set1_epi8(15));
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(low, high)));
}

/* Load the scales of the blocks that share a vector of codes, each into the lanes of its block. */
INLINE Floats spread(const float *scales, int shared) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(lanes, _mm512_set1_epi32(shared == 2 ? 3 : 2)), load_floats(scales));
}

/* Codes. */

/* Codes of 8 bits are multiplied as they are: instructions take unsigned ones. */
enum { CENTER = 0 };
INLINE Bytes centered(Bytes codes) { return codes; }

INLINE Bytes all_bytes(int32_t four) { return _mm512_set1_epi32(four); }

/* Load codes, and zeros if fewer than BYTES are left. */
INLINE Bytes load_codes(const uint8_t *codes, int64_t left) {
    return left >= BYTES ? _mm512_loadu_si512(codes) : _mm512_maskz_loadu_epi8(((__mmask64)1 << left) - 1, codes);
}
INLINE Bytes load_bytes(const void *from) { return _mm512_loadu_si512(from); }
INLINE void store_bytes(void *to, Bytes x) { _mm512_store_si512(to, x); }       /* to a multiple of BYTES */
INLINE Bytes low_nibbles(Bytes x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
INLINE Bytes high_nibbles(Bytes x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }

/* Widen the v-th vector of a block of 3 bits, half of it, to even codes of 4 bits: first two bits of each, then the
   third bits, which are shifted differently for each quarter of the block. */
INLINE Bytes widen(const uint8_t *block, int v) {
    __m512i low = _mm512_loadu_si512(block);
    __m512i third = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(block + 64)));
    const __m512i moves = _mm512_inserti64x4(_mm512_set1_epi16(v ? 0 : 2), _mm256_set1_epi16(v ? 1 : 3), 0);
    low = _mm512_and_si512(v ? _mm512_srli_epi16(low, 1) : _mm512_slli_epi16(low, 1), _mm512_set1_epi8(0x66));
    third = _mm512_sllv_epi16(third, moves);
    return _mm512_ternarylogic_epi32(low, third, _mm512_set1_epi8((char)0x88), 0xf8);      /* a | b & c */
}

/* Load int8 codes as numbers of 32 bits; lanes after the first `count` are zeros. */
INLINE Ints load_int8(const int8_t *from, int64_t count) {
    return _mm512_cvtepi8_epi32(count >= VECTOR ? _mm_loadu_si128((const __m128i *)from)
                                                : _mm_maskz_loadu_epi8(first(count), from));
}

/* Store numbers as int8 codes, as near as int8 comes to them. */
INLINE void store_int8(int8_t *to, Ints x, int64_t count) {
    _mm_mask_storeu_epi8(to, first(count), _mm512_cvtsepi32_epi8(x));
}

/* Store two vectors of numbers as int8 codes, either one after the other, or the even ones of both and the odd ones. */
INLINE void store_pair(int8_t *one, int8_t *other, Ints low, Ints high, int by_parity) {
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
    const Ints even = _mm512_permutex2var_epi32(low, evens, high), odd = _mm512_permutex2var_epi32(low, odds, high);
    _mm_storeu_si128((__m128i *)one, _mm512_cvtsepi32_epi8(by_parity ? even : low));
    _mm_storeu_si128((__m128i *)other, _mm512_cvtsepi32_epi8(by_parity ? odd : high));
}

#endif
