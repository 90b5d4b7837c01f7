// setuptools has one flag list per extension, so the instruction set is chosen by a pragma.
#include "cpu/kernels.h"
#ifdef MMIX_X86_KERNELS
#include <immintrin.h>
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,f16c")
#define MMIX_ISA "avx512_bf16"
#define MMIX_TABLE kAvx512Bf16
#define MMIX_BYTES 64
#define MMIX_ROUNDS_TO_BFLOAT16
#include "cpu/simd/row_kernels.inc"
#endif
