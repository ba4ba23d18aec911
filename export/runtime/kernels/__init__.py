"""Kernels of our own for onnxruntime, in C: products of codes and attention over codes.

    library.py               finds what was compiled, and chooses among its kernels
    library.c                what onnxruntime loads: the operators, their domains, and the kernels by name
    ├── matmul_nbits.c           MatMulNBits, in place of the built-in one          → products.h
    │                            MatMul3Bits, else a function of the graph
    ├── attention_over_codes.c   AttentionOverCodes, else a function of the graph   → attention.h
    └── onnxruntime_abi.h        the part of onnxruntime's C interface that they call

Each instruction set has a folder, which brings what `products.h` and `attention.h` ask for:

    avx512vnni/              for x86 processors with AVX-512 VNNI
    scalar/                  plain C: says what the others must compute, and is compared with them by tests

Another one is a folder of its own, a line in `library.c` and one in `library.py`, its files in `pyproject.toml`. The
library is compiled when the project is installed. Without a compiler that knows AVX-512 VNNI or a processor that has
it, sessions run onnxruntime's own kernels on the same files; `TOOLKIT_KERNELS=scalar` runs those in plain C.
"""
