#include "../instruction_sets.h"

#ifdef HAS_AVXVNNI

#include "../attention.h"

#include "../numbers.h"
#include "sums.h"

#include "../loops/attending.h"

const Attending AVXVNNI_ATTENDING = {.remember = remember, .attend = attend};

#endif
