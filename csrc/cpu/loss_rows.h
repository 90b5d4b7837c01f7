// Turns a mixed cross-entropy problem into rows: for row r of the (B*d1*..., C) logits, the
// coefficients with which everything is linear. Forward and backward both start from here.
#pragma once
#include "checks.h"
#include "cpu/tensors.h"
#include <cmath>
#include <limits>
#include <optional>
#include <string>

namespace mmix {

struct LossArgs {
  const Tensor &logits, &target;
  const std::optional<Tensor> &perm, &target_b;
  const Tensor &lam;
  const std::optional<Tensor> &weight;
  int64_t ignore_index;
  const std::string &reduction;
  double label_smoothing, z_loss, softcap;
};

// A (B, C, d1, ...) tensor as rows of classes; asked once, since each question to a stable Tensor
// is a call through the ABI.
struct RowView {
  explicit RowView(const Tensor &t)
      : data(t.const_data_ptr()), type(dtype_of(t.scalar_type())), class_stride(t.stride(1)) {
    for (int64_t d = t.dim() - 1; d >= 0; --d) {
      if (d == 1 || t.size(d) == 1) continue;
      if (!sizes.empty() && t.stride(d) == strides.back() * sizes.back()) {
        sizes.back() *= t.size(d);
        continue;
      }
      sizes.push_back(t.size(d));
      strides.push_back(t.stride(d));
    }
    if (t.size(1) == 1) class_stride = 1;
  }
  // Offset of the first class of row r.
  int64_t offset(int64_t r) const {
    if (sizes.size() == 1) return r * strides[0];
    int64_t at = 0;
    for (size_t d = 0; d < sizes.size(); ++d) {
      at += r % sizes[d] * strides[d];
      r /= sizes[d];
    }
    return at;
  }
  // Distance of the next row, within the innermost dimension.
  int64_t step() const { return sizes.empty() ? 0 : strides[0]; }
  const char *at(int64_t offset) const {
    return static_cast<const char *>(data) + offset * element_size(type);
  }
  const void *data;
  DType type;
  int64_t class_stride;
  std::vector<int64_t> sizes, strides; // innermost first, merged where they can be
};

// With u as Spread says,
//   loss = hot_own*(lse - z[y_own]) + hot_other*(lse - z[y_other])
//        + spread*sum_c u_c*(lse - z_c) + z_coef*lse^2.
// Probabilities: u_c = weight_c*((1-eps)*(own*a_c + other*b_c) + eps/C), and no label counts.
struct LossRow {
  int64_t y_own = -1, y_other = -1; // -1: no such label counts
  double hot_own = 0, hot_other = 0, spread = 0, z_coef = 0;
  double own = 0, other = 0; // of the two targets
  int64_t partner = 0;       // row of the other target
  bool live = true;          // false: adds 0, zero gradient, whatever its logits hold
};

// The max of a row and the log of the sum of its exponentials: what a backward starts from.
template <class A> struct Softmax {
  A max = 0, log_sum = 0;
  double lse() const { return static_cast<double>(max) + log_sum; }
  // As a backward has it, so that a second one gives the same bits.
  A sum() const { return std::exp(log_sum); }
};

template <class A> struct LossRows {
  explicit LossRows(const LossArgs &a);
  LossRow row(int64_t r) const;
  double loss(const LossRow &row, const Softmax<A> &s, double dot, double mass, double z_own,
              double z_other) const;

  const LossArgs &args;
  int64_t batch, classes, inner = 1, count;
  RowView logits;
  std::optional<RowView> target, target_b; // probabilities
  bool labels, mean, per_row;
  Spread spread = kNone;
  const int64_t *y = nullptr, *y_b = nullptr, *perm = nullptr;
  std::vector<A> weight; // empty: none
  Lam lam;
  // What the two terms and the z-loss are multiplied by under "mean"; 1 otherwise.
  double own_scale = 1, other_scale = 1, z_scale = 1;
  bool undefined = false; // a mean over nothing that counts: NaN

private:
  double weight_of(int64_t c) const { return weight.empty() ? 1.0 : weight[c]; }
  void find_divisors();
};

template <class A>
LossRows<A>::LossRows(const LossArgs &a)
    : args(a), batch(a.logits.size(0)), classes(a.logits.size(1)), logits(a.logits),
      labels(a.target.scalar_type() == ScalarType::Long), mean(a.reduction == "mean"),
      per_row(a.reduction == "none"), lam(a.lam, logits.type == kDouble) {
  for (int64_t d = 2; d < a.logits.dim(); ++d) inner *= a.logits.size(d);
  count = batch * inner;
  if (a.perm) {
    perm = static_cast<const int64_t *>(a.perm->const_data_ptr());
    check_permutation(perm, batch);
  }
  if (a.weight) {
    weight.resize(classes);
    row_kernels().loss<A>().widen[dtype_of(a.weight->scalar_type())](
        weight.data(), a.weight->const_data_ptr(), classes);
  }
  if (!labels) {
    spread = kTargets;
    target.emplace(a.target);
    target_b.emplace(a.target_b ? *a.target_b : a.target);
    own_scale = other_scale = z_scale = mean ? 1.0 / count : 1.0;
    undefined = mean && count == 0;
    return;
  }
  if (a.label_smoothing != 0) spread = weight.empty() ? kOnes : kWeights;
  y = static_cast<const int64_t *>(a.target.const_data_ptr());
  if (a.target_b) y_b = static_cast<const int64_t *>(a.target_b->const_data_ptr());
  for (int64_t r = 0; r < count; ++r) check_label("target", y[r], classes, a.ignore_index);
  for (int64_t r = 0; y_b && r < count; ++r)
    check_label("target_b", y_b[r], classes, a.ignore_index);
  if (mean) find_divisors();
}

template <class A> void LossRows<A>::find_divisors() {
  double own_div = 0, other_div = 0, joint_div = 0, z_div = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const double l = lam.own(b), k = lam.other(b);
    const int64_t *mine = y + b * inner, *theirs = y_b ? y_b + b * inner : y + perm[b] * inner;
    double own = 0, other = 0, own_count = 0, other_count = 0;
    for (int64_t s = 0; s < inner; ++s) {
      if (mine[s] != args.ignore_index) own += weight_of(mine[s]), own_count += 1;
      if (theirs[s] != args.ignore_index) other += weight_of(theirs[s]), other_count += 1;
    }
    own_div += own;
    other_div += other;
    if (l != 0) joint_div += l * own, z_div += l * own_count;
    if (k != 0) joint_div += k * other, z_div += k * other_count;
  }
  if (lam.per_sample) own_div = other_div = joint_div;
  const auto invert = [](double d) { return d == 0 ? 0 : 1 / d; };
  own_scale = invert(own_div);
  other_scale = invert(other_div);
  z_scale = invert(z_div);
  // A term with a zero coefficient is absent, its divisor too.
  undefined = lam.per_sample ? joint_div == 0
                             : (own_div == 0 && (count == 0 || lam.own(0) != 0)) ||
                                   (other_div == 0 && (count == 0 || lam.other(0) != 0));
}

