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
  // The coefficients of row r of the sample, counted from its first row. Labels that do not count,
  // and those of other shards, become `classes`.
  RowCoefficients<double, int64_t> row(const LossSample &sample, int64_t r) const;

  const LossArgs &args;
  bool mean, per_row;
  Spread spread = kNone;
  std::vector<A> weight; // of all classes, then a 0 for labels that do not count; empty: none
  int64_t offset;        // the first class of the logits
  LossScales<double> scales;
  bool undefined = false; // a mean over nothing: the loss is NaN

  // Of the logits' classes.
  const A *weights() const { return weight.empty() ? nullptr : weight.data() + offset; }

private:
  MeanFactors label_factors() const;
  // With reduction "mean".
  MeanFactors factors() const {
    if (args.scales) {
      const auto *at = static_cast<const double *>(args.scales->const_data_ptr());
      return {at[0], at[1], at[2], at[3] != 0}; // NaN != 0
    }
    if (labels) return label_factors();
    const double each = 1.0 / static_cast<double>(count);
    return {each, each, each, count == 0};
  }
};

template <class A>
LossRows<A>::LossRows(const LossArgs &a)
    : PairedRows(a, a.ignore_index, a.all_classes()), args(a), mean(a.is_mean()),
      per_row(a.is_per_row()), weight(class_weights<A>(a.weight, label_classes)),
      offset(a.class_offset) {
  const MeanFactors means = mean ? factors() : MeanFactors{};
  undefined = means.undefined;
  if (labels) {
    if (a.label_smoothing != 0) spread = weight.empty() ? kOnes : kWeights;
    const auto [keep, base, hot] = smoothing;
    scales = {keep * means.own, keep * means.other, base * means.own, base * means.other,
              a.z_loss * means.z_loss};
  } else {
    spread = kTargets;
    scales = {0, 0, means.own, 0, a.z_loss * means.z_loss}; // the blended targets contain λ
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
  const int64_t none = label_classes;
  const auto counted = [&](int64_t y) { return y == args.ignore_index ? none : y; };
  const int64_t y = counted(s.mine[r]), y_b = counted(s.theirs[r]);
  const auto weight_of = [&](int64_t label) { return weight.empty() ? 1.0 : weight[label]; };
  auto row = row_coefficients<double, int64_t>(scales, s.own, s.other, y, y_b, none, weight_of(y),
                                               weight_of(y_b));
  const auto here = [&](int64_t label) {
    const int64_t at = label - offset;
    return static_cast<uint64_t>(at) < static_cast<uint64_t>(classes) ? at : classes; // none too
  };
  row.y_own = here(row.y_own);
  row.y_other = here(row.y_other);
  return row;
}

} // namespace mmix
