/* What our operators share: passing errors on, reading tensors, and the common parts of an `Operator`. */

#ifndef OPERATORS_H
#define OPERATORS_H

#include "onnxruntime_abi.h"

extern const Operator MATMUL_NBITS, MATMUL_3BITS, ATTENTION_OVER_CODES, ADD_LOW_RANK;

enum { MOST_RANK = 8 };

typedef struct {
    void *data;                     /* NULL if the input was left out */
    size_t rank;
    int64_t dims[MOST_RANK];
} Tensor;

/* Return an error to onnxruntime. */
#define TRY(call)                             \
    do {                                      \
        Status *status_ = (call);             \
        if (status_) return status_;          \
    } while (0)

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

/* Read an input's values; NULL if it was left out. */
Status *read_data(Api api, const KernelContext *context, size_t index, void **data);

/* Read an input with its dimensions, which cost onnxruntime an allocation. */
Status *read_tensor(Api api, const KernelContext *context, size_t index, Tensor *tensor);

Status *make_output(Api api, KernelContext *context, size_t index, const int64_t *dims, size_t rank, void *data);

/* Keep a node's attributes, read when a session opens, until the kernel is destroyed. */
Status *keep_kernel(Api api, const void *node, size_t size, void **kernel);

void destroy_kernel(void *kernel);

/* Parts of an `Operator`. */
const char *cpu_provider(const Operator *op);
int any_memory(const Operator *op, size_t index);
int always_there(const Operator *op, size_t index);
int one(const Operator *op);
int newest(const Operator *op);

#define COMMON_PARTS                                                                                                    \
    .version = ABI_VERSION, .provider = cpu_provider, .destroy = destroy_kernel, .input_memory = any_memory,            \
    .output_characteristic = always_there, .variadic_input_least = one, .variadic_input_alike = one,                    \
    .variadic_output_least = one, .variadic_output_alike = one, .first_version = one, .last_version = newest

#endif
