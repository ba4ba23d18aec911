"""Kernels of our own for onnxruntime, in C: products of codes and attention over codes.

    library.py               finds what was compiled
    library.c                what onnxruntime loads: the operators and their domains
    ├── matmul_nbits.c           MatMulNBits, in place of the built-in one          → products.c
    │                            MatMul3Bits, else a function of the graph
    ├── attention_over_codes.c   AttentionOverCodes, else a function of the graph   → attention.c
    └── onnxruntime_abi.h        the part of onnxruntime's C interface that they call

The library is compiled when the project is installed. It needs an x86 processor with AVX-512 VNNI and a compiler that
knows it; without either, and where it was left out, sessions run onnxruntime's own kernels on the same files.
"""
