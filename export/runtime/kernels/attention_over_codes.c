/* AttentionOverCodes: GroupQueryAttention of a few new tokens over a cache of int8, computed as `attention.h` says.

   The exported graph defines it as a function over onnxruntime's GroupQueryAttention, which a session that does not
   register our library runs (`export/graph/attention_over_codes.py`). */

#include <string.h>

#include "kernels.h"
#include "operators.h"

enum { QUERY, KEY, VALUE, PAST_KEY, PAST_VALUE, LAST, TOTAL, COS, SIN, KEY_STEPS, VALUE_STEPS, INPUTS };
enum { ATTENDED, PRESENT_KEY, PRESENT_VALUE, OUTPUTS };
enum { ENOUGH_TASKS = 8 };

typedef struct {
    Api api;
    const Attending *attending;
    int64_t H, G, window;
    float scale;
} Node;

typedef struct {
    const Attending *attending;
    Attention attention;
    int64_t heads;                  /* of one task */
} Run;

static Status *create(const Operator *op, Api api, const KernelInfo *info, void **kernel) {
    (void)op;
    Node node = {.api = api, .attending = chosen_kernels()->attending};
    TRY(KernelInfoGetAttribute_int64(api)(info, "num_heads", &node.H));
    TRY(KernelInfoGetAttribute_int64(api)(info, "kv_num_heads", &node.G));
    TRY(KernelInfoGetAttribute_int64(api)(info, "local_window_size", &node.window));
    TRY(KernelInfoGetAttribute_float(api)(info, "scale", &node.scale));
    return keep_kernel(api, &node, sizeof node, kernel);
}

static void attend_task(void *data, size_t task) {
    const Run *run = data;
    const int64_t begin = (int64_t)task * run->heads, H = run->attention.H;
    run->attending->attend(&run->attention, begin / H, begin % H, begin % H + run->heads);
}

/* Make the present cache: in the past's own memory, or in a copy with room for all positions. */
static Status *present(Api api, KernelContext *context, size_t output, const Tensor *past, int64_t positions,
                       int8_t **codes) {
    int64_t dims[4];
    memcpy(dims, past->dims, sizeof dims);
    const int64_t had = dims[2] * dims[3];
    if (dims[2] < positions) dims[2] = positions;
    const int64_t has = dims[2] * dims[3];
    TRY(make_output(api, context, output, dims, 4, codes));
    if (*codes != past->data)
        for (int64_t i = 0; i < dims[0] * dims[1]; i++)
            memcpy(*codes + i * has, (const int8_t *)past->data + i * had, (size_t)had);
    return NULL;
}

static Status *compute(void *kernel, KernelContext *context) {
    const Node *node = kernel;
    Api api = node->api;
    void *inputs[INPUTS];
    Tensor query, keys, values, cos;
    static const size_t without_dims[] = {KEY, VALUE, LAST, TOTAL, SIN, KEY_STEPS, VALUE_STEPS};
    for (size_t i = 0; i < COUNT(without_dims); i++)
        TRY(read_data(api, context, without_dims[i], &inputs[without_dims[i]]));
    TRY(read_tensor(api, context, QUERY, &query));
    TRY(read_tensor(api, context, PAST_KEY, &keys));
    TRY(read_tensor(api, context, PAST_VALUE, &values));
    TRY(read_tensor(api, context, COS, &cos));
    const int64_t B = query.dims[0], T = query.dims[1], H = node->H, G = node->G, A = keys.dims[3];
    if (A > MOST_CHANNELS) return CreateStatus(api)(INVALID_GRAPH, "a head must have 256 channels at most");
    const int64_t total = *(const int32_t *)inputs[TOTAL];
    Run run = {.attending = node->attending, .attention = {
        .B = B, .T = T, .H = H, .G = G, .A = A, .R = cos.data ? cos.dims[1] : 0,
        .room = keys.dims[2] < total ? total : keys.dims[2], .window = node->window, .scale = node->scale,
        .query = query.data, .query_step = query.dims[2], .key_step = G * A, .last_B = inputs[LAST],
        .cos = cos.data, .sin = inputs[SIN], .key_steps = inputs[KEY_STEPS], .value_steps = inputs[VALUE_STEPS],
        .key = inputs[KEY], .value = inputs[VALUE],
    }};
    Attention *attention = &run.attention;
    if (!attention->key) {          /* packed: a token's queries, keys and values are adjacent */
        attention->key_step = attention->query_step;
        attention->key = attention->query + H * A;
        attention->value = attention->key + G * A;
    }
    const int64_t dims[] = {B, T, H * A};
    TRY(make_output(api, context, ATTENDED, dims, 3, &attention->attended));
    TRY(present(api, context, PRESENT_KEY, &keys, total, &attention->keys));
    TRY(present(api, context, PRESENT_VALUE, &values, total, &attention->values));
    node->attending->remember(attention);
    run.heads = B * G >= ENOUGH_TASKS ? H / G : 1;
    return KernelContext_ParallelFor(api)(context, attend_task, (size_t)(B * H / run.heads), 0, &run);
}

static const char *name(const Operator *op) { (void)op; return "AttentionOverCodes"; }

static int input_type(const Operator *op, size_t index) {
    (void)op;
    static const int types[INPUTS] = {FLOAT, FLOAT, FLOAT, INT8, INT8, INT32, INT32, FLOAT, FLOAT, FLOAT, FLOAT};
    return types[index];
}

static int input_characteristic(const Operator *op, size_t index) {
    (void)op;
    return index == KEY || index == VALUE || index == COS || index == SIN ? OPTIONAL : REQUIRED;
}

static size_t input_count(const Operator *op) { (void)op; return INPUTS; }
static int output_type(const Operator *op, size_t index) { (void)op; return index == ATTENDED ? FLOAT : INT8; }
static size_t output_count(const Operator *op) { (void)op; return OUTPUTS; }

const Operator ATTENTION_OVER_CODES = {
    COMMON_PARTS, .name = name, .input_type = input_type, .input_count = input_count, .output_type = output_type,
    .output_count = output_count, .input_characteristic = input_characteristic, .create_kernel_v2 = create,
    .compute_v2 = compute,
};
