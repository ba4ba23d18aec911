/* onnxruntime's MatMulNBits and MatMul3Bits, computed as `products.h` says.

   In a session that registers our library, the first replaces the built-in operator of the same name and domain, so
   every runtime can read the exported graph. The second has the same inputs, except that scales are in fp16; elsewhere
   it is a function of the graph that widens codes for the first (`export/graph/matmul_3bits.py`). Attributes that we
   do not support are refused when a session opens. */

#include <stdlib.h>

#include "kernels.h"
#include "numbers.h"
#include "operators.h"

enum { A, CODES, SCALES, ZERO_POINTS, GROUP_INDEX, BIAS, INPUTS };
enum { MOST_TASKS = 64, ALIGNED = 64 };

typedef struct {
    Api api;
    const Products *products;
    int64_t N, K, bits, block_size;
} Node;

typedef struct {
    const Products *products;
    Weight weight;
    Rounded rounded;
    const float *a;
    float *y;
    int64_t columns;                /* of one task */
} Run;

static Status *create(const Operator *op, Api api, const KernelInfo *info, void **kernel) {
    (void)op;
    Node node = {.api = api, .products = chosen_kernels()->products};
    int64_t accuracy = 0;
    struct { const char *name; int64_t *value; } attributes[] = {
        {"N", &node.N}, {"K", &node.K}, {"bits", &node.bits}, {"block_size", &node.block_size},
        {"accuracy_level", &accuracy},
    };
    for (size_t i = 0; i < COUNT(attributes); i++)
        TRY(KernelInfoGetAttribute_int64(api)(info, attributes[i].name, attributes[i].value));
    int64_t size = node.block_size;
    if ((node.bits != 4 && node.bits != 8) || size < 32 || size > 256 || (size & (size - 1)) || accuracy != 4)
        return CreateStatus(api)(INVALID_GRAPH, "bits must be 4 or 8, block_size 32 to 256, accuracy_level 4");
    return keep_kernel(api, &node, sizeof node, kernel);
}

static Status *create_3(const Operator *op, Api api, const KernelInfo *info, void **kernel) {
    (void)op;
    Node node = {
        .api = api, .products = chosen_kernels()->products, .bits = 3, .block_size = THREE_BITS_BLOCK,
    };
    TRY(KernelInfoGetAttribute_int64(api)(info, "N", &node.N));
    TRY(KernelInfoGetAttribute_int64(api)(info, "K", &node.K));
    if (node.K % THREE_BITS_BLOCK) return CreateStatus(api)(INVALID_GRAPH, "K must be a multiple of 256");
    return keep_kernel(api, &node, sizeof node, kernel);
}

static void round_task(void *data, size_t task) {
    Run *run = data;
    int64_t begin = (int64_t)task * TILE;
    run->products->round_rows(&run->weight, run->a, &run->rounded, begin, least(begin + TILE, run->rounded.M));
}

static void multiply_task(void *data, size_t task) {
    Run *run = data;
    int64_t begin = (int64_t)task * run->columns;
    run->products->multiply(&run->weight, &run->rounded, run->y, begin, least(begin + run->columns, run->weight.N));
}

static Status *compute(void *kernel, KernelContext *context) {
    const Node *node = kernel;
    Api api = node->api;
    Tensor tensor, *a = &tensor;
    void *inputs[INPUTS] = {0};
    size_t count;
    TRY(KernelContext_GetInputCount(api)(context, &count));
    TRY(read_tensor(api, context, A, a));
    for (size_t i = A + 1; i < count && i < INPUTS; i++) TRY(read_data(api, context, i, &inputs[i]));
    if (inputs[GROUP_INDEX]) return CreateStatus(api)(INVALID_GRAPH, "g_idx is not supported");
    if (a->rank < 1 || a->dims[a->rank - 1] != node->K)
        return CreateStatus(api)(INVALID_GRAPH, "A's last dimension must be K");
    int64_t M = 1;
    for (size_t i = 0; i + 1 < a->rank; i++) M *= a->dims[i];
    a->dims[a->rank - 1] = node->N;
    Run run = {.products = node->products, .a = a->data};
    TRY(make_output(api, context, 0, a->dims, a->rank, &run.y));
    if (!M) return NULL;

    int64_t blocks = pieces(node->K, node->block_size);
    run.weight = (Weight){
        .N = node->N, .K = node->K, .blocks = blocks, .bits = (int)node->bits, .block_size = (int)node->block_size,
        .codes = inputs[CODES], .scales = inputs[SCALES], .zero_points = inputs[ZERO_POINTS], .bias = inputs[BIAS],
    };
    int64_t width = padded_to(LINE, blocks * node->block_size), padded = padded_to(16, blocks);
    int64_t rows = padded_to(ROWS, M);
    size_t size = (size_t)(rows * (width + 2 * padded * (int64_t)sizeof(float)));
    char *memory = malloc(size + ALIGNED);          /* C's aligned_alloc is missing on Windows */
    if (!memory) return CreateStatus(api)(FAILED, "out of memory");
    char *buffer = memory + ALIGNED - (uintptr_t)memory % ALIGNED;
    float *floats = (float *)(buffer + rows * width);
    run.rounded = (Rounded){
        .codes = (int8_t *)buffer, .scales = floats, .sums = floats + rows * padded, .M = M, .width = width,
        .padded_blocks = padded,
    };
    Status *status = NULL;
    if (M <= TILE)
        round_task(&run, 0);
    else
        status = KernelContext_ParallelFor(api)(context, round_task, (size_t)pieces(M, TILE), 0, &run);
    run.columns = padded_to(COLUMNS, pieces(node->N, least(pieces(node->N, COLUMNS), MOST_TASKS)));
    if (!status)
        status = KernelContext_ParallelFor(api)(context, multiply_task, (size_t)pieces(node->N, run.columns), 0, &run);
    free(memory);
    return status;
}

static const char *name(const Operator *op) { (void)op; return "MatMulNBits"; }
static const char *name_3(const Operator *op) { (void)op; return "MatMul3Bits"; }

static int input_type(const Operator *op, size_t index) {
    (void)op;
    static const int types[INPUTS] = {FLOAT, UINT8, FLOAT, UINT8, INT32, FLOAT};
    return types[index];
}

static int input_type_3(const Operator *op, size_t index) { return index == SCALES ? FLOAT16 : input_type(op, index); }

static int input_characteristic(const Operator *op, size_t index) {
    (void)op;
    return index < ZERO_POINTS ? REQUIRED : OPTIONAL;
}

static int input_characteristic_3(const Operator *op, size_t index) {
    (void)op;
    return index <= ZERO_POINTS ? REQUIRED : OPTIONAL;
}

static size_t input_count(const Operator *op) { (void)op; return INPUTS; }
static int output_type(const Operator *op, size_t index) { (void)op; (void)index; return FLOAT; }
static size_t output_count(const Operator *op) { (void)op; return 1; }

#define PARTS                                                                                                           \
    COMMON_PARTS, .input_count = input_count, .output_type = output_type, .output_count = output_count, .compute_v2 = compute

const Operator MATMUL_NBITS = {
    PARTS, .name = name, .create_kernel_v2 = create, .input_type = input_type, .input_characteristic = input_characteristic,
};
const Operator MATMUL_3BITS = {
    PARTS, .name = name_3, .create_kernel_v2 = create_3, .input_type = input_type_3,
    .input_characteristic = input_characteristic_3,
};
