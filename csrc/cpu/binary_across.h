// The work of one thread on tiles of consecutive rows of a binary cross-entropy, in scratch memory,
// [classes][rows]. Used for logits or results whose classes are not contiguous, and for short rows
// with gaps between them.
#pragma once
#include "cpu/binary_rows.h"
#include "cpu/loss_tiles.h"

namespace mmix {

template <class A> class BinaryAcross {
public:
  static int64_t rows_at_a_time(const BinaryRows<A> &rows) { return rows.several; }

  BinaryAcross(const BinaryRows<A> &rows, const GradientRows *out)
      : rows_(rows), out_(out), kernels_(row_kernels().loss<A>()),
        size_(rows.classes * rows.several), tiles_(rows.classes, size_), z_(size_), t_(size_) {
    if (!rows.labels) b_.resize(size_);
    if (rows.upstream) upstream_.resize(size_);
    if (rows.labels && !rows.lam.per_sample) {
      shared_ = rows.label_targets(rows.sample(0));
      std::fill(t_.begin(), t_.end(), shared_.usual);
    }
  }

  // Returns the sum of the losses of n rows from `first` on. The pitch of a tile is its number of
  // rows, so that all its elements are one line.
  double run(int64_t first, int64_t n) {
    tiles_.load(z_.data(), n, rows_.logits, first, n);
    if (rows_.labels)
      put_labels(first, n);
    else
      put_targets(first, n);
    if (rows_.upstream) tiles_.load(upstream_.data(), n, *rows_.upstream, first, n);
    BinaryLine<A> line{};
    line.z = z_.data();
    line.t = t_.data();
    line.weight = spread(weight_, rows_.weight, n);
    line.pos_weight = spread(pos_weight_, rows_.pos_weight, n);
    line.upstream = rows_.upstream ? upstream_.data() : nullptr;
    line.out = z_.data();
    line.n = rows_.classes * n;
    line.scale = rows_.scale;
    const double sum = kernels_.binary[rows_.result][kArithmetic<A>](line);
    if (out_) tiles_.store(z_.data(), n, *out_, first, n);
    if (!rows_.lam.per_sample)
      for (int64_t at : written_) t_[at] = shared_.usual;
    written_.clear();
    return sum;
  }

private:
  // Calls f(k, count, sample, r) for the runs of rows of one sample: `count` rows from lane k on,
  // which are rows r, r+1, ... of the sample.
  template <class F> void over_samples(int64_t first, int64_t n, const F &f) const {
    for (int64_t k = 0, count; k < n; k += count) {
      const int64_t b = (first + k) / rows_.inner, r = first + k - b * rows_.inner;
      count = std::min(n - k, rows_.inner - r);
      f(k, count, rows_.sample(b), r);
    }
  }

  // With one λ, every entry of t_ is the usual target between two calls.
  void put_labels(int64_t first, int64_t n) {
    over_samples(first, n, [&](int64_t k, int64_t count, const LossSample &s, int64_t r) {
      const LabelTargets<A> targets = rows_.lam.per_sample ? rows_.label_targets(s) : shared_;
      for (int64_t c = 0; rows_.lam.per_sample && c < rows_.classes; ++c)
        std::fill_n(t_.data() + c * n + k, count, targets.usual);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t own = s.mine[r + i], other = s.theirs[r + i];
        const auto put = [&](int64_t label, A value) {
          t_[label * n + k + i] = value;
          written_.push_back(label * n + k + i);
        };
        put(own, own == other ? targets.both : targets.own);
        if (own != other) put(other, targets.other);
      }
    });
  }

  void put_targets(int64_t first, int64_t n) {
    // A target whose coefficient is 0 is absent, and is not read.
    const bool per_sample = rows_.lam.per_sample;
    if (per_sample || rows_.lam.own(0) != 0) tiles_.load(t_.data(), n, *rows_.target, first, n);
    if (per_sample || rows_.lam.other(0) != 0)
      over_samples(first, n, [&](int64_t k, int64_t count, const LossSample &s, int64_t r) {
        tiles_.load(b_.data() + k, n, *rows_.target_b, s.partner + r, count);
      });
    const auto blend = [&](int64_t at, int64_t count, const LossSample &s) {
      kernels_.binary_targets(t_.data() + at, b_.data() + at, count, rows_.blend(s));
    };
    if (!per_sample) return blend(0, rows_.classes * n, rows_.sample(0));
    over_samples(first, n, [&](int64_t k, int64_t count, const LossSample &s, int64_t) {
      for (int64_t c = 0; c < rows_.classes; ++c) blend(c * n + k, count, s);
    });
  }

  // The weight of each element of a tile of n rows, or null.
  const A *spread(std::vector<A> &tile, const std::vector<A> &weight, int64_t n) const {
    if (weight.empty()) return nullptr;
    if (static_cast<int64_t>(tile.size()) != rows_.classes * n) {
      tile.clear();
      for (int64_t c = 0; c < rows_.classes; ++c) tile.insert(tile.end(), n, weight[c]);
    }
    return tile.data();
  }

  const BinaryRows<A> &rows_;
  const GradientRows *out_;
  const LossKernels<A> &kernels_;
  int64_t size_;
  TileCopies<A> tiles_;
  std::vector<A> z_, t_, b_, upstream_, weight_, pos_weight_; // tiles; z_ also takes the result
  LabelTargets<A> shared_{};                                  // if λ is the same for all rows
  std::vector<int64_t> written_;                              // entries of t_ to restore
};

} // namespace mmix
