// One mixed binary cross-entropy as numbers and device pointers, and what the elements of a row
// have in common. An element with logit z and target t has the loss
//   weight*((1-t)*softplus(z) + pos_weight*t*softplus(-z)).
#pragma once
#include "cuda/kernels/cross_entropy_problem.cuh"
#include "cuda/kernels/tile.cuh"

namespace mmix {

// The tensors that have an element for each logit.
enum Place { kLogits, kGradient, kOwnTarget, kPartnerTarget, kUpstream, kLoss, kPlaces };

// As in the cross-entropy: logits, gradient, labels, λ, smoothing (of float targets, base is
// eps/2), the terms, and the sum of the losses. Each loss is multiplied by constant_scale.
struct BinaryProblem : LossProblem {
  bool thresholded;
  double threshold;
  bool weighted;     // by class weights or by pos_weight
  Values pos_weight; // none: all are 1
  bool per_element;  // loss and upstream have a number for each element
  RowLayout upstream_at, loss_at;
  bool wide_upstream, wide_loss; // moved a piece at a time, as all other tensors are
  Divisor by_classes;
  unsigned inverse_classes; // floor((2^32 - 1) / classes)
};

// The offsets of a row's first class. Without gaps between rows nobody needs them.
template <bool kGeneral> struct RowPlaces {
  int64_t at[kPlaces];
};
template <> struct RowPlaces<false> {};

// Of labels: the targets of the two labels' classes, and of the rest. Else: λ and 1-λ. All of them
// are NaN if a label or the partner is bad.
template <class Real, bool kGeneral> struct alignas(16) BinaryRow : RowPlaces<kGeneral> {
  Real rest;
  int y_own, y_other;
  bool bad;
  Real own, other;
  MMIX_DEVICE Real target(int c) const { return c == y_own ? own : c == y_other ? other : rest; }
  MMIX_DEVICE bool has_label_in(int first, int count) const {
    const unsigned n = static_cast<unsigned>(count);
    return static_cast<unsigned>(y_own - first) < n || static_cast<unsigned>(y_other - first) < n;
  }
};

// NaN stays NaN.
template <class Real> MMIX_DEVICE Real cut(const BinaryProblem &a, Real t) {
  if (!a.thresholded || t != t) return t;
  return t > Real(a.threshold) ? Real(1) : Real(0);
}

template <class Real, bool kGeneral>
MMIX_DEVICE void find_row(const BinaryProblem &a, int64_t r, BinaryRow<Real, kGeneral> &row) {
  const Real lam = lam_of<Real>(a, r);
  const Coefficients<Real> mixed{lam, plus(Real(1), -lam)};
  row.own = mixed.own, row.other = mixed.other, row.rest = 0;
  row.y_own = row.y_other = -1;
  row.bad = false;
  if (!kGeneral || a.labels) {
    const LabelPair pair = label_pair(a, r);
    row.y_own = pair.own, row.y_other = pair.other;
    row.bad = pair.bad || pair.own < 0 || pair.other < 0; // no label is ignored
    // By the formula of every backend, never fused: target_threshold tells a difference of one bit.
    const Real hot = Real(a.keep + a.base), base = Real(a.base);
    const auto target = [&](bool own, bool other) {
      return cut(a, mixed.forward(own ? hot : base, other ? hot : base));
    };
    const bool same = pair.own == pair.other;
    row.own = target(true, same), row.other = target(same, true), row.rest = target(false, false);
  }
  if constexpr (kGeneral) {
    row.at[kLogits] = a.logits_at.offset(r);
    if (a.gradient) row.at[kGradient] = a.gradient_at.offset(r);
    if (!a.labels) {
      row.at[kOwnTarget] = a.terms[kTarget].at.offset(r);
      row.at[kPartnerTarget] = a.terms[kTargetB].at.offset(partner_row(a, r, row.bad));
    }
    if (a.per_element && a.upstream) row.at[kUpstream] = a.upstream_at.offset(r);
    if (a.per_element && a.loss) row.at[kLoss] = a.loss_at.offset(r);
  }
  if (row.bad) row.own = row.other = row.rest = Real(NAN);
}

} // namespace mmix
