/* AddLowRank: adds low-rank adapters to a product, each row of the batch its own, computed as `low_rank.h` says.

   inputs    unchanged float [B, T, N], x float [B, T, K], A float [adapters, R, K], B float [adapters, L, N],
             the adapter of each row int64 [B], counted from 1; 0 for none
             the end of each matrix's columns int64 [R / L]
   output    y float [B, T, N], in the memory of the first input

   A session that does not register our library gets nodes of onnxruntime's own instead
   (`export/runtime/adapted_graph.py`). */

#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "numbers.h"
#include "operators.h"

enum { UNCHANGED, X, DOWN, UP, ADAPTERS, ENDS, INPUTS };
enum { INLINE_WORK = 1 << 16 };     /* multiplications that are done before another thread would begin */

typedef struct {
    Api api;
    const LowRank *low_rank;
} Node;

typedef struct {
    void (*compute)(const Change *change, const Part *part);
    const Change *changes;
    const int64_t *ends;            /* of each matrix's columns; NULL while h is computed */
    int64_t T, width, step;         /* ranks or columns: all, and those of one task */
} Run;

static Status *create(const Operator *op, Api api, const KernelInfo *info, void **kernel) {
    (void)op;
    (void)info;
    const Node node = {.api = api, .low_rank = chosen_kernels()->low_rank};
    return keep_kernel(api, &node, sizeof node, kernel);
}

static void part_task(void *data, size_t task) {
    const Run *run = data;
    const int64_t of_width = pieces(run->width, run->step), of_row = pieces(run->T, PART_TOKENS) * of_width;
    const int64_t number = (int64_t)task % of_row, first = number / of_width * PART_TOKENS;
    const int64_t begin = number % of_width * run->step;
    const int64_t end = least(begin + run->step, run->width), *matrix = run->ends;
    const Change *change = &run->changes[(int64_t)task / of_row];
    Part part = {.first = first, .last = least(first + PART_TOKENS, run->T), .begin = begin};
    for (; part.begin < end; part.begin = part.end) {
        for (; matrix && *matrix <= part.begin; matrix++) part.rank += change->L;
        part.end = matrix ? least(end, *matrix) : end;
        run->compute(change, &part);
    }
}

static Status *run_parts(Api api, const KernelContext *context, Run *run, int64_t count, int64_t work) {
    const int64_t tasks = count * pieces(run->T, PART_TOKENS) * pieces(run->width, run->step);
    if (work > INLINE_WORK) return KernelContext_ParallelFor(api)(context, part_task, (size_t)tasks, 0, run);
    for (int64_t task = 0; task < tasks; task++) part_task(run, (size_t)task);
    return NULL;
}

static Status *compute(void *kernel, KernelContext *context) {
    const Node *node = kernel;
    Api api = node->api;
    Tensor unchanged, x, down, up, adapters, ends;
    Tensor *tensors[INPUTS] = {&unchanged, &x, &down, &up, &adapters, &ends};
    for (size_t i = 0; i < INPUTS; i++) TRY(read_tensor(api, context, i, tensors[i]));
    if (unchanged.rank != 3 || x.rank != 3 || down.rank != 3 || up.rank != 3 || adapters.rank != 1)
        return CreateStatus(api)(INVALID_GRAPH, "products and factors must have three dimensions");
    const int64_t rows = x.dims[0], T = x.dims[1], K = x.dims[2], N = unchanged.dims[2], R = down.dims[1], L = up.dims[1];
    if (unchanged.dims[0] != rows || unchanged.dims[1] != T || adapters.dims[0] != rows || down.dims[2] != K ||
        up.dims[0] != down.dims[0] || up.dims[2] != N || ends.rank != 1 || ends.dims[0] < 1 || ends.dims[0] * L != R ||
        ((const int64_t *)ends.data)[ends.dims[0] - 1] != N)
        return CreateStatus(api)(INVALID_GRAPH, "the factors must fit the product");
    const int64_t *numbers = adapters.data;
    for (int64_t row = 0; row < rows; row++)
        if (numbers[row] < 0 || numbers[row] > down.dims[0])
            return CreateStatus(api)(INVALID_GRAPH, "a row's adapter must be one of the graph's");
    float *y;
    TRY(make_output(api, context, 0, unchanged.dims, 3, &y));
    if (y != unchanged.data) memcpy(y, unchanged.data, (size_t)(rows * T * N) * sizeof *y);
    char *memory = malloc((size_t)rows * (sizeof(Change) + (size_t)(T * R) * sizeof(float)));
    if (!memory) return CreateStatus(api)(FAILED, "out of memory");
    Change *changes = (Change *)memory;
    float *h = (float *)(changes + rows);
    int64_t count = 0;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t adapter = numbers[row] - 1;
        if (adapter < 0) continue;
        changes[count] = (Change){
            .T = T, .K = K, .N = N, .R = R, .L = L, .x = (const float *)x.data + row * T * K,
            .A = (const float *)down.data + adapter * R * K, .B = (const float *)up.data + adapter * L * N,
            .h = h + count * T * R, .y = y + row * T * N, .unchanged = y + row * T * N,
        };
        count++;
    }
    Run run = {.compute = node->low_rank->down, .changes = changes, .T = T, .width = R, .step = PART_RANKS};
    Status *status = run_parts(api, context, &run, count, count * T * R * K);
    run.compute = node->low_rank->up, run.ends = ends.data, run.width = N, run.step = PART_COLUMNS;
    if (!status) status = run_parts(api, context, &run, count, count * T * L * N);
    free(memory);
    return status;
}

static const char *name(const Operator *op) { (void)op; return "AddLowRank"; }
static int input_type(const Operator *op, size_t index) { (void)op; return index >= ADAPTERS ? INT64 : FLOAT; }
static int output_type(const Operator *op, size_t index) { (void)op; (void)index; return FLOAT; }
static size_t input_count(const Operator *op) { (void)op; return INPUTS; }
static size_t output_count(const Operator *op) { (void)op; return 1; }

/* The output may have the first input's memory. */
static int first_of_each[] = {0};
static size_t may_inplace(int **inputs, int **outputs) {
    *inputs = *outputs = first_of_each;
    return 1;
}
static void release_may_inplace(int *inputs, int *outputs) { (void)inputs; (void)outputs; }

const Operator ADD_LOW_RANK = {
    COMMON_PARTS, .name = name, .input_type = input_type, .input_count = input_count, .output_type = output_type,
    .output_count = output_count, .input_characteristic = always_there, .create_kernel_v2 = create,
    .compute_v2 = compute, .may_inplace = may_inplace, .release_may_inplace = release_may_inplace,
};
