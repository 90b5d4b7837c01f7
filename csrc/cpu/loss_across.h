// One thread's work on tiles of neighbouring rows: vectors run across the rows, a lane for each.
// For classes that are not neighbours in memory, where the rows are, and for rows so short that a
// vector along the classes would be mostly its own tail.
#pragma once
#include "cpu/loss_worker.h"
#include <algorithm>

namespace mmix {

// A tile stays in the L1 cache with what is beside it, and takes so many bytes of a class at most:
// longer runs gained nothing. It has the fewest lanes there are where that is not possible.
constexpr int64_t kLossTileBytes = 24576, kRunBytes = 512;
constexpr int64_t kAhead = 3; // classes

// The logits of a tile are copied to scratch, [classes][lanes], and the gradient is copied back.
template <class A> class AcrossRows {
public:
  static int64_t rows_at_a_time(const LossRows<A> &rows) {
    const int64_t least = row_kernels().loss<A>().lanes, bytes = sizeof(A);
    const int64_t fit = kLossTileBytes / bytes / std::max<int64_t>(rows.classes, 1);
    const int64_t most = kRunBytes / element_size(rows.logits.type);
    const int64_t needed = (rows.count + least - 1) / least * least;
    return std::max(least, std::min({fit / least * least, most, needed}));
  }

  AcrossRows(const LossRows<A> &rows, const GradientRows *out)
      : rows_(rows), out_(out), kernels_(row_kernels().loss<A>()), lanes_(rows_at_a_time(rows)),
        cap_(rows.args.softcap), labels_(2 * lanes_), partners_(lanes_), offsets_(lanes_),
        z_(rows.classes * lanes_), numbers_(kTileArrays * lanes_), row_{numbers_.data(), lanes_} {
    if (cap_ != 0) apart_.resize(z_.size());
    if (rows.spread == kWeights) u_ = rows.weights();
    if (rows.spread == kTargets) {
      t_.resize(z_.size());
      u_ = t_.data();
    }
    std::fill_n(row_[kUOwn], 2 * lanes_, A(1));
    if (rows.spread == kOnes || rows.spread == kWeights) find_mass(); // the same for every row
  }

  // upstream: of the gradient, where there is one to write.
  void forward(int64_t first, int64_t n, Softmax<A> *stats, double *loss, double upstream) {
    load(first, n);
    A *exps = out_ ? gradient() : nullptr;
    kernels_.tile_sums(z_.data(), rows_.spread, u_, rows_.classes, row_, exps);
    kernels_.tile_losses(row_);
    for (int64_t k = 0; k < n; ++k) {
      stats[k] = {row_[kMax][k], row_[kLogSum][k]};
      loss[k] = row_[kLoss][k];
    }
    if (!out_) return;
    std::fill_n(row_[kUpstream], lanes_, static_cast<A>(upstream));
    store(first, n, exps, true);
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
  // Where exponentials and gradient go: over the logits, unless the cap's derivative needs them.
  A *gradient() { return cap_ != 0 ? apart_.data() : z_.data(); }

  void load(int64_t first, int64_t n) {
    find(first, n);
    place(rows_.logits, first, n);
    load_tile(z_.data(), rows_.logits, n);
    if (cap_ != 0) kernels_.cap(z_.data(), static_cast<int64_t>(z_.size()), cap_);
    if (rows_.spread == kTargets) {
      load_targets(first, n);
      find_mass();
    }
    const TileRows<A> row = row_;
    for_labels(n, [row, z = z_.data()](int64_t at, int64_t, int64_t k, bool other) {
      row[other ? kLogitOther : kLogitOwn][k] = z[at];
    });
    if (rows_.spread == kWeights)
      for_labels(n, [row, u = u_](int64_t, int64_t y, int64_t k, bool other) {
        row[other ? kUOther : kUOwn][k] = u[y];
      });
  }

  void find_mass() { kernels_.tile_mass(rows_.spread, u_, rows_.classes, row_); }

  // Calls f(the label's place in a tile, label, row, whether it is the partner's).
  template <class F> void for_labels(int64_t n, const F &f) const {
    const int64_t lanes = lanes_, *own = labels_.data(), *other = own + lanes;
    for (int64_t k = 0; k < n; ++k) {
      if (own[k] >= 0) f(own[k] * lanes + k, own[k], k, false);
      if (other[k] >= 0) f(other[k] * lanes + k, other[k], k, true);
    }
  }

  // The coefficients of rows first, first + 1, ...; kSpread and kZCoef stay 0 where no row has
  // them.
  void find(int64_t first, int64_t n) {
    const TileRows<A> to = row_; // a copy, which no store can change
    const bool smooth = rows_.spread != kNone, squared = rows_.args.z_loss != 0;
    const bool soft = rows_.spread == kTargets;
    int64_t b = first / rows_.inner, r = first - b * rows_.inner, dead = 0;
    int64_t *own = labels_.data(), *other = own + lanes_, *partner = partners_.data();
    for (int64_t k = 0; k < n; ++b, r = 0) {
      const LossSample<A> sample = rows_.sample(b);
      const int64_t rest = k - r, end = std::min(n, rest + rows_.inner);
      for (int64_t i = k; i < end && soft; ++i) {
        to[kOwn][i] = static_cast<A>(sample.own);
        to[kOther][i] = static_cast<A>(sample.other);
        partner[i] = sample.partner + i - rest;
      }
      for (; k < end; ++k) {
        const LossRow row = sample.row(k - rest);
        own[k] = row.y_own;
        other[k] = row.y_other;
        dead += !row.live;
        to[kLive][k] = row.live;
        to[kHotOwn][k] = static_cast<A>(row.hot_own);
        to[kHotOther][k] = static_cast<A>(row.hot_other);
        if (smooth) to[kSpread][k] = static_cast<A>(row.spread);
        if (squared) to[kZCoef][k] = static_cast<A>(row.z_coef);
      }
    }
    any_dead_ = dead != 0;
  }

  void load_targets(int64_t first, int64_t n) {
    // A target with a coefficient of exactly 0 is absent, and is not read.
    const auto any = [&](TileArray name) {
      return std::any_of(row_[name], row_[name] + n, [](A coef) { return coef != 0; });
    };
    const bool both = any(kOther);
    if (any(kOwn)) {
      place(*rows_.target, first, n);
      load_tile(t_.data(), *rows_.target, n);
    }
    if (both) {
      b_.resize(t_.size());
      for (int64_t k = 0; k < n; ++k) offsets_[k] = rows_.target_b->offset(partners_[k]);
      load_tile(b_.data(), *rows_.target_b, n);
    }
    const double eps = rows_.args.label_smoothing;
    kernels_.blend_tile(t_.data(), both ? b_.data() : nullptr, rows_.weights(), rows_.classes, row_,
                        1 - eps, eps / rows_.classes);
  }

  // from: the logits, or the exponentials that the forward kept.
  void store(int64_t first, int64_t n, const A *from, bool kept) {
    A *to = gradient();
    kernels_.tile_coefficients(row_);
    kernels_.tile_gradient(to, from, kept, rows_.spread, u_, rows_.classes, row_);
    const TileRows<A> row = row_;
    for_labels(n, [row, to](int64_t at, int64_t, int64_t k, bool other) {
      to[at] = row[other ? kEntryOther : kEntryOwn][k];
    });
    for (int64_t k = 0; any_dead_ && k < n; ++k)
      for (int64_t c = 0; row[kLive][k] == 0 && c < rows_.classes; ++c) to[c * lanes_ + k] = 0;
    if (cap_ != 0) kernels_.uncap(to, z_.data(), static_cast<int64_t>(z_.size()), cap_);
    place(out_->view, first, n);
    store_tile(to, n);
  }

  // offsets_: where the rows first, first + 1, ... begin.
  void place(const RowView &view, int64_t first, int64_t n) {
    for (int64_t k = 0; k < n;) {
      int64_t at = view.offset(first + k);
      const int64_t size = view.sizes.empty() ? 1 : view.sizes[0];
      for (int64_t left = size - (first + k) % size; left > 0 && k < n; --left, at += view.step())
        offsets_[k++] = at;
    }
  }

  // Calls beside(k, rows) for runs of rows that are neighbours in memory while their classes are
  // not, and along(k, rows, distance) for others, whose rows lie `distance` apart.
  template <class Beside, class Along>
  void over_runs(const RowView &view, int64_t n, const Beside &beside, const Along &along) const {
    for (int64_t k = 0; k < n;) {
      int64_t end = k + 1;
      const int64_t step = end < n ? offsets_[end] - offsets_[k] : 0;
      while (end < n && offsets_[end] - offsets_[end - 1] == step) ++end;
      if (step == 1 && view.class_stride != 1)
        beside(k, end - k);
      else
        along(k, end - k, step);
      k = end;
    }
  }

  void load_tile(A *tile, const RowView &view, int64_t n) {
    const int64_t classes = rows_.classes;
    over_runs(
        view, n,
        [&](int64_t k, int64_t rows) {
          for (int64_t c = 0; c < classes; ++c) {
            // Classes are far apart, where no hardware prefetcher looks.
            const char *ahead = view.at(offsets_[k] + (c + kAhead) * view.class_stride);
            for (int64_t byte = 0; byte < rows * element_size(view.type); byte += 64)
              __builtin_prefetch(ahead + byte);
            kernels_.widen[view.type](tile + c * lanes_ + k,
                                      view.at(offsets_[k] + c * view.class_stride), rows);
          }
        },
        [&](int64_t k, int64_t rows, int64_t step) {
          if (view.class_stride == 1 && view.type == kArithmetic<A>) {
            const void *at = view.at(offsets_[k]);
            return kernels_.transpose(tile + k, lanes_, static_cast<const A *>(at), step, rows,
                                      classes);
          }
          row_major_.resize(z_.size());
          // Rows that follow one another are one run.
          const bool one = view.class_stride == 1 && step == classes;
          for (int64_t i = 0; i < rows; i += one ? rows : 1)
            gather(kernels_, row_major_.data() + i * classes, view.at(offsets_[k + i]), view.type,
                   view.class_stride, one ? rows * classes : classes);
          kernels_.transpose(tile + k, lanes_, row_major_.data(), classes, rows, classes);
        });
  }

  void store_tile(const A *tile, int64_t n) {
    const RowView &view = out_->view;
    const int64_t classes = rows_.classes;
    over_runs(
        view, n,
        [&](int64_t k, int64_t rows) {
          for (int64_t c = 0; c < classes; ++c)
            kernels_.narrow[view.type](out_->at(offsets_[k] + c * view.class_stride),
                                       tile + c * lanes_ + k, rows);
        },
        [&](int64_t k, int64_t rows, int64_t step) {
          if (view.class_stride == 1 && view.type == kArithmetic<A>) {
            void *at = out_->at(offsets_[k]);
            return kernels_.transpose(static_cast<A *>(at), step, tile + k, lanes_, classes, rows);
          }
          row_major_.resize(z_.size());
          kernels_.transpose(row_major_.data(), classes, tile + k, lanes_, classes, rows);
          const bool one = view.class_stride == 1 && step == classes;
          for (int64_t i = 0; i < rows; i += one ? rows : 1)
            scatter(kernels_, out_->at(offsets_[k + i]), view.type, view.class_stride,
                    row_major_.data() + i * classes, one ? rows * classes : classes);
        });
  }

  const LossRows<A> &rows_;
  const GradientRows *out_;
  const LossKernels<A> &kernels_;
  int64_t lanes_;
  double cap_;
  std::vector<int64_t> labels_;                  // the rows' own, then their partners'; -1: none
  std::vector<int64_t> partners_, offsets_;      // rows of the other target; places in memory
  std::vector<A> z_, apart_, t_, b_, row_major_; // tiles
  std::vector<A> numbers_;
  TileRows<A> row_;
  const A *u_ = nullptr; // as Spread says
  bool any_dead_ = false;
};

} // namespace mmix
