/* Vectors of NEON: 4 lanes of 32 bits. `loops/` computes with them. An instruction set that adds to NEON's names its
   TARGET before it includes this. */

#ifndef NEON_VECTORS_H
#define NEON_VECTORS_H

#include <arm_neon.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { VECTOR = 4, BYTES = 16 };            /* lanes of a vector, and its bytes */

#ifndef TARGET
#define TARGET "arch=armv8.2-a+dotprod"
#endif
#define KERNEL __attribute__((target(TARGET)))
#define INLINE static inline __attribute__((always_inline)) KERNEL

typedef float32x4_t Floats;
typedef int32x4_t Ints;                     /* of 32 bits */
typedef uint8x16_t Bytes;

/* Floats. `count` is any number; lanes after the first `count` are not read or written. */

INLINE Floats all_floats(float x) { return vdupq_n_f32(x); }
INLINE Floats load_floats(const float *from) { return vld1q_f32(from); }
INLINE Floats load_first(const float *from, int64_t count) {
    if (count >= VECTOR) return load_floats(from);
    float some[VECTOR] = {0};
    for (int64_t i = 0; i < count; i++) some[i] = from[i];
    return load_floats(some);
}
INLINE void store_floats(float *to, Floats x) { vst1q_f32(to, x); }
INLINE void store_first(float *to, Floats x, int64_t count) {
    if (count >= VECTOR) {
        store_floats(to, x);
        return;
    }
    float some[VECTOR];
    store_floats(some, x);
    for (int64_t i = 0; i < count; i++) to[i] = some[i];
}

/* The first lanes of x, and `rest` in the others. */
INLINE Floats first_of(Floats x, int64_t count, Floats rest) {
    static const int32_t lanes[VECTOR] = {0, 1, 2, 3};
    const Ints all = vdupq_n_s32(count >= VECTOR ? VECTOR : (int)count);
    return vbslq_f32(vcgtq_s32(all, vld1q_s32(lanes)), x, rest);
}

INLINE Floats fused(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }                /* a * b + c */
INLINE Floats fused_off(Floats a, Floats b, Floats c) { return vfmsq_f32(c, a, b); }            /* c - a * b */
INLINE Floats larger(Floats a, Floats b) { return vmaxq_f32(a, b); }
INLINE Floats magnitude(Floats x) { return vabsq_f32(x); }
INLINE float largest_of(Floats x) { return vmaxvq_f32(x); }
INLINE float sum_of(Floats x) { return vaddvq_f32(x); }
INLINE Floats nearest(Floats x) { return vrndnq_f32(x); }

/* x * 2^n, for whole n whose powers a float holds. */
INLINE Floats times_power_of_2(Floats x, Floats n) {
    const Ints exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
    return vmulq_f32(x, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
}

/* Numbers of 32 bits. */

INLINE Ints no_ints(void) { return vdupq_n_s32(0); }
INLINE Ints add_ints(Ints a, Ints b) { return vaddq_s32(a, b); }
INLINE int32_t sum_of_ints(Ints x) { return vaddvq_s32(x); }
INLINE Ints to_ints(Floats x) { return vcvtnq_s32_f32(x); }
INLINE Floats to_floats(Ints x) { return vcvtq_f32_s32(x); }

/* The sums of each vector's lanes. */
INLINE Ints sums_of_each(Ints r[VECTOR]) { return vpaddq_s32(vpaddq_s32(r[0], r[1]), vpaddq_s32(r[2], r[3])); }

/* Scales and zero points as floats, and zeros after the first `count`. */

INLINE float half_as_float(uint16_t half) {
    __fp16 x;
    memcpy(&x, &half, sizeof x);
    return (float)x;
}
INLINE Floats halves_as_floats(const uint16_t *from, int64_t count) {
    uint16_t some[VECTOR] = {0};
    if (count < VECTOR)
        for (int64_t i = 0; i < count; i++) some[i] = from[i];
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(count < VECTOR ? some : from)));
}

/* Load `count` bytes, 4 at most, as numbers of 32 bits; the others are zeros. */
INLINE uint32_t load_4(const void *from, int64_t count) {
    uint32_t four = 0;
    if (count >= 4)
        memcpy(&four, from, 4);
    else
        for (int64_t i = count - 1; i >= 0; i--) four = four << 8 | ((const uint8_t *)from)[i];
    return four;
}
INLINE Floats bytes_as_floats(const uint8_t *from, int64_t count) {
    const uint16x8_t words = vmovl_u8(vcreate_u8(load_4(from, count)));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(words)));
}

