// Turns a mixed cross-entropy into rows. For each row of the (B*d1*..., C) logits it gives the
// coefficients of the loss and of the gradient. Both forward and backward use it.
#pragma once
#include "cpu/paired_rows.h"
#include "loss_args.h"
#include "mean_factors.h"
#include <cmath>
#include <limits>

namespace mmix {

namespace {
#include "cpu/loss_formulas.inc"
}

// max(z) of a row and log(sum(exp(z - max))). A backward starts from these.
template <class A> struct Softmax {
  A max = 0, log_sum = 0;
};

template <class A> struct LossRows : PairedRows {
  explicit LossRows(const LossArgs &a);
  // The coefficients of row r of the sample, counted from its first row. Labels that do not count
  // become `classes`.
  RowCoefficients<double, int64_t> row(const LossSample &sample, int64_t r) const;

  const LossArgs &args;
  bool mean, per_row;
  Spread spread = kNone;
  std::vector<A> weight; // weight[classes] = 0, for labels that do not count; empty: none
  LossScales<double> scales;
  bool undefined = false; // a mean over nothing: the loss is NaN

  const A *weights() const { return weight.empty() ? nullptr : weight.data(); }

private:
  MeanFactors label_factors() const; // with reduction "mean"
};

template <class A>
LossRows<A>::LossRows(const LossArgs &a)
    : PairedRows(a, a.ignore_index), args(a), mean(a.is_mean()), per_row(a.is_per_row()),
      weight(class_weights<A>(a.weight, classes)) {
  if (labels) {
    if (a.label_smoothing != 0) spread = weight.empty() ? kOnes : kWeights;
    const MeanFactors means = mean ? label_factors() : MeanFactors{};
    undefined = means.undefined;
    const auto [keep, base, hot] = smoothing;
    scales = {keep * means.own, keep * means.other, base * means.own, base * means.other,
              a.z_loss * means.z_loss};
  } else {
    spread = kTargets;
    const double each = mean ? 1.0 / count : 1.0; // the blended targets contain λ
    scales = {0, 0, each, 0, a.z_loss * each};
    undefined = mean && count == 0;
  }
}

template <class A> MeanFactors LossRows<A>::label_factors() const {
  MeanSums sums;
  struct Divisor {
    double weight, count; // sum of the weights, and number, of the labels that count
  };
  const auto divisor = [&](const int64_t *label, int64_t n) {
    int64_t counted = 0;
    double sum = 0;
    for (int64_t s = 0; s < n; ++s) counted += label[s] != args.ignore_index;
    for (int64_t s = 0; !weight.empty() && s < n; ++s)
      if (label[s] != args.ignore_index) sum += weight[label[s]];
    const auto count = static_cast<double>(counted);
    return Divisor{weight.empty() ? count : sum, count};
  };
  const auto add = [&](double l, double k, const Divisor &own, const Divisor &other) {
    sums.own += own.weight;
    sums.other += other.weight;
    if (l != 0) sums.joint += l * own.weight, sums.joint_z += l * own.count;
    if (k != 0) sums.joint += k * other.weight, sums.joint_z += k * other.count;
  };
  if (lam.per_sample) {
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t *theirs = y_b ? y_b + b * inner : y + perm[b] * inner;
      add(lam.own(b), lam.other(b), divisor(y + b * inner, inner), divisor(theirs, inner));
    }
  } else {
    const Divisor own = divisor(y, count); // permuted labels give the same
    add(lam.own(0), lam.other(0), own, y_b ? divisor(y_b, count) : own);
  }
  const bool shared = !lam.per_sample; // a λ for each sample may be an empty tensor
  return mean_factors(sums, lam.per_sample, count == 0, shared && lam.own(0) != 0,
                      shared && lam.other(0) != 0);
}

template <class A>
RowCoefficients<double, int64_t> LossRows<A>::row(const LossSample &s, int64_t r) const {
  if (!labels) return {classes, classes, 0, 0, scales.spread_own, scales.z, 1};
  const auto counted = [&](int64_t y) { return y == args.ignore_index ? classes : y; };
  const int64_t y = counted(s.mine[r]), y_b = counted(s.theirs[r]);
  const A *w = weights();
  return row_coefficients<double, int64_t>(scales, s.own, s.other, y, y_b, classes, w ? w[y] : 1.0,
                                           w ? w[y_b] : 1.0);
}

} // namespace mmix
