// The row kernels of one instruction set. Each set is compiled in its own file (isa_*.cpp) from
// row_kernels.inc. Nothing here depends on torch: if the files shared an inline function, the
// linker could keep the copy with wide instructions for all CPUs.
#pragma once
#include "dtypes.h"
#include <cstdint>
#include <type_traits>
#include <utility>

namespace mmix {

// The exponentials of rows up to this length can be kept: as many as fit in the L1 cache together
// with the row. Kernels write whole vectors, up to kKeptExcess elements more.
template <class A> constexpr int64_t kKeptExps = 16384 / sizeof(A);
constexpr int64_t kKeptExcess = 31;

// u[c], what the loss spreads over all classes, beside its labels. kNone: nothing. kOnes: 1 (label
// smoothing). kWeights: the weight of class c (weighted label smoothing). kTargets: a value for
// each row and class (probabilities).
enum Spread { kNone, kOnes, kWeights, kTargets };

// Sums of a row z: max(z), sum(exp(z - max)), sum(u*(z - max)) over the classes where u is not 0,
// and sum(u).
struct RowSums {
  double max, sum, dot, mass;
};
// The arrays of a tile. Each has `lanes` elements, one for each row.
enum TileArray {
  kLive, // 1, or 0: the row counts for nothing, whatever its logits hold
  kHotOwn,
  kHotOther,
  kSpread,
  kZCoef, // from kHotOwn on: see RowCoefficients
  kLogitOwn,
  kLogitOther,
  kUOwn,
  kUOther, // u at the two labels: the weights of these classes, or 1
  kOwn,
  kOther, // the coefficients of the two terms, λ and 1-λ
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
  kEntryOther, // from kScale on: of the gradient, see loss_formulas.inc
  kTileArrays
};
template <class A> struct TileRows {
  A *data;
  int64_t lanes;
  A *operator[](TileArray name) const { return data + name * lanes; }
};

// Factors of the coefficients λ (own) and 1-λ (other): for the label, for the spread and for the
// squared log-sum-exp.
template <class V> struct LossScales {
  V hot_own, hot_other, spread_own, spread_other, z;
};

// A label as an integer of the size of A, so that a vector holds as many labels as elements of A.
template <class A> using LabelOf = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

// How the targets of a binary cross-entropy are smoothed, mixed and compared.
template <class A> struct BinaryBlend {
  A own, other, keep, base;
  bool has_threshold;
  A threshold;
};
// n elements of a binary cross-entropy.
template <class A> struct BinaryLine {
  const void *z;                // logits
  const A *t;                   // their targets
  const A *weight, *pos_weight; // of their classes; null: 1
  const A *upstream;            // the upstream gradients of their losses; null: 1
  void *out;                    // what BinaryResult says. It may be z, if it has the dtype of z.
  int64_t n;
  double scale; // of the gradients: the upstream gradient of the sum of all losses
  bool stream;
};
// What the kernel of a line writes. It returns the sum of the losses, except with kGradientAlone.
enum BinaryResult { kNothing, kGradient, kGradientAlone, kLosses, kBinaryResults };

// Kernels of the losses, computed in A: float, or double for float64 logits. Coefficients are
// passed as double and converted to A first. `stream` writes past the caches, for a destination so
// large that its next reader would not find it there. A tile has layout [classes][lanes], one row
// in each lane.
template <class A> struct LossKernels {
  int64_t lanes; // the lanes of a tile are a multiple of this

  // Kernels on n contiguous elements.
  void (*widen[kTargetDTypes])(A *dst, const void *src, int64_t n);
  void (*narrow[kDTypes])(void *dst, const A *src, int64_t n);
  void (*cap)(A *z, int64_t n, double softcap);
  void (*uncap)(A *gradient, const A *capped, int64_t n, double softcap);
  // dst[c*dst_pitch + r] = src[r*src_pitch + c]
  void (*transpose)(A *dst, int64_t dst_pitch, const A *src, int64_t src_pitch, int64_t rows,
                    int64_t columns);

  // Kernels on a row of contiguous classes. With 16-bit logits, u must be the same for all classes.
  // If exps is not null, the exponentials are kept there, in an order that only these kernels know.
  RowSums (*sums[kDTypes])(const void *z, Spread spread, const A *u, int64_t n, A *exps);
  // out = scale*exp(z - max) - spread*u. If exps is not null, the exponentials are read from there.
  // If u is null, it is 1. out may be z.
  void (*gradient[kDTypes])(void *out, const void *z, const A *u, const A *exps, int64_t n,
                            double max, double scale, double spread, bool stream);
  double (*mass)(const A *u, int64_t n); // sum(u), the same bits as from `sums`
  void (*blend_row)(A *t, const A *a, const A *b, const A *weight, int64_t n, double own,
                    double other, double keep, double base);

  // y[k] = label[k], or `none` where label[k] is `ignored`.
  void (*narrow_labels)(LabelOf<A> *y, const int64_t *label, int64_t n, int64_t ignored,
                        int64_t none);
  // Computes the RowCoefficients of rows with labels y and y_b. Writes the coefficients to `rows`
  // and the labels that count to y and y_b. Returns whether any row is not live.
  bool (*tile_labels)(LabelOf<A> *y, LabelOf<A> *y_b, int64_t none,
                      const LossScales<double> &scales, TileRows<A> rows);
  // u: a weight for each class, or a tile. tile_mass writes kMass. tile_sums writes kMax, kSum and
  // kDot, and the exponentials to exps, which may be z or null.
  void (*tile_mass)(Spread spread, const A *u, int64_t classes, TileRows<A> rows);
  void (*tile_sums)(const A *z, Spread spread, const A *u, int64_t classes, TileRows<A> rows,
                    A *exps);
  // tile_losses writes kLogSum and kLoss, from the sums. tile_coefficients writes kScale, kShare,
  // kEntryOwn and kEntryOther, from kLogSum, kMax and the coefficients.
  void (*tile_losses)(TileRows<A> rows);
  void (*tile_coefficients)(TileRows<A> rows);
  // out = kScale*exp(z - max) - kShare*u. If `kept`, z already holds the exponentials.
  void (*tile_gradient)(A *out, const A *z, bool kept, Spread spread, const A *u, int64_t classes,
                        TileRows<A> rows);
  // t = blend_row of t and b, with the coefficients kOwn and kOther of each lane.
  void (*blend_tile)(A *t, const A *b, const A *weight, int64_t classes, TileRows<A> rows,
                     double keep, double base);

  double (*binary[kBinaryResults][kDTypes])(const BinaryLine<A> &line);
  // t = own*(keep*t + base) + other*(keep*b + base), each operation rounded once. A target whose
  // coefficient is 0 is absent. Where there is a threshold, t becomes 1 above it, else 0.
  void (*binary_targets)(A *t, const A *b, int64_t n, const BinaryBlend<A> &blend);
};

struct RowKernels {
  const char *isa;
  // dst = a*own + b*other. Each product and the sum are rounded once. dst may be own, if `stream`
  // is false. The n elements at `ahead` are prefetched; the address need not be readable.
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

// The best set that this CPU has, limited by ATEN_CPU_CAPABILITY (avx512: without the bfloat16
// instructions).
const RowKernels &row_kernels();

// Call it after streaming stores, before another thread may read what they wrote.
inline void publish_streamed() {
#ifdef MMIX_X86_KERNELS
  __builtin_ia32_sfence();
#endif
}

} // namespace mmix
