// One thread's work on tiles of neighbouring rows: vectors run across the rows, a lane for each. For
// classes that are not neighbours in memory, where the rows are, and for rows so short that a vector
// along the classes would be mostly its own tail.
#pragma once
#include "cpu/loss_worker.h"

namespace mmix {

// Tiles stay in the L1 cache with what is beside them, or have the fewest lanes there are.
constexpr int64_t kLossTileBytes = 16384, kMostLanes = 256;

// The logits of a tile are copied to scratch, [classes][lanes], and the gradient is copied back.
template <class A> class AcrossRows {
public:
  static int64_t rows_at_a_time(const LossRows<A> &rows) {
    const int64_t least = row_kernels().loss<A>().lanes;
    const int64_t fit = kLossTileBytes / static_cast<int64_t>(sizeof(A)) / std::max<int64_t>(rows.classes, 1);
    const int64_t few = (rows.count + least - 1) / least * least;
    return std::max(least, std::min({fit / least * least, kMostLanes, few}));
  }

  AcrossRows(const LossRows<A> &rows, const GradientRows *out)
      : rows_(rows), out_(out), kernels_(row_kernels().loss<A>()), lanes_(rows_at_a_time(rows)),
        cap_(rows.args.softcap), row_(lanes_), offsets_(lanes_), z_(rows.classes * lanes_),
        sums_(4 * lanes_), scale_(lanes_), spread_(lanes_), entries_(2 * lanes_) {
    if (cap_ != 0) apart_.resize(z_.size());
    if (rows.spread == kWeights) u_ = rows.weight.data();
    if (rows.spread == kTargets) {
      t_.resize(z_.size());
      own_.resize(lanes_);
      other_.resize(lanes_);
      u_ = t_.data();
    }
  }

  void forward(int64_t first, int64_t n, Softmax<A> *stats, double *loss) {
    load(first, n);
    const TileSums<A> sums = tile_sums();
    // The labels' logits, before the exponentials take their place.
    for (int64_t k = 0; k < n; ++k) {
      entries_[2 * k] = entry(z_, row_[k].y_own, k);
      entries_[2 * k + 1] = entry(z_, row_[k].y_other, k);
    }
    A *exps = out_ ? gradient() : nullptr;
    kernels_.tile_sums(z_.data(), rows_.spread, u_, rows_.classes, lanes_, sums, exps);
    for (int64_t k = 0; k < n; ++k) {
      const LossRow &row = row_[k];
      stats[k] = {};
      loss[k] = 0;
      if (!row.live) continue;
      stats[k] = {sums.max[k], std::log(sums.sum[k])};
      loss[k] = rows_.loss(row, stats[k], sums.dot[k], sums.mass[k], entries_[2 * k],
                           entries_[2 * k + 1]);
    }
    if (out_)
      store(first, n, stats, exps, nullptr, [](int64_t) { return A(1); });
  }

  void backward(int64_t first, int64_t n, const Softmax<A> *stats, const A *grad, bool per_row) {
    load(first, n);
    const TileSums<A> sums = tile_sums();
    if (rows_.spread != kNone)
      kernels_.tile_mass(rows_.spread, u_, rows_.classes, lanes_, sums.mass);
    for (int64_t k = 0; k < n; ++k) sums.max[k] = stats[k].max;
    store(first, n, stats, z_.data(), sums.max,
          [&](int64_t k) { return grad[per_row ? first + k : 0]; });
  }

private:
  TileSums<A> tile_sums() {
    A *at = sums_.data();
    return {at, at + lanes_, at + 2 * lanes_, at + 3 * lanes_};
  }
  // Where exponentials and gradient go: over the logits, unless the cap's derivative needs them.
  A *gradient() { return cap_ != 0 ? apart_.data() : z_.data(); }
  A entry(const std::vector<A> &tile, int64_t c, int64_t k) const {
    return c < 0 ? A(0) : tile[c * lanes_ + k];
  }

  void load(int64_t first, int64_t n) {
    for (int64_t k = 0; k < n; ++k) row_[k] = rows_.row(first + k);
    place(rows_.logits, first, n);
    load_tile(z_.data(), rows_.logits, n);
    if (cap_ != 0) kernels_.cap(z_.data(), static_cast<int64_t>(z_.size()), cap_);
    if (rows_.spread == kTargets) load_targets(first, n);
  }

  void load_targets(int64_t first, int64_t n) {
    bool any_own = false, any_other = false;
    for (int64_t k = 0; k < n; ++k) {
      own_[k] = static_cast<A>(row_[k].own);
      other_[k] = static_cast<A>(row_[k].other);
      any_own |= own_[k] != 0;
      any_other |= other_[k] != 0;
    }
    // A target with a coefficient of exactly 0 is absent, and is not read.
    if (any_own) {
      place(*rows_.target, first, n);
      load_tile(t_.data(), *rows_.target, n);
    }
    if (any_other) {
      b_.resize(t_.size());
      for (int64_t k = 0; k < n; ++k) offsets_[k] = rows_.target_b->offset(row_[k].partner);
      load_tile(b_.data(), *rows_.target_b, n);
    }
    const double eps = rows_.args.label_smoothing;
    kernels_.blend_tile(t_.data(), any_other ? b_.data() : nullptr,
                        rows_.weight.empty() ? nullptr : rows_.weight.data(), rows_.classes, lanes_,
                        own_.data(), other_.data(), 1 - eps, eps / rows_.classes);
  }

  // from: the exponentials, or with max the logits. upstream(k): the gradient of the k-th row's
  // loss.
  template <class Upstream>
  void store(int64_t first, int64_t n, const Softmax<A> *stats, const A *from, const A *max,
             const Upstream &upstream) {
    const TileSums<A> sums = tile_sums();
    for (int64_t k = 0; k < n; ++k) {
      const LossRow &row = row_[k];
      scale_[k] = spread_[k] = 0;
      if (!row.live) continue;
      const GradientRow g(row, stats[k], rows_.spread == kNone ? 0 : sums.mass[k], upstream(k));
      scale_[k] = static_cast<A>(g.scale);
      spread_[k] = static_cast<A>(g.spread);
      // The labels' entries are read before they are overwritten.
      const auto value = [&](int64_t y) {
        if (y < 0) return A(0);
        const A v = from[y * lanes_ + k], e = max ? std::exp(v - max[k]) : v;
        const A u = rows_.spread == kWeights ? u_[y] : A(1);
        return static_cast<A>(g.at_label(row, y, e, u));
      };
      entries_[2 * k] = value(row.y_own);
      entries_[2 * k + 1] = value(row.y_other);
    }
    A *to = gradient();
    kernels_.tile_gradient(to, from, rows_.spread, u_, rows_.classes, lanes_, max, scale_.data(),
                           spread_.data());
    for (int64_t k = 0; k < n; ++k) {
      const LossRow &row = row_[k];
      if (row.y_own >= 0) to[row.y_own * lanes_ + k] = entries_[2 * k];
      if (row.y_other >= 0) to[row.y_other * lanes_ + k] = entries_[2 * k + 1];
      for (int64_t c = 0; !row.live && c < rows_.classes; ++c) to[c * lanes_ + k] = 0;
    }
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
          for (int64_t c = 0; c < classes; ++c)
            kernels_.widen[view.type](tile + c * lanes_ + k,
                                      view.at(offsets_[k] + c * view.class_stride), rows);
        },
        [&](int64_t k, int64_t rows, int64_t step) {
          if (view.class_stride == 1 && view.type == kArithmetic<A>) {
            const void *at = view.at(offsets_[k]);
            return kernels_.transpose(tile + k, lanes_, static_cast<const A *>(at), step, rows,
                                      classes);
          }
          row_major_.resize(z_.size());
          for (int64_t i = 0; i < rows; ++i)
            gather(kernels_, row_major_.data() + i * classes, view.at(offsets_[k + i]), view.type,
                   view.class_stride, classes);
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
          for (int64_t i = 0; i < rows; ++i)
            scatter(kernels_, out_->at(offsets_[k + i]), view.type, view.class_stride,
                    row_major_.data() + i * classes, classes);
        });
  }

  const LossRows<A> &rows_;
  const GradientRows *out_;
  const LossKernels<A> &kernels_;
  int64_t lanes_;
  double cap_;
  std::vector<LossRow> row_;
  std::vector<int64_t> offsets_;
  std::vector<A> z_, apart_, t_, b_, row_major_; // tiles
  std::vector<A> sums_, scale_, spread_, own_, other_;
  std::vector<A> entries_; // of both labels, a pair for each row
  const A *u_ = nullptr;   // as Spread says
};

} // namespace mmix
