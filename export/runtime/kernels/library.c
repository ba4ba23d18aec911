/* The library that a session of onnxruntime registers: its operators, their domains, and the kernels that compute
   them. */

#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "operators.h"
#include "processor.h"

static Status *read_value(Api api, const Value *value, void **data) {
    *data = NULL;
    return value ? GetTensorMutableData(api)(value, data) : NULL;
}

Status *read_data(Api api, const KernelContext *context, size_t index, void **data) {
    const Value *value = NULL;
    TRY(KernelContext_GetInput(api)(context, index, &value));
    return read_value(api, value, data);
}

Status *read_tensor(Api api, const KernelContext *context, size_t index, Tensor *tensor) {
    const Value *value = NULL;
    *tensor = (Tensor){0};
    TRY(KernelContext_GetInput(api)(context, index, &value));
    if (!value) return NULL;
    Shape *shape;
    TRY(GetTensorTypeAndShape(api)(value, &shape));
    Status *status = GetDimensionsCount(api)(shape, &tensor->rank);
    if (!status && tensor->rank > MOST_RANK)
        status = CreateStatus(api)(INVALID_GRAPH, "a tensor has more than 8 dimensions");
    if (!status) status = GetDimensions(api)(shape, tensor->dims, tensor->rank);
    ReleaseTensorTypeAndShapeInfo(api)(shape);
    TRY(status);
    return read_value(api, value, &tensor->data);
}

Status *make_output(Api api, KernelContext *context, size_t index, const int64_t *dims, size_t rank, void *data) {
    Value *value;
    TRY(KernelContext_GetOutput(api)(context, index, dims, rank, &value));
    return GetTensorMutableData(api)(value, data);
}

Status *keep_kernel(Api api, const void *node, size_t size, void **kernel) {
    *kernel = malloc(size);
    if (!*kernel) return CreateStatus(api)(FAILED, "out of memory");
    memcpy(*kernel, node, size);
    return NULL;
}

void destroy_kernel(void *kernel) { free(kernel); }

const char *cpu_provider(const Operator *op) { (void)op; return "CPUExecutionProvider"; }
int any_memory(const Operator *op, size_t index) { (void)op; (void)index; return 0; }
int always_there(const Operator *op, size_t index) { (void)op; (void)index; return REQUIRED; }
int one(const Operator *op) { (void)op; return 1; }
int newest(const Operator *op) { (void)op; return 0x7fffffff; }

/* The fastest first; the last one is slow and is chosen only by name. */
static const Kernels ALL[] = {
#ifdef HAS_AVX512VNNI
    {"avx512vnni", has_avx512vnni, &AVX512VNNI_PRODUCTS, &AVX512VNNI_ATTENDING, &AVX512VNNI_LOW_RANK},
#endif
#ifdef HAS_AVXVNNI
    {"avxvnni", has_avxvnni, &AVXVNNI_PRODUCTS, &AVXVNNI_ATTENDING, &AVXVNNI_LOW_RANK},
#endif
#ifdef HAS_AVX2
    {"avx2", has_avx2, &AVX2_PRODUCTS, &AVX2_ATTENDING, &AVX2_LOW_RANK},
#endif
#ifdef HAS_I8MM
    {"i8mm", has_i8mm, &I8MM_PRODUCTS, &I8MM_ATTENDING, &I8MM_LOW_RANK},
#endif
#ifdef HAS_NEON
    {"neon", has_neon, &NEON_PRODUCTS, &NEON_ATTENDING, &NEON_LOW_RANK},
#endif
    {"scalar", everywhere, &SCALAR_PRODUCTS, &SCALAR_ATTENDING, &SCALAR_LOW_RANK},
};
enum { SCALAR = COUNT(ALL) - 1 };

static const Kernels *chosen = &ALL[SCALAR];

const Kernels *chosen_kernels(void) { return chosen; }

/* Return the name of the kernels at a place among those that run here, the fastest first; NULL after the last. */
const char *kernels_here(size_t place) {
    for (size_t i = 0; i < COUNT(ALL); i++)
        if (ALL[i].runs_here() && !place--) return ALL[i].name;
    return NULL;
}

/* Choose kernels by name; returns it, or NULL if this processor does not run them. */
const char *choose_kernels(const char *name) {
    for (size_t i = 0; i < COUNT(ALL); i++)
        if (!strcmp(name, ALL[i].name) && ALL[i].runs_here()) {
            chosen = &ALL[i];
            return chosen->name;
        }
    return NULL;
}

/* onnxruntime calls this for each session that registers the library. */
Status *RegisterCustomOps(SessionOptions *options, const ApiBase *base) {
    static const struct { const char *name; const Operator *ops[3]; } domains[] = {
        {"com.microsoft", {&MATMUL_NBITS}},
        {"reasoning.edge", {&MATMUL_3BITS, &ATTENTION_OVER_CODES, &ADD_LOW_RANK}},
    };
    static Domain *kept[COUNT(domains)];        /* a domain must outlive its sessions */
    Api api = base->get(ABI_VERSION);
    for (size_t i = 0; i < COUNT(domains); i++) {
        if (!kept[i]) {
            Domain *domain;
            TRY(CreateCustomOpDomain(api)(domains[i].name, &domain));
            for (size_t j = 0; j < COUNT(domains[i].ops) && domains[i].ops[j]; j++)
                TRY(CustomOpDomain_Add(api)(domain, domains[i].ops[j]));
            kept[i] = domain;
        }
        TRY(AddCustomOpDomain(api)(options, kept[i]));
    }
    return NULL;
}
