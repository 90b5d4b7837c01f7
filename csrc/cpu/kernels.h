// The row kernels one instruction set offers. Each set is compiled in a file of its own (isa_*.cpp)
// from row_kernels.inc; nothing here depends on torch, so that no wide instruction can leak through
// a shared inline function.
#pragma once
#include <cstdint>

namespace mmix {

enum DType { kHalf = 0, kBFloat16 = 1, kFloat = 2, kDouble = 3, kDTypes = 4 };

// Softmax statistics of a row z: max, log(sum(exp(z - max))), sum(z - max).
struct RowStats {
  double max, log_sum, shifted_sum;
};

// Arithmetic is float32 (float64 for kDouble); coefficients come as double and are narrowed first.
struct RowKernels {
  const char *isa;
  // dst = a*own + b*other, each product and the sum rounded once; dst may be own.
  void (*mix[kDTypes])(void *dst, const void *own, const void *other, int64_t n, double a,
                       double b);
  RowStats (*stats[kDTypes])(const void *z, int64_t n);
  // out = p*softmax(z) - base - t; t (arithmetic dtype) may be null; out may be z.
  void (*grad[kDTypes])(void *out, const void *z, const void *t, int64_t n, double max,
                        double log_sum, double p, double base);
};

extern const RowKernels kPortable;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MMIX_X86_KERNELS
extern const RowKernels kAvx2;
extern const RowKernels kAvx512;
#endif

// The best set this CPU has, or the one ATEN_CPU_CAPABILITY asks for.
const RowKernels &row_kernels();

} // namespace mmix
