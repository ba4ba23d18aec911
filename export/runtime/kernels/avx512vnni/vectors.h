/* What these kernels share: AVX-512 with VNNI, in 16 lanes of 32 bits. */

#ifndef VECTORS_H
#define VECTORS_H

#include <immintrin.h>
#include <stdint.h>

#include "../numbers.h"

enum { VECTOR = 16 };

#define KERNEL __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) KERNEL

/* acc += codes * x in place. With the intrinsics, gcc 12 copies each sum at each step, which halves the speed. */
#define DOT(acc, codes, x) __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(codes), "v"(x));
#define DOT_16(acc, codes, x) __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(codes), "v"(x));

/* A mask of the first `count` lanes. */
INLINE __mmask16 first(int64_t count) {
    return count >= VECTOR ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

/* Transpose 16 x 16 numbers of 32 bits. */
INLINE void transpose(__m512i r[VECTOR]) {
    __m512i t[VECTOR];
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

#endif
