// The work of one thread on tiles of consecutive rows. Vectors run across the rows, one row in each
// lane. Used for logits that have stride 1 along rows, e.g. (B, C, H, W), and for rows so short
// that vectors along the classes would be mostly partial.
#pragma once
#include "cpu/loss_rows.h"
#include "cpu/loss_tiles.h"
#include <algorithm>
#include <numeric>

namespace mmix {

// Copies the logits of a tile to scratch, [classes][lanes], and the gradient from scratch to
// memory.
template <class A> class AcrossRows {
public:
  static int64_t rows_at_a_time(const LossRows<A> &rows) { return tile_rows<A>(rows); }

  AcrossRows(const LossRows<A> &rows, const GradientRows *out)
      : rows_(rows), out_(out), kernels_(row_kernels().loss<A>()), lanes_(rows_at_a_time(rows)),
        cap_(rows.args.softcap), given_(2 * lanes_), labels_(2 * lanes_, none()), partners_(lanes_),
        size_(rows.classes * lanes_), z_(size_ + lanes_), tiles_(rows.classes, size_),
        numbers_(kTileArrays * lanes_), row_{numbers_.data(), lanes_} {
    if (cap_ != 0) apart_.resize(z_.size());
    if (rows.spread == kWeights) u_ = rows.weights();
    if (rows.spread == kTargets) {
      t_.resize(size_);
      u_ = t_.data();
    }
    std::fill_n(row_[kUOwn], 2 * lanes_, A(1));
    std::fill_n(row_[kLive], lanes_, A(1));
    std::fill_n(row_[kSpread], lanes_, static_cast<A>(rows.scales.spread_own)); // for kTargets
    std::fill_n(row_[kZCoef], lanes_, static_cast<A>(rows.scales.z));
    if (!rows.lam.per_sample) share(rows.sample(0), 0, lanes_);
    if (rows.spread == kOnes || rows.spread == kWeights) find_mass(); // the same for every row
  }

  // Returns the sum of the losses. If `out` is not null, stores each loss there too. upstream: the
  // upstream gradient, used if there is a gradient to write.
  double forward(int64_t first, int64_t n, Softmax<A> *stats, A *out, double upstream) {
    load(first, n);
    A *exps = out_ ? gradient() : nullptr;
    kernels_.tile_sums(z_.data(), rows_.spread, u_, rows_.classes, row_, exps);
    kernels_.tile_losses(row_);
    const A *max = row_[kMax], *log_sum = row_[kLogSum];
    for (int64_t k = 0; k < n; ++k) stats[k] = {max[k], log_sum[k]};
    if (out) std::copy_n(row_[kLoss], n, out);
    const double sum = sum_of_losses(n);
    if (out_) {
      std::fill_n(row_[kUpstream], lanes_, static_cast<A>(upstream));
      store(first, n, exps, true);
    }
    return sum;
  }

  void backward(int64_t first, int64_t n, const Softmax<A> *stats, const A *grad, bool per_row) {
    load(first, n);
    for (int64_t k = 0; k < n; ++k) {
      row_[kMax][k] = stats[k].max;
      row_[kLogSum][k] = stats[k].log_sum;
      row_[kUpstream][k] = grad[per_row ? first + k : 0];
    }
    store(first, n, z_.data(), false);
  }

private:
  double sum_of_losses(int64_t n) {
    const A *loss = row_[kLoss];
    double sums[4] = {}; // four sums: with one, each addition would wait for the last
    std::fill(row_[kLoss] + n, row_[kLoss] + lanes_, A(0)); // of lanes without a row
    for (int64_t k = 0; k < lanes_; k += 4)
      for (int64_t i = 0; i < 4; ++i) sums[i] += loss[k + i];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  // Where exponentials and gradient are written: over the logits or, with a softcap, to apart_,
  // because the derivative of the cap needs the capped logits.
  A *gradient() { return cap_ != 0 ? apart_.data() : z_.data(); }

  // The label for "no label". The tile has one extra class for it: its logit is read and its
  // gradient entry is written, but they have no effect. A branch for each row would cost more.
  LabelOf<A> none() const { return static_cast<LabelOf<A>>(rows_.classes); }

  void load(int64_t first, int64_t n) {
    find(first, n);
    tiles_.load(z_.data(), lanes_, rows_.logits, first, n);
    if (cap_ != 0) kernels_.cap(z_.data(), size_, cap_);
    if (rows_.spread == kTargets) {
      load_targets(first, n);
      find_mass();
    }
    if (rows_.labels) {
      take(row_[kLogitOwn], z_.data(), labels_.data());
      take(row_[kLogitOther], z_.data(), labels_.data() + lanes_);
    }
  }

  void find_mass() { kernels_.tile_mass(rows_.spread, u_, rows_.classes, row_); }

  // to[k] = the element of the tile for row k and its label.
  void take(A *to, const A *tile, const LabelOf<A> *labels) const {
    const int64_t lanes = lanes_;
    for (int64_t k = 0; k < lanes; ++k) to[k] = tile[labels[k] * lanes + k];
  }
  // Writes from[k] to the element of the tile for row k and its label.
  void put(A *tile, const LabelOf<A> *labels, const A *from) const {
    const int64_t lanes = lanes_;
    for (int64_t k = 0; k < lanes; ++k) tile[labels[k] * lanes + k] = from[k];
  }

  // Finds the labels or partners, and the coefficients, of n rows from `first` on.
  void find(int64_t first, int64_t n) {
    int64_t b = first / rows_.inner, r = first - b * rows_.inner;
    for (int64_t k = 0, count; k < n; k += count, ++b, r = 0) {
      const LossSample sample = rows_.sample(b);
      count = std::min(n - k, rows_.inner - r);
      if (rows_.lam.per_sample) share(sample, k, count);
      if (rows_.labels) {
        std::copy_n(sample.mine + r, count, given_.data() + k);
        std::copy_n(sample.theirs + r, count, given_.data() + lanes_ + k);
      } else {
        std::iota(partners_.data() + k, partners_.data() + k + count, sample.partner + r);
      }
    }
    if (!rows_.labels) return;
    LabelOf<A> *own = labels_.data(), *other = own + lanes_;
    kernels_.narrow_labels(own, given_.data(), 2 * lanes_, rows_.args.ignore_index, none());
    if (const A *weights = rows_.weights()) {
      for (int64_t k = 0; k < lanes_; ++k) {
        row_[kUOwn][k] = weights[own[k]];
        row_[kUOther][k] = weights[other[k]];
      }
    }
    any_dead_ = kernels_.tile_labels(own, other, none(), rows_.scales, row_);
  }

  // Sets λ and 1-λ of `count` lanes from k on, whose rows belong to this sample.
  void share(const LossSample &sample, int64_t k, int64_t count) {
    std::fill_n(row_[kOwn] + k, count, static_cast<A>(sample.own));
    std::fill_n(row_[kOther] + k, count, static_cast<A>(sample.other));
  }

  void load_targets(int64_t first, int64_t n) {
    // A target with a coefficient of exactly 0 is absent, and is not read.
    const auto any = [&](TileArray name) {
      return std::any_of(row_[name], row_[name] + n, [](A coef) { return coef != 0; });
    };
    const bool both = any(kOther);
    if (any(kOwn)) tiles_.load(t_.data(), lanes_, *rows_.target, first, n);
    b_.resize(both ? size_ : 0);
    for (int64_t k = 0, end; both && k < n; k = end) { // runs of consecutive partners
      for (end = k + 1; end < n && partners_[end] == partners_[end - 1] + 1;) ++end;
      tiles_.load(b_.data() + k, lanes_, *rows_.target_b, partners_[k], end - k);
    }
    kernels_.blend_tile(t_.data(), both ? b_.data() : nullptr, rows_.weights(), rows_.classes, row_,
                        rows_.smoothing.keep, rows_.smoothing.base);
  }

  // from: the exponentials if `kept`, else the logits.
  void store(int64_t first, int64_t n, const A *from, bool kept) {
    A *to = gradient();
    kernels_.tile_coefficients(row_);
    kernels_.tile_gradient(to, from, kept, rows_.spread, u_, rows_.classes, row_);
    if (rows_.labels) {
      put(to, labels_.data(), row_[kEntryOwn]);
      put(to, labels_.data() + lanes_, row_[kEntryOther]);
    }
    for (int64_t k = 0; any_dead_ && k < n; ++k)
      for (int64_t c = 0; row_[kLive][k] == 0 && c < rows_.classes; ++c) to[c * lanes_ + k] = 0;
    if (cap_ != 0) kernels_.uncap(to, z_.data(), size_, cap_);
    tiles_.store(to, lanes_, *out_, first, n);
  }

  const LossRows<A> &rows_;
  const GradientRows *out_;
  const LossKernels<A> &kernels_;
  int64_t lanes_;
  double cap_;
  std::vector<int64_t> given_;       // labels as passed: the rows' own, then their partners'
  std::vector<LabelOf<A>> labels_;   // after tile_labels: the labels that count, else none()
  std::vector<int64_t> partners_;    // the partner's row in target_b, for each lane
  int64_t size_;                     // elements of a tile
  std::vector<A> z_, apart_, t_, b_; // tiles
  TileCopies<A> tiles_;
  std::vector<A> numbers_;
  TileRows<A> row_;
  const A *u_ = nullptr; // see Spread
  bool any_dead_ = false;
};

} // namespace mmix
