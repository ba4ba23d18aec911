#if defined(__x86_64__)

#include "../attention.h"

#include <math.h>
#include <string.h>

#include "vectors.h"

/* Queries are rounded to 16 bits, which is far finer than the codes that they multiply. Positions are processed in
   pieces, so that each piece's codes are read from memory once; if a piece has a larger score, the earlier sums are
   scaled down (online softmax: Milakov and Gimelshein, arXiv 1805.02867). */

enum { PIECE = 256, WORDS = 32, LINE = 64, AHEAD = 2048 };

/* Rotate one head of one token at its position, its halves against each other; without a table, copy it. */
KERNEL static void rotate(const Attention *attention, const float *x, int64_t position, float *out) {
    memcpy(out, x, sizeof(float) * (size_t)attention->A);
    if (!attention->cos) return;
    const int64_t R = attention->R;
    const float *cosine = attention->cos + position * R, *sine = attention->sin + position * R;
    for (int64_t r = 0; r < R; r++) {
        out[r] = x[r] * cosine[r] - x[r + R] * sine[r];
        out[r + R] = x[r + R] * cosine[r] + x[r] * sine[r];
    }
}

KERNEL static void to_codes(const float *x, const float *steps, int64_t count, int8_t *codes) {
    for (int64_t i = 0; i < count; i += VECTOR) {
        __mmask16 mask = first(count - i);
        __m512 step = _mm512_maskz_loadu_ps(mask, steps + i);
        __m512 scaled = _mm512_maskz_div_ps(mask, _mm512_maskz_loadu_ps(mask, x + i), step);
        _mm_mask_storeu_epi8(codes + i, mask, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(scaled)));
    }
}

KERNEL static void remember(const Attention *attention) {
    const int64_t A = attention->A;
    float rotated[MOST_CHANNELS];
    for (int64_t b = 0; b < attention->B; b++)
        for (int64_t t = 0; t < attention->T; t++) {
            int64_t position = attention->last_B[b] + 1 - attention->T + t;
            const int64_t token = (b * attention->T + t) * attention->key_step;
            for (int64_t g = 0; g < attention->G; g++) {
                int64_t at = ((b * attention->G + g) * attention->room + position) * A;
                rotate(attention, attention->key + token + g * A, position, rotated);
                to_codes(rotated, attention->key_steps + g * A, A, attention->keys + at);
                to_codes(attention->value + token + g * A, attention->value_steps + g * A, A, attention->values + at);
            }
        }
}

/* e^x for x <= 0: 2^n times a polynomial of the remainder (Cephes, expf). */
INLINE __m512 exponential(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    x = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    x = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), x);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, x), x, _mm512_add_ps(x, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

/* Round a query times the keys' steps to 16 bits; returns the unit of the result. */
KERNEL static float to_words(const float *query, const float *steps, float scale, int64_t A,
                             int16_t words[MOST_CHANNELS]) {
    float scaled[MOST_CHANNELS], largest = 0.0f;
    for (int64_t a = 0; a < A; a++) {
        scaled[a] = query[a] * scale * steps[a];
        largest = fabsf(scaled[a]) > largest ? fabsf(scaled[a]) : largest;
    }
    memset(words, 0, sizeof(int16_t) * MOST_CHANNELS);
    float inverse = largest > 0.0f ? 32767.0f / largest : 0.0f;
    for (int64_t a = 0; a < A; a++) words[a] = (int16_t)lrintf(scaled[a] * inverse);
    return largest / 32767.0f;
}

/* Load bytes, and zeros after the first `count`. */
INLINE __m128i load_16(const int8_t *codes, int64_t count) {
    return count >= VECTOR ? _mm_loadu_si128((const __m128i *)codes) : _mm_maskz_loadu_epi8(first(count), codes);
}

INLINE __m256i load_32(const int8_t *codes, int64_t count) {
    if (count >= WORDS) return _mm256_loadu_si256((const __m256i *)codes);
    return _mm256_maskz_loadu_epi8(((__mmask32)1 << count) - 1, codes);
}

/* scores[i] = unit * words . keys[i], while the values are prefetched; returns the largest score. */
INLINE float score(const int16_t *words, float unit, const int8_t *keys, const int8_t *values, int64_t A, int64_t count,
                   float scores[PIECE]) {
    __m512 most = _mm512_set1_ps(-INFINITY);
    for (int64_t i = 0; i < count; i += VECTOR) {
        __m512i r[VECTOR];
        int64_t positions = least(count - i, VECTOR);
        for (int64_t j = 0; j < VECTOR; j++) {
            const int8_t *key = keys + (i + (j < positions ? j : 0)) * A;
            __m512i sum = _mm512_setzero_si512();
            for (int64_t a = 0; a < A; a += LINE) {
                _mm_prefetch((const char *)key + AHEAD + a, _MM_HINT_T0);
                _mm_prefetch((const char *)values + (i + j) * A + a, _MM_HINT_T0);
            }
            for (int64_t a = 0; a < A; a += WORDS) {
                __m512i wide = _mm512_cvtepi8_epi16(load_32(key + a, A - a)), query = _mm512_loadu_si512(words + a);
                DOT_16(sum, wide, query)
            }
            r[j] = sum;
        }
        transpose(r);
        for (int j = 1; j < VECTOR; j++) r[0] = _mm512_add_epi32(r[0], r[j]);
        __m512 found = _mm512_mul_ps(_mm512_cvtepi32_ps(r[0]), _mm512_set1_ps(unit));
        found = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), first(positions), found);
        _mm512_storeu_ps(scores + i, found);
        most = _mm512_max_ps(most, found);
    }
    return _mm512_reduce_max_ps(most);
}

