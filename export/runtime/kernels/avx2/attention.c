#include "../instruction_sets.h"

#ifdef HAS_AVX2

#include "../attention.h"

#include "../numbers.h"
#include "sums.h"

#include "../loops/attending.h"

const Attending AVX2_ATTENDING = {.remember = remember, .attend = attend};

#endif
