#if defined(__x86_64__)

#include "../products.h"

#include <string.h>

#include "vectors.h"

/* With few rows of A, each row of W is read once, from end to end, and multiplied by all of them, as fast as the memory
   allows. With many, panels of W are reordered for the processor, once for SLAB rows of A.

   A's codes are in the order in which W's are unpacked: with 8 bits their own; with 4 bits, in groups of columns, the
   even ones, which meet the low halves of W's bytes, before the odd ones, which meet the high halves. 3 bits are
   widened to the bytes of 4 bits on the way. Few rows are stored one after another. Of many, each TILE is stored
   together, [width / 4][row][4]; the last has the remaining rows, and zeros up to a multiple of ROWS. */

enum { FEW = 8, SLAB = 11 * TILE, GROUP = LINE, MOST_BLOCK = 256, AHEAD = 4096, ROWS_AHEAD = 16 };
enum { BYTES = 64 };                /* of a vector */

/* Round one row; its codes are stored one after another. */
INLINE void round_row(const Weight *weight, const float *row, int8_t *codes, float *scales, float *sums,
                      const int64_t group) {
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
    for (int64_t block = 0; block < weight->blocks; block++) {
        int64_t from = block * weight->block_size, to = from + weight->block_size;
        __m512 most = _mm512_setzero_ps();
        for (int64_t k = from; k < to; k += VECTOR)
            most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(first(weight->K - k), row + k)));
        float largest = _mm512_reduce_max_ps(most);
        __m512 inverse = _mm512_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
        __m512i sum = _mm512_setzero_si512();
        for (int64_t k = from; k < to; k += 2 * VECTOR) {
            __m512i low = _mm512_cvtps_epi32(
                _mm512_mul_ps(_mm512_maskz_loadu_ps(first(weight->K - k), row + k), inverse));
            __m512i high = _mm512_cvtps_epi32(
                _mm512_mul_ps(_mm512_maskz_loadu_ps(first(weight->K - k - VECTOR), row + k + VECTOR), inverse));
            sum = _mm512_add_epi32(sum, _mm512_add_epi32(low, high));
            int8_t *one = codes + k, *other = one + VECTOR;
            if (weight->bits < 8) {
                __m512i even = _mm512_permutex2var_epi32(low, evens, high);
                high = _mm512_permutex2var_epi32(low, odds, high);
                low = even;
                one = codes + k / group * group + k % group / 2;
                other = one + group / 2;
            }
            _mm_storeu_si128((__m128i *)one, _mm512_cvtsepi32_epi8(low));
            _mm_storeu_si128((__m128i *)other, _mm512_cvtsepi32_epi8(high));
        }
        scales[block] = largest / 127.0f;
        sums[block] = scales[block] * (float)_mm512_reduce_add_epi32(sum);
    }
}

KERNEL static void round_rows(const Weight *weight, const float *a, Rounded *rounded, int64_t begin, int64_t end) {
    const int64_t width = rounded->width, padded = rounded->padded_blocks, count = padded_to(ROWS, end - begin);
    const int few = rounded->M <= FEW;
    const int64_t group = few || weight->block_size > GROUP ? GROUP : weight->block_size;
    int8_t *tile = rounded->codes + begin * width, one[width];
    memset(rounded->scales + begin * padded, 0, sizeof(float) * (size_t)(count * padded));
    memset(rounded->sums + begin * padded, 0, sizeof(float) * (size_t)(count * padded));
    memset(tile, 0, (size_t)(count * width));
    for (int64_t m = begin; m < end; m++) {
        int8_t *codes = few ? tile + (m - begin) * width : one;
        round_row(weight, a + m * weight->K, codes, rounded->scales + m * padded, rounded->sums + m * padded, group);
        if (!few)
            for (int64_t k = 0; k < width; k += 4) memcpy(tile + k * count + (m - begin) * 4, one + k, 4);
    }
}

/* Load the scales of 16 blocks of a row, from `block` on, and prefetch those of a later row. */
INLINE __m512 load_scales(const Weight *weight, int64_t n, int64_t block) {
    const __mmask16 mask = first(weight->blocks - block);
    const int64_t at = n * weight->blocks + block, later = at + ROWS_AHEAD * weight->blocks;
    if (weight->bits == 3) {
        const uint16_t *scales = weight->scales;
        _mm_prefetch((const char *)(scales + later), _MM_HINT_T0);
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, scales + at));
    }
    const float *scales = weight->scales;
    _mm_prefetch((const char *)(scales + later), _MM_HINT_T0);
    return _mm512_maskz_loadu_ps(mask, scales + at);
}

