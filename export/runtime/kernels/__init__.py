"""Our own kernels for onnxruntime, in C: products of codes and attention over codes.

    library.py               finds the compiled library, and chooses among its kernels
    library.c                loaded by onnxruntime: the operators, their domains, and the kernels by name
    ├── matmul_nbits.c           MatMulNBits, in place of the built-in one               → products.h
    │                            MatMul3Bits, otherwise a function of the graph
    ├── attention_over_codes.c   AttentionOverCodes, otherwise a function of the graph   → attention.h
    └── onnxruntime_abi.h        the part of onnxruntime's C interface that these call

Each instruction set has a folder, which implements `products.h` and `attention.h`:

    avx512vnni/              for x86 processors with AVX-512 VNNI
    scalar/                  plain C: the reference that tests compare the others with

A new one takes a folder, a line in `library.c` and one in `library.py`, and its files in `pyproject.toml`. The library
is compiled when the project is installed. Without a compiler that knows AVX-512 VNNI or a processor that has it,
sessions run onnxruntime's kernels on the same files; `TOOLKIT_KERNELS=scalar` runs those in plain C.
"""
