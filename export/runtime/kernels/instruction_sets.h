/* The instruction sets that this compiler knows, of the processor that it compiles for. */

#ifndef INSTRUCTION_SETS_H
#define INSTRUCTION_SETS_H

#if defined(__x86_64__)
#define HAS_AVX2
#define HAS_AVX512VNNI
#if (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11)
#define HAS_AVXVNNI
#endif
#endif

#if defined(__aarch64__)
#define HAS_NEON
#if (defined(__clang__) && __clang_major__ >= 11) || (!defined(__clang__) && __GNUC__ >= 10)
#define HAS_I8MM
#endif
#endif

#endif
