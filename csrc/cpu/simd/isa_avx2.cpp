// setuptools has one flag list per extension, so the instruction set is chosen by a pragma.
#include "cpu/kernels.h"
#ifdef MMIX_X86_KERNELS
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c")
#define MMIX_ISA "avx2"
#define MMIX_TABLE kAvx2
#define MMIX_BYTES 32
#include "cpu/simd/row_kernels.inc"
#endif
