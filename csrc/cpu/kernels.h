// The row kernels one instruction set offers. Each set is compiled in a file of its own (isa_*.cpp)
// from row_kernels.inc; nothing here depends on torch, so that no wide instruction can leak through
// a shared inline function.
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>

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
// The numbers of a tile's rows, an array of `lanes` for each name.
enum TileArray {
  kLive, // 1, or 0: counts for nothing, whatever its logits hold
  kHotOwn,
  kHotOther,
  kSpread,
  kZCoef, // RowCoefficients
  kLogitOwn,
  kLogitOther,
  kUOwn,
  kUOther, // of its labels: u, their classes' weights or 1
  kOwn,
  kOther, // the coefficients of its terms, λ and 1-λ
  kUpstream,
  kMax,
  kSum,
  kDot,
  kMass,
  kLogSum,
  kLoss,
  kScale,
  kShare,
  kEntryOwn,
  kEntryOther, // of the gradient: see loss_formulas.inc
  kTileArrays
};
template <class A> struct TileRows {
  A *data;
  int64_t lanes;
  A *operator[](TileArray name) const { return data + name * lanes; }
};

// What a term's coefficient, λ or 1-λ, is multiplied by: for its label, for the spread and for the
// squared log-sum-exp.
template <class V> struct LossScales {
  V hot_own, hot_other, spread_own, spread_other, z;
};

// A label as an integer of A's size, so that vectors hold as many of one as of the other.
template <class A> using LabelOf = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

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

  // y[k] = label[k], or `none` where it is ignored.
  void (*narrow_labels)(LabelOf<A> *y, const int64_t *label, int64_t n, int64_t ignored,
                        int64_t none);
  // Of rows with these labels: RowCoefficients, the labels' in y and y_b. Whether a row is not
  // live.
  bool (*tile_labels)(LabelOf<A> *y, LabelOf<A> *y_b, int64_t none,
                      const LossScales<double> &scales, TileRows<A> rows);
  // u: a weight for each class, or a tile. kMass; then kMax, kSum and kDot; exps may be z, or null.
  void (*tile_mass)(Spread spread, const A *u, int64_t classes, TileRows<A> rows);
  void (*tile_sums)(const A *z, Spread spread, const A *u, int64_t classes, TileRows<A> rows,
                    A *exps);
  // kLogSum and kLoss from what came before; kScale, kShare and the labels' entries from kLogSum.
  void (*tile_losses)(TileRows<A> rows);
  void (*tile_coefficients)(TileRows<A> rows);
  // out = kScale*exp(z - max) - kShare*u; z are the exponentials themselves where `kept`.
  void (*tile_gradient)(A *out, const A *z, bool kept, Spread spread, const A *u, int64_t classes,
                        TileRows<A> rows);
  // t = blend_row of t and b with the lanes' own coefficients, kOwn and kOther.
  void (*blend_tile)(A *t, const A *b, const A *weight, int64_t classes, TileRows<A> rows,
                     double keep, double base);
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
