/* Attention of a few new tokens over a cache of codes.

   cache     int8 [B, G, room, A], keys and values: value = code * step of its channel
   queries   float, for each new token [H, A]; keys and values beside them [G, A]

   New keys are rotated, rounded and appended to each row of the batch, and new values are rounded and appended; then
   every query attends to its row up to its own position, or to the last `window` positions of that.

   Shapes: B rows, T new tokens, H query heads, G kv heads, A head dim, R rotated pairs. */

#ifndef ATTENTION_H
#define ATTENTION_H

#include <stdint.h>

enum { MOST_CHANNELS = 256 };       /* of a head; more could overflow a sum */

typedef struct {
    int64_t B, T, H, G, A, R, room;
    int64_t window;                 /* positions that a query attends to; all if 0 or less */
    float scale;
    const float *query, *key, *value;
    int64_t query_step, key_step;   /* from one token to the next */
    const int32_t *last_B;          /* each row's last position, new tokens included */
    const float *cos, *sin;         /* [positions, R]; NULL if nothing is rotated */
    const float *key_steps, *value_steps;   /* [G, A] */
    int8_t *keys, *values;
    float *attended;                /* [B, T, H, A] */
} Attention;

/* The attention of one instruction set. */
typedef struct {
    /* Write the new tokens' keys and values into the cache. */
    void (*remember)(const Attention *attention);
    /* Compute the attention of heads [begin, end) of one row. */
    void (*attend)(const Attention *attention, int64_t row, int64_t begin, int64_t end);
} Attending;

extern const Attending AVX512VNNI_ATTENDING, AVXVNNI_ATTENDING, AVX2_ATTENDING, I8MM_ATTENDING, NEON_ATTENDING,
                       SCALAR_ATTENDING;

#endif