/* Load the zero points of 16 blocks of a row, from `block` on. */
INLINE __m512 zero_points(const Weight *weight, int64_t n, int64_t block) {
    if (!weight->zero_points) return _mm512_set1_ps((float)(1 << (weight->bits - 1)));
    int64_t count = least(weight->blocks - block, VECTOR);
    if (weight->bits == 8)
        return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(
            _mm_maskz_loadu_epi8(first(count), weight->zero_points + n * weight->blocks + block)));
    const int64_t row = (weight->blocks + 1) / 2;
    const uint8_t *at = weight->zero_points + n * row + block / 2;
    _mm_prefetch((const char *)(at + ROWS_AHEAD * row), _MM_HINT_T0);
    __m128i packed = _mm_maskz_loadu_epi8(first((count + 1) / 2), at);
    __m128i low = _mm_and_si128(packed, _mm_set1_epi8(15));
    __m128i high = _mm_and_si128(_mm_srli_epi16(packed, 4), _mm_set1_epi8(15));
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(low, high)));
}

/* Widen half a block of 3 bits to 64 bytes of even codes of 4 bits: first two bits of each, then the third bits, which
   are shifted differently for each quarter of the block. */
INLINE __m512i widen(const uint8_t *block, int half) {
    __m512i low = _mm512_loadu_si512(block);
    __m512i third = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(block + THREE_BITS_BLOCK / 4)));
    const __m512i moves = _mm512_inserti64x4(_mm512_set1_epi16(half ? 0 : 2), _mm256_set1_epi16(half ? 1 : 3), 0);
    low = _mm512_and_si512(half ? _mm512_srli_epi16(low, 1) : _mm512_slli_epi16(low, 1), _mm512_set1_epi8(0x66));
    third = _mm512_sllv_epi16(third, moves);
    return _mm512_ternarylogic_epi32(low, third, _mm512_set1_epi8((char)0x88), 0xf8);      /* a | b & c */
}

/* Load the v-th vector of a block's codes, 3 bits widened to 4, and zeros if fewer than BYTES are left. */
INLINE __m512i load_codes(const uint8_t *codes, int v, int64_t left, const int bits) {
    if (bits == 3) return widen(codes - v * BYTES * 3 / 4, v);
    return left >= BYTES ? _mm512_loadu_si512(codes) : _mm512_maskz_loadu_epi8(((__mmask64)1 << left) - 1, codes);
}

/* A vector of codes as the processor multiplies it: bytes as they are, or their low halves and their high ones. */
typedef struct { __m512i low, high; } Codes;

INLINE Codes split(__m512i codes, const int halves) {
    const __m512i nibble = _mm512_set1_epi8(15);
    if (halves == 1) return (Codes){codes, codes};
    return (Codes){_mm512_and_si512(codes, nibble), _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble)};
}

/* acc += W's codes * A's, where those that meet the low halves lie at x and the others behind them. */
INLINE __m512i dot(__m512i acc, Codes codes, const int8_t *x, const int halves) {
    __m512i one = _mm512_loadu_si512(x), other = _mm512_loadu_si512(x + BYTES);
    DOT(acc, codes.low, one)
    if (halves == 2) DOT(acc, codes.high, other)
    return acc;
}

/* What of row n of W is no code: the scale of each block's product, and what its zero points take off the totals. */
INLINE void begin_row(const Weight *weight, const Rounded *rounded, int64_t n, float *scales, __m512 total[FEW],
                      const int M) {
    const int64_t padded = rounded->padded_blocks;
    for (int m = 0; m < M; m++) total[m] = _mm512_setzero_ps();
    for (int64_t block = 0; block < weight->blocks; block += VECTOR) {
        __m512 scale = load_scales(weight, n, block);
        __m512 zero = _mm512_mul_ps(scale, zero_points(weight, n, block));
        for (int m = 0; m < M; m++) {
            __m512 of_a = _mm512_loadu_ps(rounded->scales + m * padded + block);
            _mm512_storeu_ps(scales + m * (padded + VECTOR) + block, _mm512_mul_ps(scale, of_a));
            total[m] = _mm512_fnmadd_ps(zero, _mm512_loadu_ps(rounded->sums + m * padded + block), total[m]);
        }
    }
}

