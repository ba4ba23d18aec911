/* onnxruntime's MatMulNBits, computed by `products.c`.

   A session that registers our library has this operator in place of the built-in one of the same name and domain, so the
   exported graph stays what every runtime reads. Attributes that are not ours are refused when a session opens. */

#include <stdlib.h>

#include "operators.h"
#include "products.h"

enum { A, CODES, SCALES, ZERO_POINTS, GROUP_INDEX, BIAS, INPUTS };
enum { MOST_TASKS = 64 };

typedef struct {
    Api api;
    int64_t N, K, bits, block_size;
} Node;

typedef struct {
    Weight weight;
    Rounded rounded;
    const float *a;
    float *y;
    int64_t columns;                /* of one task */
} Run;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t pieces(int64_t whole, int64_t piece) { return (whole + piece - 1) / piece; }

static Status *create(const Operator *op, Api api, const KernelInfo *info, void **kernel) {
    (void)op;
    Node node = {.api = api};
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
    Node *kept = malloc(sizeof node);
    if (!kept) return CreateStatus(api)(FAILED, "out of memory");
    *kept = node;
    *kernel = kept;
    return NULL;
}

static void round_task(void *data, size_t task) {
    Run *run = data;
    int64_t begin = (int64_t)task * TILE;
    round_rows(&run->weight, run->a, &run->rounded, begin, smaller(begin + TILE, run->rounded.M));
}

static void multiply_task(void *data, size_t task) {
    Run *run = data;
    int64_t begin = (int64_t)task * run->columns;
    multiply(&run->weight, &run->rounded, run->y, begin, smaller(begin + run->columns, run->weight.N));
}

static Status *compute(void *kernel, KernelContext *context) {
    const Node *node = kernel;
    Api api = node->api;
    Tensor inputs[INPUTS] = {0};
    size_t count;
    TRY(KernelContext_GetInputCount(api)(context, &count));
    for (size_t i = 0; i < count && i < INPUTS; i++) TRY(read_input(api, context, i, &inputs[i]));
    if (inputs[GROUP_INDEX].data) return CreateStatus(api)(INVALID_GRAPH, "g_idx is not supported");
    Tensor *a = &inputs[A];
    if (a->rank < 1 || a->dims[a->rank - 1] != node->K)
        return CreateStatus(api)(INVALID_GRAPH, "A's last dimension must be K");
    int64_t M = 1;
    for (size_t i = 0; i + 1 < a->rank; i++) M *= a->dims[i];
    a->dims[a->rank - 1] = node->N;
    Run run = {.a = a->data};
    TRY(make_output(api, context, 0, a->dims, a->rank, &run.y));
    if (!M) return NULL;

    int64_t blocks = pieces(node->K, node->block_size);
    run.weight = (Weight){
        .N = node->N, .K = node->K, .blocks = blocks, .bits = (int)node->bits, .block_size = (int)node->block_size,
        .codes = inputs[CODES].data, .scales = inputs[SCALES].data, .zero_points = inputs[ZERO_POINTS].data,
        .bias = inputs[BIAS].data,
    };
    int64_t width = width_of(&run.weight), padded = pieces(blocks, 16) * 16, rows = pieces(M, ROWS) * ROWS;
    size_t size = (size_t)(rows * (width + 2 * padded * (int64_t)sizeof(float)));
    char *buffer = aligned_alloc(64, (size + 63) / 64 * 64);
    if (!buffer) return CreateStatus(api)(FAILED, "out of memory");
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
    run.columns = pieces(pieces(node->N, smaller(pieces(node->N, COLUMNS), MOST_TASKS)), COLUMNS) * COLUMNS;
    if (!status)
        status = KernelContext_ParallelFor(api)(context, multiply_task, (size_t)pieces(node->N, run.columns), 0, &run);
    free(buffer);
    return status;
}

static const char *name(const Operator *op) { (void)op; return "MatMulNBits"; }

static int input_type(const Operator *op, size_t index) {
    (void)op;
    static const int types[INPUTS] = {FLOAT, UINT8, FLOAT, UINT8, INT32, FLOAT};
    return types[index];
}

static int input_characteristic(const Operator *op, size_t index) { (void)op; return index < ZERO_POINTS ? REQUIRED : OPTIONAL; }
static size_t input_count(const Operator *op) { (void)op; return INPUTS; }
static int output_type(const Operator *op, size_t index) { (void)op; (void)index; return FLOAT; }
static size_t output_count(const Operator *op) { (void)op; return 1; }

const Operator MATMUL_NBITS = {
    COMMON_PARTS, .name = name, .input_type = input_type, .input_count = input_count, .output_type = output_type,
    .output_count = output_count, .input_characteristic = input_characteristic, .create_kernel_v2 = create,
    .compute_v2 = compute,
};
