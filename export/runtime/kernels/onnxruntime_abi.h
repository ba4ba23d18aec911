/* The part of onnxruntime's C interface that an operator of our own needs.

   The interface is a table of functions, and so is an operator; a release fixes the place of each function for all
   later releases. Wheels of onnxruntime ship no header, so the places that we use are declared here. Functions that we
   fill in or call are typed; `version` tells onnxruntime that we know no later ones. Source: onnxruntime_c_api.h and
   the table in onnxruntime_c_api.cc, version 18. */

#ifndef ONNXRUNTIME_ABI_H
#define ONNXRUNTIME_ABI_H

#include <stddef.h>
#include <stdint.h>

enum { ABI_VERSION = 18 };

typedef struct Status Status;                   /* NULL on success */
typedef struct SessionOptions SessionOptions;
typedef struct Domain Domain;
typedef struct KernelInfo KernelInfo;           /* a node: its attributes */
typedef struct KernelContext KernelContext;     /* one run of it */
typedef struct Value Value;
typedef struct Shape Shape;

enum { FLOAT = 1, UINT8 = 2, INT8 = 3, INT32 = 6, INT64 = 7, FLOAT16 = 10 };     /* element types */
enum { REQUIRED = 0, OPTIONAL = 1 };
enum { FAILED = 1, INVALID_GRAPH = 10 };        /* codes of a Status */

typedef void (*AnyFunction)(void);
typedef const AnyFunction *Api;

typedef struct {
    Api (*get)(uint32_t version);
    const char *(*version_string)(void);
} ApiBase;

/* The function at a place of the table. */
#define CALL(api, place, result, ...) ((result(*)(__VA_ARGS__))(api)[place])

#define CreateStatus(api) CALL(api, 0, Status *, int, const char *)
#define CreateCustomOpDomain(api) CALL(api, 26, Status *, const char *, Domain **)
#define CustomOpDomain_Add(api) CALL(api, 27, Status *, Domain *, const Operator *)
#define AddCustomOpDomain(api) CALL(api, 28, Status *, SessionOptions *, Domain *)
#define GetTensorMutableData(api) CALL(api, 51, Status *, const Value *, void **)
#define GetDimensionsCount(api) CALL(api, 61, Status *, const Shape *, size_t *)
#define GetDimensions(api) CALL(api, 62, Status *, const Shape *, int64_t *, size_t)
#define GetTensorTypeAndShape(api) CALL(api, 65, Status *, const Value *, Shape **)
#define KernelInfoGetAttribute_float(api) CALL(api, 85, Status *, const KernelInfo *, const char *, float *)
#define KernelInfoGetAttribute_int64(api) CALL(api, 86, Status *, const KernelInfo *, const char *, int64_t *)
#define KernelContext_GetInputCount(api) CALL(api, 88, Status *, const KernelContext *, size_t *)
#define KernelContext_GetInput(api) CALL(api, 90, Status *, const KernelContext *, size_t, const Value **)
#define KernelContext_GetOutput(api) \
    CALL(api, 91, Status *, KernelContext *, size_t, const int64_t *, size_t, Value **)
#define ReleaseTensorTypeAndShapeInfo(api) CALL(api, 99, void, Shape *)
#define KernelContext_ParallelFor(api) \
    CALL(api, 274, Status *, const KernelContext *, void (*)(void *, size_t), size_t, size_t, void *)

typedef struct Operator Operator;
struct Operator {
    uint32_t version;
    void *(*create_kernel)(const Operator *, Api, const KernelInfo *);
    const char *(*name)(const Operator *);
    const char *(*provider)(const Operator *);
    int (*input_type)(const Operator *, size_t);
    size_t (*input_count)(const Operator *);
    int (*output_type)(const Operator *, size_t);
    size_t (*output_count)(const Operator *);
    void (*compute)(void *, KernelContext *);
    void (*destroy)(void *);
    int (*input_characteristic)(const Operator *, size_t);
    int (*output_characteristic)(const Operator *, size_t);
    int (*input_memory)(const Operator *, size_t);
    int (*variadic_input_least)(const Operator *);
    int (*variadic_input_alike)(const Operator *);
    int (*variadic_output_least)(const Operator *);
    int (*variadic_output_alike)(const Operator *);
    Status *(*create_kernel_v2)(const Operator *, Api, const KernelInfo *, void **);
    Status *(*compute_v2)(void *, KernelContext *);
    Status *(*infer_shape)(const Operator *, void *);
    int (*first_version)(const Operator *);
    int (*last_version)(const Operator *);
    size_t (*may_inplace)(int **, int **);
    void (*release_may_inplace)(int *, int *);
    size_t (*aliases)(int **, int **);
    void (*release_aliases)(int *, int *);
};

#endif
