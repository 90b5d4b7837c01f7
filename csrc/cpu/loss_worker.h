// One thread's work on the rows of a mixed cross-entropy: a row's statistics, loss and gradient.
#pragma once
#include "cpu/loss_rows.h"

namespace mmix {

// Where the rows of a gradient go; it may be the logits themselves.
struct GradientRows {
  explicit GradientRows(const Tensor &out, bool past_cache)
      : data(static_cast<char *>(out.mutable_data_ptr())), view(out), stream(past_cache) {}
  char *data;
  RowView view;
  bool stream;
};

// The softmax of a row z: max, log(sum(exp(z - max))), that sum; what smoothing needs beside.
template <class A> struct Softmax {
  A max = 0, log_sum = 0, sum = 1;
  double shifted_sum = 0; // of z - max
};

// A is the arithmetic's type. Contiguous rows are read and written where they lie; others are
// gathered, capped and widened into scratch, and their gradient scattered from there.
template <class A> class LossWorker {
public:
  LossWorker(const LossRows &rows, const GradientRows *out)
      : rows_(rows), a_(rows.args), out_(out), kernels_(row_kernels()), type_(rows.logits.type),
        dense_(!rows.labels || (rows.weight && a_.label_smoothing != 0)),
        direct_(unit(rows.logits) && (!out || unit(out->view)) && a_.softcap == 0 &&
                !(dense_ && element_size(type_) == 2)) {
    if (!direct_) z_.resize(rows.classes), gradient_.resize(out ? rows.classes : 0);
    if (dense_) t_.resize(rows.classes);
    if (out && !out->stream && !dense_ && sizeof(A) == 4 && rows.classes <= kKeptExps)
      exps_.resize(rows.classes + kKeptExcess);
  }

  void load(int64_t r, const LossRow &row) {
    const int64_t at = rows_.logits.offset(r);
    row_ = direct_ ? static_cast<const char *>(rows_.logits.data) + at * element_size(type_)
                   : reinterpret_cast<const char *>(gather(at));
    if (dense_) fill_targets(r, row);
  }

  Softmax<A> softmax(const LossRow &row) {
    const RowStats s = kernels_.stats[row_type()](row_, rows_.classes, !dense_ && row.base != 0,
                                                  exps_.empty() ? nullptr : exps_.data());
    kept_ = !exps_.empty();
    const A log_sum = std::log(static_cast<A>(s.sum));
    // The sum as the backward has it, so that a second backward gives the same bits.
    return {static_cast<A>(s.max), log_sum, std::exp(log_sum), s.shifted_sum};
  }

  double loss(const LossRow &row, const Softmax<A> &s) const {
    double loss = 0;
    // coefficient * (lse - z), absent where the coefficient is exactly 0 (z may be -inf there).
    const auto term = [&](double coef, double shifted) {
      if (coef != 0) loss += coef * (s.log_sum - shifted);
    };
    if (dense_) {
      for (int64_t c = 0; c < rows_.classes; ++c) term(t_[c], logit(c) - s.max);
    } else {
      if (row.y_own >= 0) term(row.hot_own, logit(row.y_own) - s.max);
      if (row.y_other >= 0) term(row.hot_other, logit(row.y_other) - s.max);
      if (row.base != 0) loss += row.base * (rows_.classes * s.log_sum - s.shifted_sum);
    }
    const double lse = static_cast<double>(s.max) + s.log_sum;
    if (row.z_coef != 0) loss += row.z_coef * lse * lse;
    // A NaN or all -inf row that counts is NaN even where its own logits are finite.
    return std::isnan(s.log_sum) ? s.log_sum : loss;
  }

  // d(loss)/d(logits) of the row, times the upstream gradient g: g scales the coefficients, so that
  // one rounding is left.
  void gradient(int64_t r, const LossRow &row, double g, const Softmax<A> &s) {
    char *dst = out_->data + out_->view.offset(r) * element_size(type_);
    // softmax's coefficient: the sum of the targets, and what the z-loss adds.
    const double mass = dense_ ? mass_ : row.hot_own + row.hot_other + row.base * rows_.classes;
    const double lse = static_cast<double>(s.max) + s.log_sum;
    const double scale = g * (mass + 2 * row.z_coef * lse) / s.sum;
    const double base = dense_ ? 0 : row.base * g;
    // The labels' entries are read before they may be overwritten and combined before rounding.
    const auto at_label = [&](int64_t y) {
      const double hot =
          (y == row.y_own ? row.hot_own : 0) + (y == row.y_other ? row.hot_other : 0);
      return scale * std::exp(static_cast<A>(logit(y)) - s.max) - base - hot * g;
    };
    const bool put_own = !dense_ && row.y_own >= 0;
    const bool put_other = !dense_ && row.y_other >= 0 && row.y_other != row.y_own;
    const double own = put_own ? at_label(row.y_own) : 0;
    const double other = put_other ? at_label(row.y_other) : 0;
    if (dense_ && g != 1) {
      for (A &t : t_) t = static_cast<A>(t * g);
    }
    void *to = direct_ ? static_cast<void *>(dst) : gradient_.data();
    kernels_.grad[row_type()](to, row_, dense_ ? t_.data() : nullptr,
                              kept_ ? exps_.data() : nullptr, rows_.classes, s.max, scale, base,
                              direct_ && out_->stream);
    if (put_own) write(to, row_type(), row.y_own, own);
    if (put_other) write(to, row_type(), row.y_other, other);
    if (!direct_) scatter(dst);
  }

  // The gradient of a row that counts for nothing.
  void zero(int64_t r) {
    visit(type_, [&](auto *t) {
      auto *dst = static_cast<decltype(t)>(static_cast<void *>(out_->data)) + out_->view.offset(r);
      for (int64_t c = 0; c < rows_.classes; ++c) dst[c * out_->view.class_stride] = 0;
    });
  }

private:
  bool unit(const RowView &view) const { return view.class_stride == 1 || rows_.classes == 1; }
  static constexpr DType kAcc = sizeof(A) == 8 ? kDouble : kFloat;
  DType row_type() const { return direct_ ? type_ : kAcc; }
  double logit(int64_t c) const { return read(row_, row_type(), c); }

  const A *gather(int64_t at) {
    visit(type_, [&](auto *t) {
      const auto *src = static_cast<decltype(t)>(const_cast<void *>(rows_.logits.data)) + at;
      for (int64_t c = 0; c < rows_.classes; ++c)
        z_[c] = static_cast<A>(src[c * rows_.logits.class_stride]);
    });
    if (a_.softcap != 0) {
      const A cap = static_cast<A>(a_.softcap);
      for (A &z : z_) // a masked class (-inf) stays masked: tanh would make it finite
        if (!(std::isinf(z) && z < 0)) z = cap * std::tanh(z / cap);
    }
    return z_.data();
  }

  // gradient_ -> dst, through the derivative of the cap.
  void scatter(char *dst) {
    if (a_.softcap != 0) {
      const A cap = static_cast<A>(a_.softcap);
      for (int64_t c = 0; c < rows_.classes; ++c) {
        const A u = z_[c] / cap;
        gradient_[c] = std::isinf(u) ? 0 : gradient_[c] * (1 - u * u);
      }
    }
    visit(type_, [&](auto *t) {
      using T = std::remove_pointer_t<decltype(t)>;
      T *out = static_cast<T *>(static_cast<void *>(dst));
      for (int64_t c = 0; c < rows_.classes; ++c)
        out[c * out_->view.class_stride] = static_cast<T>(gradient_[c]);
    });
  }

  void fill_targets(int64_t r, const LossRow &row) {
    const A base = static_cast<A>(row.base);
    if (rows_.labels) {
      for (int64_t c = 0; c < rows_.classes; ++c)
        t_[c] = static_cast<A>(row.base * rows_.weight_of(c));
      if (row.y_own >= 0) t_[row.y_own] += static_cast<A>(row.hot_own);
      if (row.y_other >= 0) t_[row.y_other] += static_cast<A>(row.hot_other);
    } else {
      std::fill(t_.begin(), t_.end(), A(0));
      add_target(*rows_.target, rows_.target->offset(r), row.own);
      add_target(*rows_.target_b, rows_.target_b->offset(row.partner), row.other);
      const A keep = static_cast<A>(1 - a_.label_smoothing), scale = static_cast<A>(row.scale);
      for (A &t : t_) t = scale * (keep * t + base);
      for (int64_t c = 0; rows_.weight && c < rows_.classes; ++c) {
        const A w = static_cast<A>(rows_.weight_of(c));
        t_[c] = w == 0 ? 0 : w * t_[c];
      }
    }
    mass_ = 0;
    for (A t : t_) mass_ += t;
  }

  void add_target(const RowView &view, int64_t at, double coef) {
    if (coef == 0) return; // absent: what it holds must not leak
    visit(view.type, [&](auto *t) {
      const auto *src = static_cast<decltype(t)>(const_cast<void *>(view.data)) + at;
      for (int64_t c = 0; c < rows_.classes; ++c)
        t_[c] += static_cast<A>(coef) * static_cast<A>(src[c * view.class_stride]);
    });
  }

  const LossRows &rows_;
  const LossArgs &a_;
  const GradientRows *out_;
  const RowKernels &kernels_;
  DType type_;
  bool dense_, direct_; // dense_: labels alone do not say the targets
  std::vector<A> z_, t_, gradient_;
  std::vector<float> exps_; // of the row whose softmax was taken
  bool kept_ = false;
  double mass_ = 0; // the sum of the dense targets
  const void *row_ = nullptr;
};

} // namespace mmix