INLINE void end_row(const Weight *weight, float *y, int64_t n, const __m512 total[FEW], const int M) {
    for (int m = 0; m < M; m++)
        y[m * weight->N + n] = _mm512_reduce_add_ps(total[m]) + (weight->bias ? weight->bias[n] : 0.0f);
}

/* Multiply few rows of A; a block of W is one or more vectors of codes. */
INLINE void few_rows(const Weight *weight, const Rounded *rounded, float *y, int64_t begin, int64_t end, const int bits,
                     const int block_size, const int M) {
    const int halves = bits == 8 ? 1 : 2, columns = BYTES * halves, vectors = block_size / columns;
    const int64_t bytes = weight->blocks * block_size * bits / 8, stride = rounded->padded_blocks + VECTOR;
    float scales[M * stride];
    for (int64_t n = begin; n < end; n++) {
        const uint8_t *codes = weight->codes + n * bytes;
        const int8_t *x = rounded->codes;
        __m512 total[FEW];
        begin_row(weight, rounded, n, scales, total, M);
        for (int64_t block = 0; block < weight->blocks; block++) {
            __m512i acc[FEW];
            for (int m = 0; m < M; m++) acc[m] = _mm512_setzero_si512();
            for (int v = 0; v < vectors; v++, codes += columns * bits / 8, x += columns) {
                _mm_prefetch((const char *)codes + AHEAD, _MM_HINT_T0);
                const Codes parts = split(load_codes(codes, v, BYTES, bits), halves);
                for (int m = 0; m < M; m++) acc[m] = dot(acc[m], parts, x + m * rounded->width, halves);
            }
            for (int m = 0; m < M; m++) {
                __m512 scale = _mm512_set1_ps(scales[m * stride + block]);
                total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[m]), scale, total[m]);
            }
        }
        end_row(weight, y, n, total, M);
    }
}

/* Multiply few rows of A; several blocks of W share a vector of codes. */
INLINE void few_rows_of_small_blocks(const Weight *weight, const Rounded *rounded, float *y, int64_t begin, int64_t end,
                                     const int bits, const int M) {
    const int halves = bits == 8 ? 1 : 2, columns = BYTES * halves, shared = columns / weight->block_size;
    const __m512i lanes = _mm512_srlv_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        _mm512_set1_epi32(shared == 2 ? 3 : 2));
    const int64_t bytes = weight->blocks * weight->block_size * bits / 8, stride = rounded->padded_blocks + VECTOR;
    float scales[M * stride];
    for (int64_t n = begin; n < end; n++) {
        const uint8_t *codes = weight->codes + n * bytes;
        const int8_t *x = rounded->codes;
        int64_t left = bytes;
        __m512 total[FEW];
        begin_row(weight, rounded, n, scales, total, M);
        for (int64_t block = 0; block < weight->blocks; block += shared, codes += BYTES, x += columns, left -= BYTES) {
            _mm_prefetch((const char *)codes + AHEAD, _MM_HINT_T0);
            const Codes parts = split(load_codes(codes, 0, left, bits), halves);
            for (int m = 0; m < M; m++) {
                __m512i acc = dot(_mm512_setzero_si512(), parts, x + m * rounded->width, halves);
                __m512 scale = _mm512_permutexvar_ps(lanes, _mm512_loadu_ps(scales + m * stride + block));
                total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), scale, total[m]);
            }
        }
        end_row(weight, y, n, total, M);
    }
}

/* A panel: one block of COLUMNS rows of W in the order in which the processor multiplies them, [k / 4][row][4]. */
typedef struct {
    uint8_t codes[MOST_BLOCK * COLUMNS];
    float scales[COLUMNS], zeros[COLUMNS];     /* zeros: scale * zero point */
} __attribute__((aligned(64))) Panel;

