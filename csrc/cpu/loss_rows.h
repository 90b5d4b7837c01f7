// Turns a mixed cross-entropy into rows. For each row of the (B*d1*..., C) logits it gives the
// coefficients of the loss and of the gradient. Both forward and backward use it.
#pragma once
#include "checks.h"
#include "cpu/tensors.h"
#include "loss_args.h"
#include "mean_factors.h"
#include "row_layout.h"
#include "shapes.h"
#include "smoothing.h"
#include <cmath>
#include <limits>

namespace mmix {

// A (B, C, d1, ...) tensor as rows of classes. Copies sizes and strides once, because each query to
// a stable Tensor is a call through the ABI.
struct RowView : ClassRows {
  explicit RowView(const Tensor &t)
      : ClassRows(t), data(t.const_data_ptr()), type(dtype_of(t.scalar_type())) {}
  // Offset of the first class of row r.
  int64_t offset(int64_t r) const {
    if (dims.size() == 1) return r * dims[0].stride;
    int64_t at = 0;
    for (const Dim &d : dims) {
      at += r % d.size * d.stride;
      r /= d.size;
    }
    return at;
  }
  // The stride from row to row within the innermost dimension.
  int64_t step() const { return dims.empty() ? 0 : dims[0].stride; }
  // Whether the stride is 1 along rows but not along classes.
  bool rows_adjacent() const { return step() == 1 && class_stride != 1; }
  const char *at(int64_t offset) const {
    return static_cast<const char *>(data) + offset * element_size(type);
  }
  const void *data;
  DType type;
};

namespace {
#include "cpu/loss_formulas.inc"
}

// What the rows of one sample share.
struct LossSample {
  double own, other;            // the coefficients of its two terms, λ and 1-λ
  int64_t first, partner;       // its first row, and its partner's first row
  const int64_t *mine, *theirs; // labels; null where targets are probabilities
};

// max(z) of a row and log(sum(exp(z - max))). A backward starts from these.
template <class A> struct Softmax {
  A max = 0, log_sum = 0;
};

template <class A> struct LossRows {
  explicit LossRows(const LossArgs &a);
  LossSample sample(int64_t b) const;
  // The coefficients of row r of the sample, counted from its first row. Labels that do not count
  // become `classes`.
  RowCoefficients<double, int64_t> row(const LossSample &sample, int64_t r) const;

  const LossArgs &args;
  int64_t batch, classes, inner, count;
  Smoothing smoothing;
  RowView logits;
  std::optional<RowView> target, target_b; // probabilities
  bool labels, mean, per_row;
  Spread spread = kNone;
  const int64_t *y = nullptr, *y_b = nullptr, *perm = nullptr;
  std::vector<A> weight; // weight[classes] = 0, for labels that do not count; empty: none
  Lam lam;
  LossScales<double> scales;
  bool undefined = false; // a mean over nothing: the loss is NaN

  const A *weights() const { return weight.empty() ? nullptr : weight.data(); }

private:
  void read_labels();
  void check_labels(const char *name, const int64_t *labels) const;
  MeanFactors label_factors() const; // with reduction "mean"
};

template <class A>
LossRows<A>::LossRows(const LossArgs &a)
    : args(a), batch(a.logits.size(0)), classes(a.logits.size(1)), inner(positions(a.logits)),
      count(batch * inner), smoothing(a.label_smoothing, classes), logits(a.logits),
      labels(are_labels(a.target)), mean(a.is_mean()), per_row(a.is_per_row()),
      lam(a.lam, logits.type == kDouble) {
  if (a.perm) {
    perm = static_cast<const int64_t *>(a.perm->const_data_ptr());
    check_permutation(perm, batch);
  }
  if (a.weight) {
    weight.resize(classes + 1);
    row_kernels().loss<A>().widen[dtype_of(a.weight->scalar_type())](
        weight.data(), a.weight->const_data_ptr(), classes);
  }
  if (labels) {
    read_labels();
    const MeanFactors means = mean ? label_factors() : MeanFactors{};
    undefined = means.undefined;
    const auto [keep, base, hot] = smoothing;
    scales = {keep * means.own, keep * means.other, base * means.own, base * means.other,
              a.z_loss * means.z_loss};
  } else {
    spread = kTargets;
    target.emplace(a.target);
    target_b.emplace(a.target_b ? *a.target_b : a.target);
    const double each = mean ? 1.0 / count : 1.0; // the blended targets contain λ
    scales = {0, 0, each, 0, a.z_loss * each};
    undefined = mean && count == 0;
  }
}

template <class A> void LossRows<A>::read_labels() {
  const LossArgs &a = args;
  if (a.label_smoothing != 0) spread = weight.empty() ? kOnes : kWeights;
  y = static_cast<const int64_t *>(a.target.const_data_ptr());
  if (a.target_b) y_b = static_cast<const int64_t *>(a.target_b->const_data_ptr());
  check_labels("target", y);
  if (y_b) check_labels("target_b", y_b);
}

template <class A> void LossRows<A>::check_labels(const char *name, const int64_t *label) const {
  const auto n = static_cast<uint64_t>(classes);
  bool bad = false; // no branch, so that the compiler vectorises the loop
  for (int64_t r = 0; r < count; ++r)
    bad |= label[r] != args.ignore_index && static_cast<uint64_t>(label[r]) >= n;
  for (int64_t r = 0; bad && r < count; ++r)
    check_label(name, label[r], classes, args.ignore_index);
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

template <class A> LossSample LossRows<A>::sample(int64_t b) const {
  LossSample s{lam.own(b), lam.other(b), b * inner, (perm ? perm[b] : b) * inner, nullptr, nullptr};
  if (labels) {
    s.mine = y + s.first;
    s.theirs = y_b ? y_b + s.first : y + s.partner;
  }
  return s;
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
