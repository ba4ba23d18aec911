#include "../instruction_sets.h"

#ifdef HAS_I8MM

#include "../products.h"

#include "../numbers.h"
#include "sums.h"

#include "../loops/products.h"

const Products I8MM_PRODUCTS = {.round_rows = round_rows, .multiply = multiply};

#endif
