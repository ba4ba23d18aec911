#if defined(__x86_64__)

#include "../products.h"

#include "../numbers.h"
#include "sums.h"

#include "../loops/products.h"

const Products AVX512VNNI_PRODUCTS = {.round_rows = round_rows, .multiply = multiply};

#endif
