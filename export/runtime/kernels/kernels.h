/* What one instruction set brings, and which one computes. */

#ifndef KERNELS_H
#define KERNELS_H

#include "attention.h"
#include "products.h"

typedef struct {
    const char *name;               /* of its folder, and as TOOLKIT_KERNELS names it */
    int (*runs_here)(void);         /* whether this processor has what it needs */
    const Products *products;
    const Attending *attending;
} Kernels;

/* What nodes of the graph that are made from now on compute with. */
const Kernels *chosen_kernels(void);

#endif
