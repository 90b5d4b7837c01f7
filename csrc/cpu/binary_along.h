// The work of one thread on a binary cross-entropy whose classes are contiguous in memory, in the
// logits and in the result: pieces of long rows, or several adjoining rows at once.
#pragma once
#include "cpu/binary_rows.h"
#include "cpu/loss_worker.h"
#include <limits>

namespace mmix {

// Elements at a time: with the logits, their targets and two rows of targets to mix stay in the L1
// cache.
constexpr int64_t kBinaryPiece = 2048;

template <class A> class BinaryAlong {
public:
  static int64_t rows_at_a_time(const BinaryRows<A> &rows) { return rows.several; }

  BinaryAlong(const BinaryRows<A> &rows, const GradientRows *out)
      : rows_(rows), out_(out), kernels_(row_kernels().loss<A>()),
        length_(rows.several > 1 ? rows.classes : std::min(rows.classes, kBinaryPiece)),
        t_(rows.several * length_), usual_(rows.several, std::numeric_limits<A>::quiet_NaN()),
        weight_(repeated(rows.weight)), pos_weight_(repeated(rows.pos_weight)) {
    if (!rows.labels) b_.resize(length_);
    if (rows.labels && !rows.lam.per_sample) shared_ = rows.label_targets(rows.sample(0));
  }

  // Returns the sum of the losses of n rows from `first` on.
  double run(int64_t first, int64_t n) {
    double sum = 0;
    for (int64_t c = 0; c < rows_.classes; c += length_)
      sum += piece(first, n, c, std::min(length_, rows_.classes - c));
    return sum;
  }

private:
  // `length` classes from c on of n rows. If n is not 1, these are all classes.
  double piece(int64_t first, int64_t n, int64_t c, int64_t length) {
    for (int64_t k = 0; k < n; ++k) {
      const int64_t r = first + k;
      const LossSample sample = rows_.sample(rows_.inner == 1 ? r : r / rows_.inner);
      if (rows_.labels)
        put_labels(k, sample, r - sample.first, c, length);
      else
        put_targets(t_.data() + k * length, sample, r, c, length);
    }
    const RowView &z = rows_.logits;
    BinaryLine<A> line{};
    line.z = z.at(z.offset(first) + c);
    line.t = t_.data();
    line.weight = weight_.empty() ? nullptr : weight_.data() + c;
    line.pos_weight = pos_weight_.empty() ? nullptr : pos_weight_.data() + c;
    line.upstream = rows_.upstream ? upstream(first, n, c, length) : nullptr;
    if (out_) line.out = out_->at(out_->view.offset(first) + c), line.stream = out_->stream;
    line.n = n * length;
    line.scale = rows_.scale;
    const double sum = kernels_.binary[rows_.result][z.type](line);
    for (const auto &[entry, usual] : written_) *entry = usual;
    written_.clear();
    return sum;
  }

  // Between two calls every entry of row k of t_ is usual_[k], so that only the labels are written.
  void put_labels(int64_t k, const LossSample &s, int64_t r, int64_t c, int64_t length) {
    const LabelTargets<A> targets = rows_.lam.per_sample ? rows_.label_targets(s) : shared_;
    A *t = t_.data() + k * length_;
    if (usual_[k] != targets.usual) std::fill_n(t, length_, targets.usual);
    usual_[k] = targets.usual;
    const int64_t own = s.mine[r] - c, other = s.theirs[r] - c;
    const auto put = [&](int64_t at, A value) {
      if (at < 0 || at >= length) return;
      t[at] = value;
      written_.emplace_back(t + at, targets.usual);
    };
    put(own, own == other ? targets.both : targets.own);
    if (own != other) put(other, targets.other);
  }

  void put_targets(A *t, const LossSample &s, int64_t r, int64_t c, int64_t length) {
    // A target whose coefficient is 0 is absent, and is not read.
    const auto read = [&](A *to, const RowView &view, int64_t row) {
      const char *at = view.at(view.offset(row) + c * view.class_stride);
      gather(kernels_, to, at, view.type, view.class_stride, length);
    };
    if (s.own != 0) read(t, *rows_.target, r);
    if (s.other != 0) read(b_.data(), *rows_.target_b, s.partner + r - s.first);
    kernels_.binary_targets(t, b_.data(), length, rows_.blend(s));
  }

  const A *upstream(int64_t first, int64_t n, int64_t c, int64_t length) {
    const RowView &view = *rows_.upstream;
    upstream_.resize(n * length);
    for (int64_t k = 0; k < n; ++k)
      gather(kernels_, upstream_.data() + k * length,
             view.at(view.offset(first + k) + c * view.class_stride), view.type, view.class_stride,
             length);
    return upstream_.data();
  }

  // The weights of the classes, once for each row of a piece.
  std::vector<A> repeated(const std::vector<A> &weight) const {
    std::vector<A> all;
    for (int64_t k = 0; k < rows_.several && !weight.empty(); ++k)
      all.insert(all.end(), weight.begin(), weight.begin() + rows_.classes);
    return all;
  }

  const BinaryRows<A> &rows_;
  const GradientRows *out_;
  const LossKernels<A> &kernels_;
  int64_t length_;                         // classes of a row in a piece
  std::vector<A> t_, b_;                   // targets; b_ of the partner's row
  std::vector<A> usual_;                   // of each row of t_, see put_labels
  LabelTargets<A> shared_{};               // if λ is the same for all rows
  std::vector<std::pair<A *, A>> written_; // entries of t_ to restore, and their usual value
  std::vector<A> weight_, pos_weight_, upstream_;
};

} // namespace mmix
