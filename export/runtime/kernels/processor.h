/* Which instruction sets the processor has, and the system lets programs use. */

#ifndef PROCESSOR_H
#define PROCESSOR_H

#include "instruction_sets.h"

static int everywhere(void) { return 1; }

#if defined(__x86_64__)
#include <cpuid.h>

/* Features as cpuid reports them: the leaf, the part of it, the register (a, b, c or d), and the bit. */
typedef struct { unsigned leaf, part; char in; int bit; } Feature;

static const Feature SAVED = {1, 0, 'c', 27}, FMA = {1, 0, 'c', 12}, F16C = {1, 0, 'c', 29}, AVX2 = {7, 0, 'b', 5},
                     AVX_VNNI = {7, 1, 'a', 4}, AVX512F = {7, 0, 'b', 16}, AVX512DQ = {7, 0, 'b', 17},
                     AVX512BW = {7, 0, 'b', 30}, AVX512VL = {7, 0, 'b', 31}, AVX512_VNNI = {7, 0, 'c', 11};

static int has(Feature feature) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(feature.leaf, feature.part, &a, &b, &c, &d)) return 0;
    return (feature.in == 'a' ? a : feature.in == 'b' ? b : feature.in == 'c' ? c : d) >> feature.bit & 1;
}

/* Whether the system saves all these parts of the vector registers when it switches between programs. */
static int keeps(unsigned parts) {
    unsigned low, high;
    if (!has(SAVED)) return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & parts) == parts;
}

enum { OF_128_AND_256_BITS = 0x06, OF_512_BITS_TOO = 0xe6 };

static int has_avx2(void) { return keeps(OF_128_AND_256_BITS) && has(AVX2) && has(FMA) && has(F16C); }

#ifdef HAS_AVXVNNI
static int has_avxvnni(void) { return has_avx2() && has(AVX_VNNI); }
#endif

static int has_avx512vnni(void) {
    return has_avx2() && keeps(OF_512_BITS_TOO) && has(AVX512F) && has(AVX512DQ) && has(AVX512BW) && has(AVX512VL) &&
           has(AVX512_VNNI);
}
#elif defined(__aarch64__)

/* SDOT came with Armv8.2, and I8MM with Armv8.6; each system has its own question for them. */
#if defined(__linux__)
#include <sys/auxv.h>
enum { ASIMDDP = 1 << 20, I8MM = 1 << 13 };     /* of AT_HWCAP, and of AT_HWCAP2 */
static int has_neon(void) { return (getauxval(AT_HWCAP) & ASIMDDP) != 0; }
static int has_i8mm(void) { return has_neon() && (getauxval(AT_HWCAP2) & I8MM) != 0; }
#elif defined(__APPLE__)
#include <sys/sysctl.h>
static int says(const char *name) {
    int value = 0;
    size_t size = sizeof value;
    return !sysctlbyname(name, &value, &size, NULL, 0) && value;
}
static int has_neon(void) { return says("hw.optional.arm.FEAT_DotProd"); }
static int has_i8mm(void) { return has_neon() && says("hw.optional.arm.FEAT_I8MM"); }
#elif defined(_WIN32)
__declspec(dllimport) int __stdcall IsProcessorFeaturePresent(unsigned long feature);      /* of kernel32 */
enum { DOT_PRODUCTS = 43, I8MM = 66 };          /* PF_ARM_V82_DP_…, PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE */
static int has_neon(void) { return IsProcessorFeaturePresent(DOT_PRODUCTS); }
static int has_i8mm(void) { return has_neon() && IsProcessorFeaturePresent(I8MM); }
#else
static int has_neon(void) { return 0; }
static int has_i8mm(void) { return 0; }
#endif

#endif

#endif
