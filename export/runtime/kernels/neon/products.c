#include "../instruction_sets.h"

#ifdef HAS_NEON

#include "../products.h"

#include "../numbers.h"
#include "sums.h"

#include "../loops/products.h"

const Products NEON_PRODUCTS = {.round_rows = round_rows, .multiply = multiply};

#endif