INLINE void fill(Panel *panel, const Weight *weight, int64_t n, int64_t block) {
    const int bytes = weight->block_size * weight->bits / 8;
    const int widened = weight->bits == 3 ? THREE_BITS_BLOCK / 2 : bytes;
    for (int column = 0; column < COLUMNS; column++) {
        int64_t row = least(n + column, weight->N - 1);
        const int64_t at = row * weight->blocks + block;
        panel->scales[column] = weight->bits == 3 ? _cvtsh_ss(((const uint16_t *)weight->scales)[at])
                                                  : ((const float *)weight->scales)[at];
        int zero = 1 << (weight->bits - 1);
        if (weight->zero_points && weight->bits == 8) zero = weight->zero_points[row * weight->blocks + block];
        if (weight->zero_points && weight->bits < 8)
            zero = weight->zero_points[row * ((weight->blocks + 1) / 2) + block / 2] >> (block % 2 * 4) & 15;
        panel->zeros[column] = panel->scales[column] * (float)zero;
    }
    for (int half = 0; half < COLUMNS; half += VECTOR)
        for (int from = 0; from < widened; from += 64) {
            __m512i r[VECTOR];
            int count = (widened - from >= 64 ? 64 : widened - from) / 4;
            for (int i = 0; i < VECTOR; i++) {
                int64_t row = least(n + half + i, weight->N - 1);
                const uint8_t *codes = weight->codes + (row * weight->blocks + block) * bytes;
                const int at = weight->bits == 3 ? from * 3 / 4 : from;
                const uint8_t *next = codes + at + COLUMNS * weight->blocks * bytes;        /* the next panel's */
                _mm_prefetch((const char *)next, _MM_HINT_T1);
                r[i] = load_codes(codes + at, from / BYTES, widened - from, weight->bits);
            }
            transpose(r);
            uint8_t *to = panel->codes + (int64_t)from * (weight->bits < 8 ? 2 : 1) * COLUMNS;
            for (int i = 0; i < count; i++) {
                uint8_t *low = to + (i * COLUMNS + half) * 4;
                if (weight->bits == 8) {
                    _mm512_store_si512(low, r[i]);
                } else {
                    const Codes parts = split(r[i], 2);
                    _mm512_store_si512(low, parts.low);
                    _mm512_store_si512(low + (int64_t)count * COLUMNS * 4, parts.high);
                }
            }
        }
}

#define ROWS_4(DO) DO(0) DO(1) DO(2) DO(3)
#define ROWS_8(DO) ROWS_4(DO) DO(4) DO(5) DO(6) DO(7)
#define ROWS_12(DO) ROWS_8(DO) DO(8) DO(9) DO(10) DO(11)

