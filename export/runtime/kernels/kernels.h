/* The kernels of one instruction set, and the choice among them. */

#ifndef KERNELS_H
#define KERNELS_H

#include "attention.h"
#include "low_rank.h"
#include "products.h"

typedef struct {
    const char *name;               /* of its folder, and in TOOLKIT_KERNELS */
    int (*runs_here)(void);         /* whether this processor supports it */
    const Products *products;
    const Attending *attending;
    const LowRank *low_rank;
} Kernels;

/* The kernels of all graph nodes that are created from now on. */
const Kernels *chosen_kernels(void);

#endif
