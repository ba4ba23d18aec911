#include "../instruction_sets.h"

#ifdef HAS_AVX2

#include "../products.h"

#include "../numbers.h"
#include "sums.h"

#include "../loops/products.h"

const Products AVX2_PRODUCTS = {.round_rows = round_rows, .multiply = multiply};

#endif