/* The same of numbers of 4 bits, of which the first of two is in a byte's low half. */
INLINE Floats nibbles_as_floats(const uint8_t *from, int64_t count) {
    static const int32_t moves[VECTOR] = {0, -4, -8, -12};
    const uint32x4_t packed = vdupq_n_u32(load_4(from, count >= VECTOR ? 2 : (count + 1) / 2));
    return vcvtq_f32_u32(vandq_u32(vshlq_u32(packed, vld1q_s32(moves)), vdupq_n_u32(15)));
}

/* Load the scales of blocks that share a vector of codes: here none do, the smallest block has two vectors. */
INLINE Floats spread(const float *scales, int shared) {
    (void)shared;
    return all_floats(*scales);
}

/* Codes. */

/* Instructions multiply signed bytes alone, so codes of 8 bits are multiplied less 128, as their zero points are. */
enum { CENTER = 128 };
INLINE Bytes centered(Bytes codes) { return veorq_u8(codes, vdupq_n_u8(CENTER)); }

/* Load codes; of the smallest block a whole vector is left. */
INLINE Bytes load_codes(const uint8_t *codes, int64_t left) {
    (void)left;
    return vld1q_u8(codes);
}
INLINE Bytes load_bytes(const void *from) { return vld1q_u8(from); }
INLINE void store_bytes(void *to, Bytes x) { vst1q_u8(to, x); }
INLINE Bytes low_nibbles(Bytes x) { return vandq_u8(x, vdupq_n_u8(15)); }
INLINE Bytes high_nibbles(Bytes x) { return vshrq_n_u8(x, 4); }

/* Widen the v-th vector of a block of 3 bits, an eighth of it, to even codes of 4 bits: first two bits of each, then
   the third bits, which are shifted differently for each quarter. */
INLINE Bytes widen(const uint8_t *block, int v) {
    Bytes low = load_bytes(block + v % 4 * BYTES), third = load_bytes(block + 4 * BYTES + v % 2 * BYTES);
    low = vandq_u8(v < 4 ? vshlq_n_u8(low, 1) : vshrq_n_u8(low, 1), vdupq_n_u8(0x66));
    third = vshlq_u8(third, vdupq_n_s8((int8_t)(3 - v / 2)));
    return vorrq_u8(low, vandq_u8(third, vdupq_n_u8(0x88)));
}

/* Load int8 codes as numbers of 32 bits; lanes after the first `count` are zeros. */
INLINE Ints load_int8(const int8_t *from, int64_t count) {
    const int16x8_t words = vmovl_s8(vcreate_s8(load_4(from, count)));
    return vmovl_s16(vget_low_s16(words));
}

/* Two vectors of numbers as int8 codes, as near as int8 comes to them. */
INLINE int8x8_t to_int8(Ints low, Ints high) { return vqmovn_s16(vcombine_s16(vqmovn_s32(low), vqmovn_s32(high))); }

/* Store numbers as int8 codes. */
INLINE void store_int8(int8_t *to, Ints x, int64_t count) {
    int8_t codes[2 * VECTOR];
    vst1_s8(codes, to_int8(x, x));
    if (count >= VECTOR)
        memcpy(to, codes, VECTOR);
    else
        for (int64_t i = 0; i < count; i++) to[i] = codes[i];
}

/* Store two vectors of numbers as int8 codes, either one after the other, or the even ones of both and the odd ones. */
INLINE void store_pair(int8_t *one, int8_t *other, Ints low, Ints high, int by_parity) {
    int8x8_t codes = to_int8(low, high);
    if (by_parity) codes = vreinterpret_s8_s32(vzip1_s32(vreinterpret_s32_s8(vuzp1_s8(codes, codes)),
                                                         vreinterpret_s32_s8(vuzp2_s8(codes, codes))));
    int8_t some[2 * VECTOR];
    vst1_s8(some, codes);
    memcpy(one, some, VECTOR);
    memcpy(other, some + VECTOR, VECTOR);
}

#endif