#define BEGIN_ROW(i) __m512i left_##i = _mm512_setzero_si512(), right_##i = left_##i;
#define STEP_ROW(i)                                              \
    all = _mm512_set1_epi32(x[i]);                               \
    DOT(left_##i, left, all) DOT(right_##i, right, all)
#define END_ROW(i)                                                                                      \
    scale = _mm512_set1_ps(scales[i * padded]), sum = _mm512_set1_ps(sums[i * padded]);                 \
    add(totals + i * COLUMNS, left_##i, scale, sum, panel->scales, panel->zeros);                       \
    add(totals + i * COLUMNS + VECTOR, right_##i, scale, sum, panel->scales + VECTOR, panel->zeros + VECTOR);

/* total += scale (w_scale * dot) - sum * w_scale * zero */
INLINE void add(float *total, __m512i dot, __m512 scale, __m512 sum, const float *w_scales, const float *zeros) {
    __m512 before = _mm512_fnmadd_ps(sum, _mm512_load_ps(zeros), _mm512_load_ps(total));
    __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_load_ps(w_scales));
    _mm512_store_ps(total, _mm512_fmadd_ps(product, scale, before));
}

/* Add a panel's products to totals[row][column], for 4, 8 or 12 rows of A; x is [steps][rows]. */
#define TILE_KERNEL(rows)                                                                                            \
    KERNEL static void tile_##rows(const Panel *panel, int64_t steps, const int32_t *x, const float *scales,         \
                                   const float *sums, int64_t padded, float *totals) {                               \
        ROWS_##rows(BEGIN_ROW) __m512i all, left, right;                                                             \
        const uint8_t *codes = panel->codes, *end = codes + steps * 4 * COLUMNS;                                     \
        for (; codes < end; codes += 4 * COLUMNS, x += rows) {                                                       \
            left = _mm512_load_si512(codes), right = _mm512_load_si512(codes + 64);                                  \
            ROWS_##rows(STEP_ROW)                                                                                    \
        }                                                                                                            \
        __m512 scale, sum;                                                                                           \
        ROWS_##rows(END_ROW)                                                                                         \
    }

TILE_KERNEL(4)
TILE_KERNEL(8)
TILE_KERNEL(12)

KERNEL static void many_rows(const Weight *weight, const Rounded *rounded, float *y, int64_t begin, int64_t end) {
    static _Thread_local float totals[SLAB * COLUMNS] __attribute__((aligned(64)));
    static _Thread_local Panel panel;
    const int64_t steps = weight->block_size / 4, padded = rounded->padded_blocks;
    for (int64_t n = begin; n < end; n += COLUMNS)
        for (int64_t slab = 0; slab < rounded->M; slab += SLAB) {
            int64_t rows = least(rounded->M - slab, SLAB);
            memset(totals, 0, sizeof totals);
            for (int64_t block = 0; block < weight->blocks; block++) {
                fill(&panel, weight, n, block);
                for (int64_t m = 0; m < rows; m += TILE) {
                    int64_t count = padded_to(ROWS, least(rows - m, TILE)), at = slab + m;
                    const int32_t *x = (const int32_t *)(rounded->codes + at * rounded->width) + block * steps * count;
                    const float *scales = rounded->scales + at * padded + block;
                    const float *sums = rounded->sums + at * padded + block;
                    (count == 12 ? tile_12 : count == 8 ? tile_8 : tile_4)(&panel, steps, x, scales, sums, padded,
                                                                           totals + m * COLUMNS);
                }
            }
            for (int64_t m = 0; m < rows; m++)
                for (int64_t column = n; column < least(n + COLUMNS, end); column += VECTOR) {
                    __mmask16 mask = first(least(n + COLUMNS, end) - column);
                    __m512 sum = _mm512_load_ps(totals + m * COLUMNS + column - n);
                    if (weight->bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, weight->bias + column));
                    _mm512_mask_storeu_ps(y + (slab + m) * weight->N + column, mask, sum);
                }
        }
}

/* If a block is whole vectors, their number is a constant to the compiler, as bits and M are; the unrolled loops are 8
   to 15 % faster on one core. */
INLINE void multiply_few(const Weight *weight, const Rounded *rounded, float *y, int64_t begin, int64_t end,
                         const int M) {
    switch (weight->bits * 1000 + weight->block_size) {
        case 3256: few_rows(weight, rounded, y, begin, end, 3, 256, M); break;
        case 4256: few_rows(weight, rounded, y, begin, end, 4, 256, M); break;
        case 4128: few_rows(weight, rounded, y, begin, end, 4, 128, M); break;
        case 8256: few_rows(weight, rounded, y, begin, end, 8, 256, M); break;
        case 8128: few_rows(weight, rounded, y, begin, end, 8, 128, M); break;
        case 8064: few_rows(weight, rounded, y, begin, end, 8, 64, M); break;
        case 4064:
        case 4032: few_rows_of_small_blocks(weight, rounded, y, begin, end, 4, M); break;
        default: few_rows_of_small_blocks(weight, rounded, y, begin, end, 8, M);
    }
}

KERNEL static void multiply(const Weight *weight, const Rounded *rounded, float *y, int64_t begin, int64_t end) {
    switch (rounded->M) {
        case 1: multiply_few(weight, rounded, y, begin, end, 1); break;
        case 2: multiply_few(weight, rounded, y, begin, end, 2); break;
        case 3: multiply_few(weight, rounded, y, begin, end, 3); break;
        case 4: multiply_few(weight, rounded, y, begin, end, 4); break;
        case 5: multiply_few(weight, rounded, y, begin, end, 5); break;
        case 6: multiply_few(weight, rounded, y, begin, end, 6); break;
        case 7: multiply_few(weight, rounded, y, begin, end, 7); break;
        case 8: multiply_few(weight, rounded, y, begin, end, 8); break;
        default: many_rows(weight, rounded, y, begin, end);
    }
}

const Products AVX512VNNI_PRODUCTS = {.round_rows = round_rows, .multiply = multiply};

#endif
