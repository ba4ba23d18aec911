#include "../instruction_sets.h"

#ifdef HAS_AVX512VNNI

#include "../attention.h"

#include "../numbers.h"
#include "sums.h"

#include "../loops/attending.h"

const Attending AVX512VNNI_ATTENDING = {.remember = remember, .attend = attend};

#endif
