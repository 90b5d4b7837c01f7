// The row kernels one instruction set offers. Each set is compiled in a file of its own (isa_*.cpp)
// from row_kernels.inc; nothing here depends on torch, so that no wide instruction can leak through
// a shared inline function.
#pragma once
#include <cstdint>

namespace mmix {

enum DType { kHalf = 0, kBFloat16 = 1, kFloat = 2, kDouble = 3, kDTypes = 4 };

// Of a row z: max, sum(exp(z - max)), and sum(z - max) where it was asked for.
struct RowStats {
  double max, sum, shifted_sum;
};

// Exponentials of rows up to this length can be kept: as many as sit in the L1 cache with the row.
// A kernel may write up to 31 more, in whole vectors.
constexpr int64_t kKeptExps = 4096, kKeptExcess = 31;

// Arithmetic is float32 (float64 for kDouble); coefficients come as double and are narrowed first.
// `stream` writes past the caches: for a destination too large to be found there by its next
// reader.
struct RowKernels {
  const char *isa;
  // dst = a*own + b*other, each product and the sum rounded once; dst may be own, if not streamed.
  // The n elements at `ahead` are prefetched on the way; any readable or unreadable address will
  // do.
  void (*mix[kDTypes])(void *dst, const void *own, const void *other, const void *ahead, int64_t n,
                       double a, double b, bool stream);
  // Where exps is not null the exponentials are kept there, in an order of the kernels' own.
  RowStats (*stats[kDTypes])(const void *z, int64_t n, bool shifted, float *exps);
  // out = scale*exp(z - max) - base - t, from exps where that is not null; out may be z; t may be
  // null and, where the logits are 16 bits wide, must be.
  void (*grad[kDTypes])(void *out, const void *z, const void *t, const float *exps, int64_t n,
                        double max, double scale, double base, bool stream);
};

extern const RowKernels kPortable;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MMIX_X86_KERNELS
extern const RowKernels kAvx2;
extern const RowKernels kAvx512;
extern const RowKernels kAvx512Bf16;
#endif

// The best set this CPU has, or the one ATEN_CPU_CAPABILITY asks for (avx512: without bfloat16's).
const RowKernels &row_kernels();

// After streamed stores and before another thread may read what they wrote.
inline void publish_streamed() {
#ifdef MMIX_X86_KERNELS
  __builtin_ia32_sfence();
#endif
}

} // namespace mmix
