#include "../instruction_sets.h"

#ifdef HAS_AVXVNNI

#include "../products.h"

#include "../numbers.h"
#include "sums.h"

#include "../loops/products.h"

const Products AVXVNNI_PRODUCTS = {.round_rows = round_rows, .multiply = multiply};

#endif