/* total[channel] = total[channel] * fade + sum of weights[i] * values[i][channel] */
INLINE void gather(const float *weights, const int8_t *values, int64_t A, int64_t count, float fade, float *total) {
    for (int64_t a = 0; a < A; a += VECTOR) {
        __m512 sums[4] = {_mm512_mul_ps(_mm512_loadu_ps(total + a), _mm512_set1_ps(fade))};
        sums[1] = sums[2] = sums[3] = _mm512_setzero_ps();
        int64_t i = 0;
        for (; i + 4 <= count; i += 4)
            for (int j = 0; j < 4; j++) {
                __m512i codes = _mm512_cvtepi8_epi32(load_16(values + (i + j) * A + a, A - a));
                sums[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(codes), _mm512_set1_ps(weights[i + j]), sums[j]);
            }
        for (; i < count; i++) {
            __m512i codes = _mm512_cvtepi8_epi32(load_16(values + i * A + a, A - a));
            sums[0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(codes), _mm512_set1_ps(weights[i]), sums[0]);
        }
        _mm512_storeu_ps(total + a, _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
    }
}

INLINE void attend_head(const Attention *attention, int64_t b, int64_t t, int64_t h, const int64_t A) {
    const int64_t g = h / (attention->H / attention->G);
    const int64_t token = b * attention->T + t, position = attention->last_B[b] + 1 - attention->T + t;
    const int64_t seen = attention->window > 0 ? least(attention->window, position + 1) : position + 1;
    const int64_t at = ((b * attention->G + g) * attention->room + position + 1 - seen) * A;
    float rotated[MOST_CHANNELS], total[MOST_CHANNELS] = {0}, scores[PIECE];
    int16_t words[MOST_CHANNELS];
    rotate(attention, attention->query + token * attention->query_step + h * A, position, rotated);
    const float unit = to_words(rotated, attention->key_steps + g * A, attention->scale, A, words);
    float most = -INFINITY, sum = 0.0f;
    for (int64_t from = 0; from < seen; from += PIECE) {
        const int64_t count = least(seen - from, PIECE);
        const int8_t *keys = attention->keys + at + from * A, *values = attention->values + at + from * A;
        const float largest = score(words, unit, keys, values, A, count, scores);
        const float before = most, fade = largest > most ? expf(before - largest) : 1.0f;
        most = largest > most ? largest : most;
        __m512 added = _mm512_setzero_ps();
        for (int64_t i = 0; i < count; i += VECTOR) {
            __m512 weight = exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + i), _mm512_set1_ps(most)));
            weight = _mm512_maskz_mov_ps(first(count - i), weight);
            _mm512_storeu_ps(scores + i, weight);
            added = _mm512_add_ps(added, weight);
        }
        sum = sum * fade + _mm512_reduce_add_ps(added);
        gather(scores, values, A, count, fade, total);
    }
    float *out = attention->attended + (token * attention->H + h) * A;
    for (int64_t a = 0; a < A; a++) out[a] = total[a] * attention->value_steps[g * A + a] / sum;
}

KERNEL static void attend(const Attention *attention, int64_t row, int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; h++)
        for (int64_t t = 0; t < attention->T; t++) switch (attention->A) {      /* known sizes are unrolled */
                case 64: attend_head(attention, row, t, h, 64); break;
                case 128: attend_head(attention, row, t, h, 128); break;
                default: attend_head(attention, row, t, h, attention->A);
            }
}

const Attending AVX512VNNI_ATTENDING = {.remember = remember, .attend = attend};

#endif
