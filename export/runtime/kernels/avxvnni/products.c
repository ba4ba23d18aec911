#include "../instruction_sets.h"

#ifdef HAS_AVXVNNI

#include "../low_rank.h"
#include "../products.h"

#include "../numbers.h"
#include "sums.h"

#include "../loops/low_rank.h"
#include "../loops/products.h"

const Products AVXVNNI_PRODUCTS = {.round_rows = round_rows, .multiply = multiply};
const LowRank AVXVNNI_LOW_RANK = {.down = down, .up = up};

#endif
