// The work of one thread on long rows, one row at a time. Vectors run along the classes.
#pragma once
#include "cpu/loss_rows.h"
#include "cpu/loss_worker.h"
#include <cstring>

namespace mmix {

// Rows of contiguous classes are read and written directly. Rows with another stride, with a
// softcap, or of 16-bit logits with a different u for each class, are copied to scratch in A first.
// Their gradient is copied back from scratch.
template <class A> class AlongClasses {
public:
  static int64_t rows_at_a_time(const LossRows<A> &) { return 1; }

  AlongClasses(const LossRows<A> &rows, const GradientRows *out)
      : rows_(rows), out_(out), kernels_(row_kernels().loss<A>()), type_(rows.logits.type),
        cap_(rows.args.softcap) {
    const int64_t n = rows.classes;
    const bool by_class = rows.spread == kWeights || rows.spread == kTargets;
    direct_ = rows.logits.class_stride == 1 && (!out || out->view.class_stride == 1) && cap_ == 0 &&
              !(by_class && element_size(type_) == 2);
    if (!direct_) z_.resize(n), gradient_.resize(out ? n : 0);
    if (out && !out->stream && n <= kKeptExps<A>) exps_.resize(n + kKeptExcess);
    if (rows.spread == kOnes) mass_ = static_cast<double>(n);
    if (rows.spread == kWeights) {
      u_ = rows.weights();
      mass_ = kernels_.mass(u_, n);
    }
  }

  // Of a shard: see cross_entropy_part in mmix_fast/schemas.py.
  void part(int64_t r, A *out) {
    find(r);
    std::fill_n(out, 4, A(0));
    if (row_.live == 0) return;
    load(r);
    const RowSums sums = kernels_.sums[row_type()](z_at_, rows_.spread, u_, rows_.classes, nullptr);
    const double max = std::isinf(sums.max) && sums.max < 0 ? 0 : sums.max;
    double dot = row_.spread == 0 ? 0 : row_.spread * sums.dot;
    double mass = row_.spread * sums.mass;
    const auto add = [&](int64_t y, double hot) {
      if (!counts(y) || hot == 0) return;
      dot += hot * (logit(y) - max);
      mass += hot;
    };
    add(row_.y_own, row_.hot_own);
    add(row_.y_other, row_.hot_other);
    const A log_sum = std::log(static_cast<A>(sums.sum));
    out[0] = static_cast<A>(max), out[1] = log_sum;
    out[2] = static_cast<A>(dot), out[3] = static_cast<A>(mass);
  }

  // Returns the loss. If `out` is not null, stores it there too. upstream: the upstream gradient,
  // used if there is a gradient to write.
  double forward(int64_t r, int64_t, Softmax<A> *stats, A *out, double upstream) {
    find(r);
    *stats = {};
    double loss = 0;
    if (row_.live != 0) {
      load(r);
      A *exps = exps_.empty() ? nullptr : exps_.data();
      const RowSums sums = kernels_.sums[row_type()](z_at_, rows_.spread, u_, rows_.classes, exps);
      *stats = {static_cast<A>(sums.max), std::log(static_cast<A>(sums.sum))};
      loss = row_loss<double>(row_.hot_own, logit(row_.y_own) - stats->max, row_.hot_other,
                              logit(row_.y_other) - stats->max, row_.spread, sums.dot, sums.mass,
                              row_.z_coef, stats->max, stats->log_sum);
      if (out_) store(r, *stats, sum_of_targets(sums.mass), upstream, exps);
    } else if (out_) {
      zero(r);
    }
    if (out) *out = static_cast<A>(loss);
    return loss;
  }

  void backward(int64_t r, int64_t, const Softmax<A> *stats, const A *grad, bool per_row) {
    find(r);
    if (row_.live == 0) return zero(r);
    load(r);
    if (rows_.spread == kTargets) mass_ = kernels_.mass(u_, rows_.classes);
    store(r, *stats, sum_of_targets(mass_), grad[per_row ? r : 0], nullptr);
  }
  // stats: of all classes, as cross_entropy_part says.
  void shard_backward(int64_t r, const A *stats, const A *grad, bool per_row) {
    find(r);
    if (row_.live == 0) return zero(r);
    load(r);
    store(r, {stats[0], stats[1]}, stats[2], grad[per_row ? r : 0], nullptr);
  }

private:
  bool counts(int64_t label) const { return label != rows_.classes; }
  DType row_type() const { return direct_ ? type_ : kArithmetic<A>; }
  double logit(int64_t c) const { return counts(c) ? read(z_at_, row_type(), c) : 0; }

  void find(int64_t r) {
    sample_ = rows_.sample(rows_.inner == 1 ? r : r / rows_.inner);
    row_ = rows_.row(sample_, r - sample_.first);
  }

  void load(int64_t r) {
    const RowView &z = rows_.logits;
    const char *at = z.at(z.offset(r));
    z_at_ = at;
    if (!direct_) {
      gather(kernels_, z_.data(), at, type_, z.class_stride, rows_.classes);
      if (cap_ != 0) kernels_.cap(z_.data(), rows_.classes, cap_);
      z_at_ = z_.data();
    }
    if (rows_.spread == kTargets) load_targets(r);
  }

  // The targets of row r in A: a pointer into the tensor if its type and stride allow, else a copy
  // in scratch.
  const A *target(const RowView &view, int64_t r, std::vector<A> &scratch) {
    const char *at = view.at(view.offset(r));
    if (view.type == kArithmetic<A> && view.class_stride == 1)
      return static_cast<const A *>(static_cast<const void *>(at));
    scratch.resize(rows_.classes);
    gather(kernels_, scratch.data(), at, view.type, view.class_stride, rows_.classes);
    return scratch.data();
  }

  void load_targets(int64_t r) {
    // A target with a coefficient of exactly 0 is absent. It is not read, so that an inf or NaN in
    // it does not leak.
    const LossSample &s = sample_;
    const int64_t partner = s.partner + r - s.first;
    const A *a = s.own != 0 ? target(*rows_.target, r, t_) : nullptr;
    const A *b = s.other != 0 ? target(*rows_.target_b, partner, b_) : nullptr;
    const bool as_it_is = rows_.args.label_smoothing == 0 && rows_.weight.empty();
    if (as_it_is && !b && s.own == 1) {
      u_ = a;
    } else if (as_it_is && !a && s.other == 1) {
      u_ = b;
    } else {
      u_scratch_.resize(rows_.classes);
      kernels_.blend_row(u_scratch_.data(), a, b, rows_.weights(), rows_.classes, s.own, s.other,
                         rows_.smoothing.keep, rows_.smoothing.base);
      u_ = u_scratch_.data();
    }
  }

  // mass: of the spread's u.
  double sum_of_targets(double mass) const {
    return row_.hot_own + row_.hot_other + row_.spread * mass;
  }

  // targets: their sum over all classes. exps: the exponentials that the forward kept, or null.
  void store(int64_t r, const Softmax<A> &s, double targets, double upstream, const A *exps) {
    char *dst = out_->at(out_->view.offset(r));
    void *to = direct_ ? static_cast<void *>(dst) : gradient_.data();
    const double lse = static_cast<double>(s.max) + s.log_sum;
    // A forward also takes the sum from its log, so that a second backward gives the same bits.
    const double scale = softmax_scale<double>(upstream, targets, 0, 0, 0, row_.z_coef, lse,
                                               1.0 / std::exp(s.log_sum));
    const double share = upstream * row_.spread;
    // Read the logits of the labels now: the gradient may overwrite them.
    const auto entry = [&](int64_t y, double hot) {
      if (!counts(y)) return 0.0;
      const A e = std::exp(static_cast<A>(logit(y)) - s.max);
      return label_entry<double>(scale, e, share, u_ ? u_[y] : 1, upstream, hot);
    };
    const double own = entry(row_.y_own, row_.hot_own), other = entry(row_.y_other, row_.hot_other);
    kernels_.gradient[row_type()](to, z_at_, u_, exps, rows_.classes, s.max, scale, share,
                                  direct_ && out_->stream);
    if (counts(row_.y_own)) write(to, row_type(), row_.y_own, own);
    if (counts(row_.y_other)) write(to, row_type(), row_.y_other, other);
    if (direct_) return;
    if (cap_ != 0) kernels_.uncap(gradient_.data(), z_.data(), rows_.classes, cap_);
    scatter(kernels_, dst, type_, out_->view.class_stride, gradient_.data(), rows_.classes);
  }

  // Writes the gradient of a row that is not live: zeros.
  void zero(int64_t r) {
    char *dst = out_->at(out_->view.offset(r));
    const int64_t size = element_size(type_), step = out_->view.class_stride * size;
    if (step == size) {
      std::memset(dst, 0, rows_.classes * size);
    } else {
      for (int64_t c = 0; c < rows_.classes; ++c) std::memset(dst + c * step, 0, size);
    }
  }

  const LossRows<A> &rows_;
  const GradientRows *out_;
  const LossKernels<A> &kernels_;
  DType type_;
  double cap_;
  bool direct_;
  std::vector<A> z_, gradient_, exps_, t_, b_, u_scratch_;
  LossSample sample_{};
  RowCoefficients<double, int64_t> row_{};
  const void *z_at_ = nullptr;
  const A *u_ = nullptr; // see Spread; null if it is the same for all classes
  double mass_ = 0;      // the sum of u
};

} // namespace mmix
