// One mixed cross-entropy as numbers and device pointers, and the coefficients of each row: loss =
// sum_c t_c*(lse - z_c) + z_coef*lse^2, with t = spread (all classes) + hot (the two labels).
#pragma once
#include "cuda/kernels/dtypes.cuh"
#include "cuda/kernels/last_block.cuh"
#include "cuda/kernels/memory.cuh"
#include <cmath>
#include <type_traits>

#define MMIX_DEVICE __device__ __forceinline__
#ifdef MMIX_EMULATED
#define __grid_constant__
#endif

namespace mmix {

// Division by a number known on the host, without the long code of a 64-bit division.
struct Divisor {
  uint64_t n = 1, inverse = ~uint64_t{0}; // floor((2^64 - 1) / n)
  MMIX_DEVICE int64_t quotient(int64_t x) const {
    const uint64_t q = __umul64hi(x, inverse); // exact, or one too small
    return static_cast<int64_t>(q + (x - q * n >= n));
  }
};

inline Divisor divisor(int64_t n) { // n is 0 only in an empty tensor: never used
  const uint64_t by = n > 0 ? static_cast<uint64_t>(n) : 1;
  return {by, ~uint64_t{0} / by};
}

// The offsets of the rows of a (B, C, d1, ...) tensor, in elements. Holds all dimensions except the
// classes, innermost first. Adjacent dimensions are merged if their strides allow.
struct RowLayout {
  static constexpr int kMaxDims = 8;
  Divisor size[kMaxDims];
  int64_t stride[kMaxDims], class_stride;
  int dims;
  MMIX_DEVICE int64_t offset(int64_t r) const {
    int64_t at = 0;
#pragma unroll 1 // a dynamic index into kernel parameters is cheap
    for (int d = 0; d + 1 < dims; ++d) {
      const int64_t outer = size[d].quotient(r);
      at += (r - outer * static_cast<int64_t>(size[d].n)) * stride[d];
      r = outer;
    }
    return at + r * stride[dims - 1];
  }
};

// Floating-point values whose dtype is known only at run time: float targets and class weights.
struct Values {
  const void *data; // null: there are none
  DType type;
  RowLayout at;
  // Calls f with a typed pointer. Loops over classes are inside f, so that the switch runs once for
  // a row.
  template <class F> MMIX_DEVICE void typed(F f) const {
    visit(type, [&]<class T>(T *) { f(static_cast<const T *>(data)); });
  }
  template <class Real> MMIX_DEVICE Real value(int64_t i) const {
    Real v = 0;
    typed([&](const auto *p) { v = static_cast<Real>(widen(load(p + i))); });
    return v;
  }
};

// The terms of the spread, in the order in which they are applied: weight*(base + own*target +
// other*target_b).
enum Term { kTarget, kTargetB, kWeight, kTerms };

struct LossProblem {
  int64_t rows, inner, batch; // rows = batch*inner
  Divisor by_inner;
  int classes;
  int all_classes;  // that labels name; more than `classes` if the logits are a shard
  int class_offset; // the first class of the logits
  bool dense; // the spread differs from class to class: float targets, or weights with smoothing
  int64_t ignore_index;
  double keep, base;                       // label smoothing, see Smoothing
  double z_loss, softcap, inverse_softcap; // softcap 0: none
  const void *logits;
  RowLayout logits_at;
  void *gradient; // null: not wanted; may be the logits
  RowLayout gradient_at;
  const int64_t *labels, *labels_b, *perm; // labels null: float targets; partner: labels_b or perm
  Values terms[kTerms];                    // no weight: all weights are 1; it is of all classes
  const void *lam; // in the arithmetic's dtype, like upstream, stats and loss
  int64_t lam_stride;
  bool lam_per_sample;
  bool counts;           // each block sums the divisors of a mean over labels itself
  const double *scales;  // or an earlier launch, or the caller: MeanScales; null: constant_scale
  double constant_scale; // 1, or 1/rows
  const void *upstream;  // upstream gradient, one, or one for each row; null: 1
  bool upstream_per_row, rescale; // rescale: rows with an upstream of 1 are already right
  void *stats;                    // (rows, 2): max(z) and log(sum(exp(z - max)))
  bool from_stats;
  // The statistics are those of a shard's op: a forward writes (rows, 4), a backward reads (rows,
  // 3). See cross_entropy_part in mmix_fast/schemas.py.
  bool of_shard;
  void *loss; // one for each row, or the mean or sum if partial is not null; null in a backward
  double *partial; // one sum for each block
  LastBlock last;
};

// The inverse divisors of the mean. kAdded is added to the loss: 0, or NaN for a mean over nothing.
struct MeanScales {
  enum { kOwn, kOther, kZLoss, kAdded, kCount };
};

template <class Real> struct LossRow {
  int64_t number; // of the row
  Real hot_own, hot_other, base, z_coef;
  Real coef[kTerms];           // of each term; 0: the term is absent and not read
  int y_own, y_other;          // columns; negative: no such label counts, or it is of another shard
  int64_t at[kTerms];          // offset of the row in each term
  bool live, keep;             // not live: loss and gradient 0; keep: the gradient is already right
  unsigned char shift[kTerms]; // elements in shared memory before its values, see copy_terms
  MMIX_DEVICE bool has_label_in(int first, int count) const {
    const unsigned n = static_cast<unsigned>(count); // no range has a negative one
    return static_cast<unsigned>(y_own - first) < n || static_cast<unsigned>(y_other - first) < n;
  }
  // The sum of t over the classes, if the spread is the same for all of them.
  MMIX_DEVICE Real mass(int classes) const { return hot_own + hot_other + base * Real(classes); }
};

// The labels of row r. An invalid perm entry or label sets `bad`, and is never used as an address.
struct LabelPair {
  int own = -1, other = -1; // -1: does not count
  bool bad = false;
};

// The sample of row r.
MMIX_DEVICE int64_t sample_of(const LossProblem &a, int64_t r) {
  return a.inner == 1 ? r : a.by_inner.quotient(r);
}

MMIX_DEVICE int64_t partner_row(const LossProblem &a, int64_t r, bool &bad) {
  if (!a.perm) return r;
  const int64_t b = sample_of(a, r), p = load(a.perm + b);
  const bool inside = p >= 0 && p < a.batch;
  bad |= !inside;
  return r + (inside ? p - b : 0) * a.inner;
}

// bad: the partner was invalid.
MMIX_DEVICE LabelPair label_pair(const LossProblem &a, int64_t own, int64_t other, bool bad) {
  LabelPair pair{-1, -1, bad};
  const auto check = [&](int64_t y) {
    const bool counts = y != a.ignore_index, inside = y >= 0 && y < a.all_classes;
    pair.bad |= counts && !inside;
    return counts && inside ? static_cast<int>(y) : -1;
  };
  pair.own = check(own);
  pair.other = check(other);
  return pair;
}

MMIX_DEVICE LabelPair label_pair(const LossProblem &a, int64_t r) {
  bool bad = false;
  const int64_t partner = partner_row(a, r, bad);
  return label_pair(a, load(a.labels + r), load((a.labels_b ? a.labels_b : a.labels) + partner),
                    bad);
}

// The column of a label; negative if it is of another shard.
MMIX_DEVICE int column_of(const LossProblem &a, int label) {
  const int c = label - a.class_offset;
  return c < a.classes ? c : -1;
}

template <class Real> MMIX_DEVICE Real weight_of(const LossProblem &a, int64_t c) {
  return a.terms[kWeight].data ? a.terms[kWeight].template value<Real>(c) : Real(1);
}

template <class Real> MMIX_DEVICE Real lam_of(const LossProblem &a, int64_t r) {
  return load(static_cast<const Real *>(a.lam) + sample_of(a, r) * a.lam_stride);
}

template <class Real> MMIX_DEVICE Real upstream_of(const LossProblem &a, int64_t r) {
  return a.upstream ? load(static_cast<const Real *>(a.upstream) + (a.upstream_per_row ? r : 0))
                    : Real(1);
}

// The pair of loss_row().
MMIX_DEVICE LabelPair pair_of_row(const LossProblem &a, int64_t r) {
  return a.labels && r < a.rows ? label_pair(a, r) : LabelPair{};
}

// The upstream gradient multiplies every coefficient, so that each entry is rounded once. own: λ.
// scales: MeanScales.
template <class Real>
MMIX_DEVICE LossRow<Real> loss_row(const LossProblem &a, int64_t r, const LabelPair &pair, Real own,
                                   const double *scales) {
  LossRow<Real> row{};
  row.number = r;
  row.y_own = row.y_other = -1;
  if (r >= a.rows) return row; // the last block's spare rows
  const Real other = Real(1) - own, g = upstream_of<Real>(a, r);
  const Real keep = Real(a.keep), base = Real(a.base);
  Real counted = 0;
  bool bad = false;
  row.live = true;
  if (a.labels) {
    bad = row.live = pair.bad;
    if (pair.own >= 0 && own != 0) {
      const Real c = g * own * Real(scales[MeanScales::kOwn]);
      row.y_own = column_of(a, pair.own);
      row.hot_own = keep * c * weight_of<Real>(a, pair.own);
      row.base = base * c;
      counted = own;
      row.live = true;
    }
    if (pair.other >= 0 && other != 0) {
      const Real c = g * other * Real(scales[MeanScales::kOther]);
      row.y_other = column_of(a, pair.other);
      row.hot_other = keep * c * weight_of<Real>(a, pair.other);
      row.base += base * c;
      counted += other;
      row.live = true;
    }
  } else {
    const int64_t partner = partner_row(a, r, bad);
    const Real c = g * Real(scales[MeanScales::kOwn]);
    row.coef[kTarget] = keep * own * c;
    row.coef[kTargetB] = keep * other * c;
    row.base = base * c;
    row.at[kTarget] = a.terms[kTarget].at.offset(r);
    row.at[kTargetB] = a.terms[kTargetB].at.offset(partner);
    counted = 1;
  }
  row.coef[kWeight] = 1;
  row.at[kWeight] = a.class_offset;
  row.keep = a.rescale && g == 1;
  if (a.z_loss != 0) row.z_coef = g * counted * Real(a.z_loss) * Real(scales[MeanScales::kZLoss]);
  // A z_coef of NaN makes the loss and every entry of the gradient NaN.
  if (bad) row.z_coef = Real(NAN);
  return row;
}
template <class Real>
MMIX_DEVICE LossRow<Real> loss_row(const LossProblem &a, int64_t r, const LabelPair &pair,
                                   const double *scales) {
  return loss_row<Real>(a, r, pair, r < a.rows ? lam_of<Real>(a, r) : Real(0), scales);
}

} // namespace mmix
