/* Y = A W^T + bias, where W is stored in codes of 3, 4 or 8 bits and A is rounded to 8 bits first.

   A   float [M, K]
   W   N rows of K columns, in blocks of block_size columns: weight = scale * (code - zero point)
       codes        uint8 [N, blocks, block_size * bits / 8]; with 4 bits the first of two is in a byte's low half; for
                    3 bits, `export/quantization/codes.py` draws the layout
       scales       [N, blocks], fp16 with 3 bits, else float
       zero_points  uint8, [N, blocks] with 8 bits, else [N, ceil(blocks / 2)], the first of two in a byte's low half;
                    NULL with 4 or 8 bits means 2^(bits - 1)
   Y   float [M, N]

   With 4 and 8 bits this is MatMulNBits with accuracy_level 4, on the file's own bytes: nothing is reordered when a
   model is loaded, so codes stay mapped. A is rounded block by block: scale = max |a| / 127, code = round(a / scale).
   */

#ifndef PRODUCTS_H
#define PRODUCTS_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    int64_t N, K, blocks;
    int bits, block_size;
    const uint8_t *codes;
    const void *scales;
    const uint8_t *zero_points;
    const float *bias;              /* float [N], or NULL */
} Weight;

typedef struct {
    int8_t *codes;                  /* [M, width], in the order of the instruction set that rounds and multiplies */
    float *scales;                  /* [M, blocks padded to 16] */
    float *sums;                    /* [M, blocks padded to 16]: scale * sum of the block's codes */
                                    /* M here: padded to a multiple of ROWS */
    int64_t M, width, padded_blocks;    /* width: bytes, padded to a multiple of LINE */
} Rounded;

enum { THREE_BITS_BLOCK = 256 };    /* the only block_size with 3 bits, whose codes are the even ones of 4 */

/* Rows of A that are rounded together, their padding, columns of Y that are computed together, columns of A that are
   read together. */
enum { TILE = 12, ROWS = 4, COLUMNS = 32, LINE = 128 };

/* The products of one instruction set. */
typedef struct {
    /* Round rows [begin, end) of A; begin is a multiple of TILE, and end is one or M. */
    void (*round_rows)(const Weight *weight, const float *a, Rounded *rounded, int64_t begin, int64_t end);
    /* Compute columns [begin, end) of Y; begin is a multiple of COLUMNS. */
    void (*multiply)(const Weight *weight, const Rounded *rounded, float *y, int64_t begin, int64_t end);
} Products;

extern const Products AVX512VNNI_PRODUCTS, AVXVNNI_PRODUCTS, AVX2_PRODUCTS, I8MM_PRODUCTS, NEON_PRODUCTS,
                      SCALAR_PRODUCTS;

#endif