template <class A> LossRow LossRows<A>::row(int64_t r) const {
  LossRow row;
  const int64_t b = inner == 1 ? r : r / inner, partner = perm ? perm[b] * inner + r - b * inner : r;
  const double eps = args.label_smoothing;
  row.own = lam.own(b);
  row.other = lam.other(b);
  if (!labels) {
    row.partner = partner;
    row.spread = own_scale;
    row.z_coef = args.z_loss * z_scale;
    return row;
  }
  const int64_t mine = y[r], theirs = y_b ? y_b[r] : y[partner];
  const bool has_own = mine != args.ignore_index && row.own != 0;
  const bool has_other = theirs != args.ignore_index && row.other != 0;
  row.live = has_own || has_other;
  double mass = 0;
  if (has_own) {
    row.y_own = mine;
    row.hot_own = (1 - eps) * row.own * own_scale * weight_of(mine);
    row.spread += eps / classes * row.own * own_scale;
    mass += row.own;
  }
  if (has_other) {
    row.y_other = theirs;
    row.hot_other = (1 - eps) * row.other * other_scale * weight_of(theirs);
    row.spread += eps / classes * row.other * other_scale;
    mass += row.other;
  }
  row.z_coef = mass * args.z_loss * z_scale;
  return row;
}

// dot, mass: sums over u; z_own, z_other: the labels' logits.
template <class A>
double LossRows<A>::loss(const LossRow &row, const Softmax<A> &s, double dot, double mass,
                         double z_own, double z_other) const {
  double loss = 0;
  // coefficient*(m*lse - z), absent where the coefficient is exactly 0 (z may be -inf there).
  const auto term = [&](double coef, double m, double shifted) {
    if (coef != 0) loss += coef * (m * s.log_sum - shifted);
  };
  term(row.hot_own, 1, z_own - s.max);
  term(row.hot_other, 1, z_other - s.max);
  term(row.spread, mass, dot);
  if (row.z_coef != 0) loss += row.z_coef * s.lse() * s.lse();
  // A NaN or all -inf row that counts is NaN even where its own logits are finite.
  return std::isnan(s.log_sum) ? s.log_sum : loss;
}

// What d(loss)/d(logits), times the upstream gradient g, is made of: g scales the coefficients, so
// that one rounding is left.
struct GradientRow {
  template <class A>
  GradientRow(const LossRow &row, const Softmax<A> &s, double mass, double g)
      // softmax's coefficient: the sum of the targets, and what the z-loss adds.
      : scale(g * (row.hot_own + row.hot_other + row.spread * mass + 2 * row.z_coef * s.lse()) /
              s.sum()),
        spread(g * row.spread), g(g) {}
  // The entry of a label y, combined before it is rounded; e: exp(z[y] - max), u: its entry of u.
  double at_label(const LossRow &row, int64_t y, double e, double u) const {
    const double hot = (y == row.y_own ? row.hot_own : 0) + (y == row.y_other ? row.hot_other : 0);
    return scale * e - spread * u - hot * g;
  }
  double scale, spread, g;
};

} // namespace mmix
