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
      : data(t.const_data_ptr()), type(dtype_of(t.scalar_type())), class_stride(t.stride(1)),
        batch_stride(t.stride(0)) {
    for (int64_t d = t.dim() - 1; d >= 2; --d) {
      sizes.push_back(t.size(d));
      strides.push_back(t.stride(d));
    }
  }
  // Offset of the first class of row r.
  int64_t offset(int64_t r) const {
    if (sizes.empty()) return r * batch_stride;
    int64_t at = 0;
    for (size_t d = 0; d < sizes.size(); ++d) {
      at += r % sizes[d] * strides[d];
      r /= sizes[d];
    }
    return at + r * batch_stride;
  }
  const void *data;
  DType type;
  int64_t class_stride, batch_stride;
  std::vector<int64_t> sizes, strides; // innermost first
};

// loss[r] = sum_c t_c*(lse - z_c) + z_coef*lse^2 with
// t_c = weight_c*(base + [c==y_own]*hot_own + [c==y_other]*hot_other); for float targets
// t_c = weight_c*scale*((1-eps)*(own*a_c + other*b_c) + eps/C).
struct LossRow {
  int64_t y_own = -1, y_other = -1; // -1: no such label counts
  double hot_own = 0, hot_other = 0, base = 0, z_coef = 0;
  double own = 0, other = 0, scale = 1; // float targets
  int64_t partner = 0;                  // row of the partner's float target
  bool live = true;                     // false: adds 0, zero gradient, logits unread
};

struct LossRows {
  explicit LossRows(const LossArgs &a);
  LossRow row(int64_t r) const;
  int64_t batch_of(int64_t r) const { return inner == 1 ? r : r / inner; }
  int64_t partner_of(int64_t r) const {
    return inner == 1 ? perm[r] : perm[r / inner] * inner + r % inner;
  }
  double weight_of(int64_t c) const { return weight ? read(weight, weight_type, c) : 1.0; }

  const LossArgs &args;
  int64_t batch, classes, inner = 1, count;
  RowView logits;
  std::optional<RowView> target, target_b; // float targets
  bool labels, mean, per_row;
  const int64_t *y = nullptr, *y_b = nullptr, *perm = nullptr;
  const void *weight = nullptr;
  DType weight_type = kFloat;
  Lam lam;
  // What the two terms and the z-loss are multiplied by under "mean"; 1 otherwise.
  double own_scale = 1, other_scale = 1, z_scale = 1;
  bool undefined = false; // a mean over nothing that counts: NaN
};

inline LossRows::LossRows(const LossArgs &a)
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
    weight = a.weight->const_data_ptr();
    weight_type = dtype_of(a.weight->scalar_type());
  }
  if (!labels) {
    target.emplace(a.target);
    target_b.emplace(a.target_b ? *a.target_b : a.target);
    own_scale = other_scale = z_scale = mean ? 1.0 / count : 1.0;
    undefined = mean && count == 0;
    return;
  }
  y = static_cast<const int64_t *>(a.target.const_data_ptr());
  if (a.target_b) y_b = static_cast<const int64_t *>(a.target_b->const_data_ptr());
  for (int64_t r = 0; r < count; ++r) check_label("target", y[r], classes, a.ignore_index);
  for (int64_t r = 0; y_b && r < count; ++r)
    check_label("target_b", y_b[r], classes, a.ignore_index);
  if (!mean) return;
  double own_div = 0, other_div = 0, joint_div = 0, z_div = 0;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t b = batch_of(r), mine = y[r], theirs = y_b ? y_b[r] : y[partner_of(r)];
    const double l = lam.own(b), k = lam.other(b);
    if (mine != a.ignore_index) {
      own_div += weight_of(mine);
      if (l != 0) joint_div += l * weight_of(mine), z_div += l;
    }
    if (theirs != a.ignore_index) {
      other_div += weight_of(theirs);
      if (k != 0) joint_div += k * weight_of(theirs), z_div += k;
    }
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

inline LossRow LossRows::row(int64_t r) const {
  LossRow row;
  const int64_t b = batch_of(r);
  const double eps = args.label_smoothing;
  row.own = lam.own(b);
  row.other = lam.other(b);
  if (!labels) {
    row.partner = perm ? partner_of(r) : r;
    row.scale = own_scale;
    row.base = eps / classes;
    row.z_coef = args.z_loss * z_scale;
    return row;
  }
  const int64_t mine = y[r], theirs = y_b ? y_b[r] : y[partner_of(r)];
  const bool has_own = mine != args.ignore_index && row.own != 0;
  const bool has_other = theirs != args.ignore_index && row.other != 0;
  row.live = has_own || has_other;
  double mass = 0;
  if (has_own) {
    row.y_own = mine;
    row.hot_own = (1 - eps) * row.own * own_scale * weight_of(mine);
    row.base += eps / classes * row.own * own_scale;
    mass += row.own;
  }
  if (has_other) {
    row.y_other = theirs;
    row.hot_other = (1 - eps) * row.other * other_scale * weight_of(theirs);
    row.base += eps / classes * row.other * other_scale;
    mass += row.other;
  }
  row.z_coef = mass * args.z_loss * z_scale;
  return row;
}

} // namespace mmix
