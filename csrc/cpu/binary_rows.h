// Turns a mixed binary cross-entropy into rows and their targets. No element depends on another, so
// there are no sums over a row: a worker takes the elements in the order that suits the memory.
#pragma once
#include "cpu/paired_rows.h"
#include "loss_args.h"

namespace mmix {

// The targets of a row with labels: `usual`, except for its one or two labels.
template <class A> struct LabelTargets {
  A usual, own, other, both;
};

template <class A> struct BinaryRows : PairedRows {
  explicit BinaryRows(const BinaryLossArgs &a)
      : PairedRows(a, std::nullopt, a.logits.size(1)), weight(class_weights<A>(a.weight, classes)),
        pos_weight(class_weights<A>(a.pos_weight, classes)), threshold(a.target_threshold) {
    // Each class of a multi-hot target is a decision between two.
    if (!labels) smoothing = Smoothing(a.label_smoothing, 2);
  }

  BinaryBlend<A> blend(const LossSample &s) const {
    return {static_cast<A>(s.own),          static_cast<A>(s.other),
            static_cast<A>(smoothing.keep), static_cast<A>(smoothing.base),
            threshold.has_value(),          static_cast<A>(threshold.value_or(0))};
  }

  LabelTargets<A> label_targets(const LossSample &s) const {
    const BinaryBlend<A> b = blend(s);
    const A off = b.base, on = static_cast<A>(smoothing.hot);
    const auto mixed = [&](A q, A q_b) { // as binary_targets does it
      const A t = Blend<A>{b.own, b.other}(q, q_b);
      return !b.has_threshold || t != t ? t : t > b.threshold ? A(1) : A(0);
    };
    return {mixed(off, off), mixed(on, off), mixed(off, on), mixed(on, on)};
  }

  std::vector<A> weight, pos_weight; // empty: none
  std::optional<double> threshold;
  // What the call computes.
  BinaryResult result = kNothing;
  double scale = 1;                // see BinaryLine
  std::optional<RowView> upstream; // for each element
  int64_t several = 1;             // rows that a worker takes at a time
};

} // namespace mmix
