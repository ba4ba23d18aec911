"""Our own kernels for onnxruntime, in C: products of codes, attention over codes, and low-rank adapters.

    library.py               finds the compiled library, and chooses among its kernels
    library.c                loaded by onnxruntime: the operators, their domains, and the kernels by name
    ├── matmul_nbits.c           MatMulNBits, in place of the built-in one               → products.h
    │                            MatMul3Bits, otherwise a function of the graph
    ├── low_rank.c               AddLowRank, otherwise several nodes of the graph        → low_rank.h
    ├── attention_over_codes.c   AttentionOverCodes, otherwise a function of the graph   → attention.h
    └── onnxruntime_abi.h        the part of onnxruntime's C interface that these call

Each instruction set has a folder, which implements `products.h`, `low_rank.h` and `attention.h`:

    avx512vnni/              for x86 processors with AVX-512 VNNI
    avxvnni/                 for those with AVX-VNNI, in the vectors of avx2/
    avx2/                    for those with AVX2
    i8mm/                    for Arm processors with I8MM, in the vectors of neon/
    neon/                    for those with NEON's dot products
    scalar/                  plain C: the reference that tests compare the others with
    loops/                   the algorithms of all but the last, written once over `vectors.h` and `sums.h` of a set

A set defines its vectors (`vectors.h`: loads, stores, conversions) and how products of codes are added up (`sums.h`;
where one instruction adds four products of bytes to 32 bits, `loops/dot_sums.h` and `loops/dot_tiles.h` do the rest),
and its two C files include the loops. A new one takes a folder, a line in `instruction_sets.h`, in `library.c`, in
`library.py` and in `attention.h`, `low_rank.h` and `products.h`, and its files in `pyproject.toml`. Each function
carries its instructions as an attribute (`KERNEL`), so that all files are compiled with the same flags.

The library is compiled when the project is installed. Without a compiler or a processor that has one of the sets,
sessions run onnxruntime's kernels on the same files; `TOOLKIT_KERNELS` chooses by name.
"""
