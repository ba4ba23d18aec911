#include "../instruction_sets.h"

#ifdef HAS_NEON

#include "../attention.h"

#include "../numbers.h"
#include "sums.h"

#include "../loops/attending.h"

const Attending NEON_ATTENDING = {.remember = remember, .attend = attend};

#endif
