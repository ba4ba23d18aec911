/* Attention in plain C: slow, for every processor, and the reference that the fast one must equal up to rounding. */

#include "../attention.h"

#include <math.h>

#include "../numbers.h"

/* Rotate channel a of a head at its position, with its partner in the other half; without a table it stays. */
static float rotated(const Attention *attention, const float *x, int64_t position, int64_t a) {
    const int64_t R = attention->R, r = a % (R ? R : 1);
    if (!attention->cos || a >= 2 * R) return x[a];
    const float cosine = attention->cos[position * R + r], sine = attention->sin[position * R + r];
    return a < R ? x[r] * cosine - x[r + R] * sine : x[r + R] * cosine + x[r] * sine;
}

static int8_t code_of(float x, float step) { return (int8_t)fmaxf(-128.0f, fminf(127.0f, rintf(x / step))); }

static void remember(const Attention *attention) {
    const int64_t T = attention->T, G = attention->G, A = attention->A;
    for (int64_t b = 0; b < attention->B; b++)
        for (int64_t t = 0; t < T; t++)
            for (int64_t g = 0; g < G; g++)
                for (int64_t a = 0; a < A; a++) {
                    const int64_t position = attention->last_B[b] + 1 - T + t, channel = g * A + a;
                    const int64_t token = (b * T + t) * attention->key_step;
                    const int64_t at = ((b * G + g) * attention->room + position) * A + a;
                    const float key = rotated(attention, attention->key + token + g * A, position, a);
                    attention->keys[at] = code_of(key, attention->key_steps[channel]);
                    attention->values[at] = code_of(attention->value[token + channel], attention->value_steps[channel]);
                }
}

/* One query of one head. */
static void attend_head(const Attention *attention, int64_t b, int64_t t, int64_t h) {
    const int64_t A = attention->A, g = h / (attention->H / attention->G), token = b * attention->T + t;
    const int64_t position = attention->last_B[b] + 1 - attention->T + t;
    const int64_t first = attention->window > 0 && attention->window <= position ? position + 1 - attention->window : 0;
    const int64_t row = (b * attention->G + g) * attention->room * A;
    const float *x = attention->query + token * attention->query_step + h * A;
    double query[MOST_CHANNELS], total[MOST_CHANNELS] = {0}, most = -INFINITY, sum = 0.0;
    for (int64_t a = 0; a < A; a++)
        query[a] = (double)rotated(attention, x, position, a) * attention->scale * attention->key_steps[g * A + a];
    for (int64_t s = first; s <= position; s++) {
        double score = 0.0;
        for (int64_t a = 0; a < A; a++) score += query[a] * attention->keys[row + s * A + a];
        const double before = most, fade = score > most ? exp(most - score) : 1.0;      /* scales what was summed before */
        most = score > before ? score : before;
        const double weight = exp(score - most);
        sum = sum * fade + weight;
        for (int64_t a = 0; a < A; a++) total[a] = total[a] * fade + weight * attention->values[row + s * A + a];
    }
    float *out = attention->attended + (token * attention->H + h) * A;
    for (int64_t a = 0; a < A; a++) out[a] = (float)(total[a] / sum * attention->value_steps[g * A + a]);
}

static void attend(const Attention *attention, int64_t row, int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; h++)
        for (int64_t t = 0; t < attention->T; t++) attend_head(attention, row, t, h);
}

const Attending SCALAR_ATTENDING = {.remember = remember, .attend = attend};
