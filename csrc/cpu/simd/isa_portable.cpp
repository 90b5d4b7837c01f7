// Plain 16-byte vectors: SSE2 on any x86-64, NEON on aarch64.
#include "cpu/kernels.h"
#define MMIX_ISA "portable"
#define MMIX_TABLE kPortable
#define MMIX_BYTES 16
#include "cpu/simd/row_kernels.inc"
