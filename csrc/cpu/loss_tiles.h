// Tiles of consecutive rows in scratch memory, [classes][pitch], one row in each lane, and the
// copies to and from memory of any dtype and stride.
#pragma once
#include "cpu/loss_worker.h"
#include <algorithm>

namespace mmix {

// A tile has at most kLossTileBytes, so that it stays in the L1 cache together with the other
// arrays. It has at most kRunBytes of each class: longer runs were not faster. If even the smallest
// number of lanes needs more, the tile has that number.
constexpr int64_t kLossTileBytes = 16384, kRunBytes = 512;
constexpr int64_t kAhead = 3; // classes to prefetch ahead

// The rows of a tile. A: the type of the arithmetic.
template <class A> int64_t tile_rows(const PairedRows &rows) {
  const int64_t least = row_kernels().loss<A>().lanes, bytes = sizeof(A);
  const int64_t fit = kLossTileBytes / bytes / std::max<int64_t>(rows.classes, 1);
  const int64_t most = kRunBytes / element_size(rows.logits.type);
  const int64_t needed = (rows.count + least - 1) / least * least;
  return std::max(least, std::min({fit / least * least, most, needed}));
}

template <class A> class TileCopies {
public:
  // size: the elements of the largest tile.
  TileCopies(int64_t classes, int64_t size)
      : kernels_(row_kernels().loss<A>()), classes_(classes), size_(size) {}

  // Copies n rows from `first` on to the lanes from `tile` on.
  void load(A *tile, int64_t pitch, const RowView &view, int64_t first, int64_t n) {
    over_runs(view, first, n, [&](int64_t k, int64_t rows, int64_t offset) {
      const int64_t classes = classes_, step = view.step();
      if (view.rows_adjacent())
        return over_classes(view, offset, rows, [&](int64_t c, int64_t at) {
          kernels_.widen[view.type](tile + c * pitch + k, view.at(at), rows);
        });
      const char *at = view.at(offset);
      if (view.class_stride == 1 && view.type == kArithmetic<A>)
        return kernels_.transpose(tile + k, pitch, reinterpret_cast<const A *>(at), step, rows,
                                  classes);
      row_major_.resize(size_);
      const int64_t together = adjoining(view) ? rows : 1;
      for (int64_t i = 0; i < rows; i += together)
        gather(kernels_, row_major_.data() + i * classes, view.at(offset + i * step), view.type,
               view.class_stride, together * classes);
      kernels_.transpose(tile + k, pitch, row_major_.data(), classes, rows, classes);
    });
  }

  void store(const A *tile, int64_t pitch, const GradientRows &out, int64_t first, int64_t n) {
    const RowView &view = out.view;
    over_runs(view, first, n, [&](int64_t k, int64_t rows, int64_t offset) {
      const int64_t classes = classes_, step = view.step();
      if (view.rows_adjacent())
        return over_classes<true>(view, offset, rows, [&](int64_t c, int64_t at) {
          kernels_.narrow[view.type](out.at(at), tile + c * pitch + k, rows);
        });
      if (view.class_stride == 1 && view.type == kArithmetic<A>)
        return kernels_.transpose(reinterpret_cast<A *>(out.at(offset)), step, tile + k, pitch,
                                  classes, rows);
      row_major_.resize(size_);
      kernels_.transpose(row_major_.data(), classes, tile + k, pitch, classes, rows);
      const int64_t together = adjoining(view) ? rows : 1;
      for (int64_t i = 0; i < rows; i += together)
        scatter(kernels_, out.at(offset + i * step), view.type, view.class_stride,
                row_major_.data() + i * classes, together * classes);
    });
  }

private:
  // Splits n rows from `first` on into runs with a constant stride. Calls run(k, rows, offset) for
  // each run: `rows` rows from row first + k on, at `offset`.
  template <class Run>
  static void over_runs(const RowView &view, int64_t first, int64_t n, const Run &run) {
    const int64_t size = view.dims.empty() ? 1 : view.dims[0].size;
    for (int64_t k = 0, rows; k < n; k += rows) {
      rows = std::min(n - k, size - (first + k) % size);
      run(k, rows, view.offset(first + k));
    }
  }

  // Whether consecutive rows are contiguous in memory, without gaps.
  bool adjoining(const RowView &view) const {
    return view.class_stride == 1 && view.step() == classes_;
  }

  // Calls f(c, offset) for each class c of the run of rows at `offset`, with the offset of that
  // class. Prefetches kAhead classes ahead: classes are too far apart for the hardware prefetcher.
  template <bool kWrite = false, class F>
  void over_classes(const RowView &view, int64_t offset, int64_t rows, const F &f) const {
    const int64_t bytes = rows * element_size(view.type);
    for (int64_t c = 0; c < classes_; ++c, offset += view.class_stride) {
      const char *ahead = view.at(offset + kAhead * view.class_stride);
      for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(ahead + byte, kWrite);
      f(c, offset);
    }
  }

  const LossKernels<A> &kernels_;
  int64_t classes_, size_;
  std::vector<A> row_major_;
};

} // namespace mmix
