// setuptools has one flag list per extension, so the instruction set is chosen by a pragma.
#include "cpu/kernels.h"
#ifdef MMIX_X86_KERNELS
#include <immintrin.h>
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,f16c")
#define MMIX_ISA "avx512"
#define MMIX_TABLE kAvx512
#define MMIX_BYTES 64
#include "cpu/simd/row_kernels.inc"
#endif
