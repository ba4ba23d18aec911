#include "../instruction_sets.h"

#ifdef HAS_I8MM

#include "../attention.h"

#include "../numbers.h"
#include "sums.h"

#include "../loops/attending.h"

const Attending I8MM_ATTENDING = {.remember = remember, .attend = attend};

#endif
