/* Products of NEON, and of instruction sets that add to it, of a few rows and of attention. */

#ifndef NEON_DOT_H
#define NEON_DOT_H

#include "vectors.h"

/* acc + codes * x */
INLINE Ints dot(Ints acc, Bytes codes, Bytes x) {
    return vdotq_s32(acc, vreinterpretq_s8_u8(codes), vreinterpretq_s8_u8(x));
}

/* Load int8 codes, of which `left` are there, as numbers of 16 bits, multiply them by words and add pairs to a sum. */
INLINE Ints dot_words(Ints sum, const int8_t *codes, int64_t left, const int16_t *words) {
    int8_t some[BYTES / 2] = {0};
    if (left < BYTES / 2) memcpy(some, codes, (size_t)left);
    const int16x8_t wide = vmovl_s8(vld1_s8(left < BYTES / 2 ? some : codes)), by = vld1q_s16(words);
    sum = vmlal_s16(sum, vget_low_s16(wide), vget_low_s16(by));
    return vmlal_high_s16(sum, wide, by);
}

#include "../loops/dot_sums.h"

#endif
