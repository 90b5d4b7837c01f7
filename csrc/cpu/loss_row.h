// One thread's work on long rows, one after the other: vectors run along the classes.
#pragma once
#include "cpu/loss_worker.h"

namespace mmix {

// Contiguous rows are read and written where they lie; others are gathered, capped and widened into
// scratch, and their gradient scattered from there.
template <class A> class RowWorker {
public:
  static int64_t rows_at_a_time(const LossRows<A> &) { return 1; }

  RowWorker(const LossRows<A> &rows, const GradientRows *out)
      : rows_(rows), out_(out), kernels_(row_kernels().loss<A>()), type_(rows.logits.type),
        by_class_(rows.spread == kWeights || rows.spread == kTargets),
        direct_(rows.logits.class_stride == 1 && (!out || out->view.class_stride == 1) &&
                rows.args.softcap == 0 && !(by_class_ && element_size(type_) == 2)) {
    const int64_t n = rows.classes;
    if (!direct_) z_.resize(n), gradient_.resize(out ? n : 0);
    if (out && !out->stream && n <= kKeptExps<A>) exps_.resize(n + kKeptExcess);
    if (rows.spread == kWeights) u_ = rows.weight.data(), mass_ = 0;
    for (A w : rows.weight) mass_ += w;
    if (rows.spread == kOnes) mass_ = n;
  }

  void forward(int64_t r, int64_t, Softmax<A> *stats, double *loss) {
    LossRow row = rows_.row(r);
    if (!row.live) {
      if (out_) zero(r);
      return;
    }
    load(r, row);
    const bool keep = !exps_.empty();
    const RowSums sums = kernels_.sums[row_type()](row_, row.spread == 0 ? kNone : rows_.spread,
                                                   u_, rows_.classes, keep ? exps_.data() : nullptr);
    *stats = {static_cast<A>(sums.max), std::log(static_cast<A>(sums.sum))};
    *loss = rows_.loss(row, *stats, sums.dot, sums.mass, logit(row.y_own), logit(row.y_other));
    if (out_) write(r, row, *stats, sums.mass, 1, keep ? exps_.data() : nullptr);
  }

  void backward(int64_t r, int64_t, const Softmax<A> *stats, const A *grad, bool per_row) {
    const LossRow row = rows_.row(r);
    if (!row.live) return zero(r);
    load(r, row);
    write(r, row, *stats, mass_, grad[per_row ? r : 0], nullptr);
  }

private:
  DType row_type() const { return direct_ ? type_ : kArithmetic<A>; }
  double logit(int64_t c) const { return c < 0 ? 0 : read(row_, row_type(), c); }

  void load(int64_t r, const LossRow &row) {
    const RowView &view = rows_.logits;
    const char *at = view.at(view.offset(r));
    row_ = at;
    if (!direct_) {
      gather(kernels_, z_.data(), at, type_, view.class_stride, rows_.classes);
      if (rows_.args.softcap != 0)
        kernels_.cap(z_.data(), rows_.classes, rows_.args.softcap);
      row_ = z_.data();
    }
    if (rows_.spread == kTargets) load_targets(r, row);
  }
  ...
};

} // namespace mmix
