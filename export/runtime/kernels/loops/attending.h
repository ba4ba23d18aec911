/* `attention.h` in vectors: an instruction set includes this after its vectors and sums.

   Queries are rounded to 16 bits, which is far finer than the codes that they multiply. Positions are processed in
   pieces, so that each piece's codes are read from memory once; if a piece has a larger score, the earlier sums are
   scaled down (online softmax: Milakov and Gimelshein, arXiv 1805.02867). */

#ifndef ATTENDING_H
#define ATTENDING_H

#include <math.h>
#include <string.h>

enum { PIECE = 256, WORDS = BYTES / 2, TOGETHER = 16 / VECTOR };        /* TOGETHER: vectors of a value's channels */
enum { FETCHED = 64, AHEAD = 2048 };                                    /* FETCHED: bytes that one prefetch brings */

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
        Floats scaled = load_first(x + i, count - i) / load_first(steps + i, count - i);
        store_int8(codes + i, to_ints(scaled), count - i);
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
INLINE Floats exponential(Floats x) {
    x = larger(x, all_floats(-87.0f));
    Floats n = nearest(x * all_floats(1.44269504f));
    x = fused_off(n, all_floats(0.693359375f), x);
    x = fused_off(n, all_floats(-2.12194440e-4f), x);
    Floats p = all_floats(1.9875691500e-4f);
    p = fused(p, x, all_floats(1.3981999507e-3f));
    p = fused(p, x, all_floats(8.3334519073e-3f));
    p = fused(p, x, all_floats(4.1665795894e-2f));
    p = fused(p, x, all_floats(1.6666665459e-1f));
    p = fused(p, x, all_floats(5.0000001201e-1f));
    p = fused(p * x, x, x + all_floats(1.0f));
    return times_power_of_2(p, n);
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

/* scores[i] = unit * words . keys[i], while the values are prefetched; returns the largest score. */
INLINE float score(const int16_t *words, float unit, const int8_t *keys, const int8_t *values, int64_t A, int64_t count,
                   float scores[PIECE]) {
    Floats most = all_floats(-INFINITY);
    for (int64_t i = 0; i < count; i += VECTOR) {
        Ints r[VECTOR];
        int64_t positions = least(count - i, VECTOR);
        for (int64_t j = 0; j < VECTOR; j++) {
            const int8_t *key = keys + (i + (j < positions ? j : 0)) * A;
            r[j] = no_ints();
            for (int64_t a = 0; a < A; a += FETCHED) {
                __builtin_prefetch(key + AHEAD + a);
                __builtin_prefetch(values + (i + j) * A + a);
            }
            for (int64_t a = 0; a < A; a += WORDS) r[j] = dot_words(r[j], key + a, A - a, words + a);
        }
        Floats found = first_of(to_floats(sums_of_each(r)) * all_floats(unit), positions, all_floats(-INFINITY));
        store_floats(scores + i, found);
        most = larger(most, found);
    }
    return largest_of(most);
}

/* Add a position's values of some channels, of which `left` are there, times a weight. */
INLINE void add_values(const int8_t *values, int64_t left, float weight, Floats sums[TOGETHER]) {
    UNROLLED for (int part = 0; part < TOGETHER; part++) {
        Floats codes = to_floats(load_int8(values + part * VECTOR, left - part * VECTOR));
        sums[part] = fused(codes, all_floats(weight), sums[part]);
    }
}

/* total[channel] = total[channel] * fade + sum of weights[i] * values[i][channel] */
INLINE void gather(const float *weights, const int8_t *values, int64_t A, int64_t count, float fade, float *total) {
    for (int64_t a = 0; a < A; a += TOGETHER * VECTOR) {
        Floats sums[4][TOGETHER];
        UNROLLED for (int part = 0; part < TOGETHER; part++) {
            sums[0][part] = load_floats(total + a + part * VECTOR) * all_floats(fade);
            sums[1][part] = sums[2][part] = sums[3][part] = all_floats(0.0f);
        }
        int64_t i = 0;
        for (; i + 4 <= count; i += 4)
            UNROLLED for (int j = 0; j < 4; j++) add_values(values + (i + j) * A + a, A - a, weights[i + j], sums[j]);
        for (; i < count; i++) add_values(values + i * A + a, A - a, weights[i], sums[0]);
        UNROLLED for (int part = 0; part < TOGETHER; part++)
            store_floats(total + a + part * VECTOR, (sums[0][part] + sums[1][part]) + (sums[2][part] + sums[3][part]));
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
        Floats added = all_floats(0.0f);
        for (int64_t i = 0; i < count; i += VECTOR) {
            Floats weight = exponential(load_floats(scores + i) - all_floats(most));
            weight = first_of(weight, count - i, all_floats(0.0f));
            store_floats(scores + i, weight);
            added += weight;
        }
        sum = sum * fade + sum_of(added);
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

#endif
