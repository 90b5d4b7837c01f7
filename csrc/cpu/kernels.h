// The row kernels one instruction set offers. Each set is compiled in a file of its own (isa_*.cpp)
// from row_kernels.inc; nothing here depends on torch, so that no wide instruction can leak through
// a shared inline function.
#pragma once
#include <cstdint>

namespace mmix {

enum DType { kHalf = 0, kBFloat16 = 1, kFloat = 2, kDouble = 3, kDTypes = 4 };

// Exponentials of rows up to this length can be kept: as many as sit in the L1 cache with the row.
// A kernel may write up to kKeptExcess more, in whole vectors.
template <class A> constexpr int64_t kKeptExps = 16384 / sizeof(A);
constexpr int64_t kKeptExcess = 31;

// u[c], what a loss spreads over all classes beside its labels: nothing, 1 (label smoothing), the
// weight of the class (weighted smoothing), or a target of its own (probabilities).
enum Spread { kNone, kOnes, kWeights, kTargets };

// Of a row z: its max, sum(exp(z - max)), sum(u*(z - max)) where u is not 0, and sum(u).
struct RowSums {
  double max, sum, dot, mass;
};
// The same of the rows of a tile, an array each. dot and mass are not set for kNone.
template <class A> struct TileSums {
  A *max, *sum, *dot, *mass;
};

// Kernels of the loss in the arithmetic A: float, or double for float64 logits. Coefficients come
// as double and are narrowed first. `stream` writes past the caches: for a destination too large to
// be found there by its next reader. A tile is [classes][lanes], a lane for each row.
template <class A> struct LossKernels {
  int64_t lanes; // a tile has a multiple of these

  // Runs of n elements.
  void (*widen[kDTypes])(A *dst, const void *src, int64_t n);
  void (*narrow[kDTypes])(void *dst, const A *src, int64_t n);
  void (*cap)(A *z, int64_t n, double softcap);
  void (*uncap)(A *gradient, const A *capped, int64_t n, double softcap);
  // dst[c*dst_pitch + r] = src[r*src_pitch + c]
  void (*transpose)(A *dst, int64_t dst_pitch, const A *src, int64_t src_pitch, int64_t rows,
                    int64_t columns);

  // A row of contiguous classes. 16-bit logits have no u that differs from class to class. Where
  // exps is not null the exponentials are kept there, in an order of the kernels' own.
  RowSums (*sums[kDTypes])(const void *z, Spread spread, const A *u, int64_t n, A *exps);
  // out = scale*exp(z - max) - spread*u, from exps where that is not null; u: ones where null. out
  // may be z.
  void (*gradient[kDTypes])(void *out, const void *z, const A *u, const A *exps, int64_t n,
                            double max, double scale, double spread, bool stream);
  double (*mass)(const A *u, int64_t n); // sum(u), bit for bit that of sums
  void (*blend_row)(A *t, const A *a, const A *b, const A *weight, int64_t n, double own,
                    double other, double keep, double base);

  // exps may be z, or null.
  void (*tile_sums)(const A *z, Spread spread, const A *u, int64_t classes, int64_t lanes,
                    TileSums<A> out, A *exps);
  void (*tile_gradient)(A *out, const A *z, Spread spread, const A *u, int64_t classes,
                        int64_t lanes, const A *max, const A *scale, const A *coefficient);
  void (*tile_mass)(Spread spread, const A *u, int64_t classes, int64_t lanes, A *mass);
  void (*blend_tile)(A *t, const A *b, const A *weight, int64_t classes, int64_t lanes,
                     const A *own, const A *other, double keep, double base);
};

struct RowKernels {
  const char *isa;
  // dst = a*own + b*other, each product and the sum rounded once; dst may be own, if not streamed.
  // The n elements at `ahead` are prefetched on the way; any readable or unreadable address will
  // do.
  void (*mix[kDTypes])(void *dst, const void *own, const void *other, const void *ahead, int64_t n,
                       double a, double b, bool stream);
  LossKernels<float> narrow_loss;
  LossKernels<double> wide_loss;

  template <class A> const LossKernels<A> &loss() const {
    if constexpr (sizeof(A) == 8)
      return wide_loss;
    else
      return narrow_loss;
  }
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
