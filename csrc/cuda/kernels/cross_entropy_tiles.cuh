// Short rows, of any layout. A block loads a tile of rows into shared memory, and next to it the
// spread if that is dense. A few lanes of a warp own each row there. The gradient replaces the
// logits in shared memory, and then the tile is written out. So memory is read and written in order
// even if a row has 10 classes or the classes are far apart.
#pragma once
#include "cuda/kernels/cross_entropy_mean.cuh"

namespace mmix {

constexpr int kTileThreads = 256;

// The layout of a tile in a tensor. kFlat: rows without gaps, so that the tile is one piece of
// memory. kRowsNear: the stride from row to row is smaller than from class to class, as in (B, C,
// d1, ...). kClassesNear: all others.
enum class TileOrder { kFlat, kClassesNear, kRowsNear };

__host__ MMIX_DEVICE TileOrder tile_order(const RowLayout &at, int classes) {
  if (at.class_stride != 1)
    return at.stride[0] < at.class_stride ? TileOrder::kRowsNear : TileOrder::kClassesNear;
  return at.dims == 1 && at.stride[0] == classes ? TileOrder::kFlat : TileOrder::kClassesNear;
}

struct TilesPlan {
  int lanes, rows; // lanes*rows threads; powers of two
  int pitch;       // stride from row to row in shared memory; `classes` for kFlat
  TileOrder logits, gradient;
};

// Copies a tile between global and shared memory; row i, class c is at shared[i*pitch + c].
// kOut: to global memory. Else wait_copies() waits for it.
template <bool kOut, class T>
MMIX_DEVICE void copy_tile(T *global, const RowLayout &layout, TileOrder order, T *shared,
                           int64_t first, int rows, int classes, const TilesPlan &plan) {
  const auto copy = [&](int64_t at, int i) {
    if (kOut)
      store(global + at, shared[i]);
    else
      copy_one(shared + i, global + at);
  };
  const int threads = blockDim.x, tid = threadIdx.x;
  if (order == TileOrder::kFlat) {
    constexpr int kWidth = Vec<T>::kCount;
    const int count = rows * classes;
    global += first * classes;
    // The tile in shared memory has the misalignment of the logits. The gradient may have another
    // one.
    const bool packed = misalignment(global) == misalignment(shared);
    const int head = packed ? min(count, (kWidth - misalignment(global)) % kWidth) : count;
    const int packs = (count - head) / kWidth, tail = head + packs * kWidth;
    for (int i = tid; i < head; i += threads) copy(i, i);
    for (int k = tid; k < packs; k += threads) {
      auto *vec = reinterpret_cast<Vec<T> *>(shared + head) + k;
      if (kOut)
        store_vec(global + head + k * kWidth, *vec);
      else
        copy_vec(&vec->raw, global + head + k * kWidth);
    }
    for (int i = tail + tid; i < count; i += threads) copy(i, i);
    return;
  }
  const bool rows_near = order == TileOrder::kRowsNear;
  const int i = rows_near ? tid % plan.rows : tid / plan.lanes;
  if (i >= rows) return;
  const int64_t row_at = layout.offset(first + i);
  for (int c = rows_near ? tid / plan.rows : tid % plan.lanes; c < classes; c += plan.lanes)
    copy(row_at + c * layout.class_stride, i * plan.pitch + c);
}

// The number of lanes that reads a row in the fewest accesses: one for each vector, or one for each
// class of its two ends.
MMIX_DEVICE int lanes_for(int classes, int width) {
  const int most = max(classes / width, 2 * (width - 1));
  int lanes = 1;
  while (lanes < 32 && lanes < most) lanes *= 2;
  return lanes;
}

// Loads the spread of the tile's rows. Every thread of the block must call it.
template <class Real>
MMIX_DEVICE void read_spread(const LossProblem &a, const LossRow<Real> *rows, int count, Real *t,
                             const TilesPlan &plan) {
  each_term(a, [&](int term) {
    const Values &values = a.terms[term];
    const int tid = threadIdx.x, threads = blockDim.x;
    int i = tid % plan.rows, step = plan.rows; // kRowsNear: threads run along rows
    ThreadGroup group{tid / plan.rows, plan.lanes};
    if (tile_order(values.at, a.classes) != TileOrder::kRowsNear) {
      int width = 1; // of an access, in classes
      values.typed([&](const auto *p) {
        if (wide(p, a.classes)) width = Vec<std::remove_cvref_t<decltype(*p)>>::kCount;
      });
      const int lanes = lanes_for(a.classes, width);
      i = tid / lanes, step = threads / lanes;
      group = {tid % lanes, lanes};
    }
#pragma unroll 1
    for (; i < count; i += step)
      spread_term(a, rows[i], term, 0, a.classes, t + i * plan.pitch, group);
  });
}

// Shared memory: the scratch, the tile's LossRows, the spread if it is dense, the logits.
template <class Real> __host__ MMIX_DEVICE size_t tile_rows_bytes(const TilesPlan &plan) {
  static_assert(sizeof(LossRow<Real>) * 2 % 16 == 0); // there are at least 2 rows
  return sizeof(LossScratch) + plan.rows * sizeof(LossRow<Real>);
}
template <class Real>
__host__ MMIX_DEVICE size_t tile_spread_bytes(const TilesPlan &plan, bool dense) {
  return dense ? (plan.rows * plan.pitch * sizeof(Real) + 15) / 16 * 16 : 0;
}

// A block takes every gridDim-th tile.
template <class T, bool kGeneral>
__global__ void __launch_bounds__(kTileThreads, 4)
    cross_entropy_tiles(const __grid_constant__ LossProblem a, const TilesPlan plan) {
  using Real = Acc<T>;
  if (rescale_is_noop<Real>(a)) return;
  LossScratch &scratch = *dynamic_shared<LossScratch>();
  LossRow<Real> *rows = reinterpret_cast<LossRow<Real> *>(&scratch + 1);
  Real *spreads = reinterpret_cast<Real *>(rows + plan.rows);
  const bool dense = kGeneral && a.dense;
  T *logits = const_cast<T *>(static_cast<const T *>(a.logits));
  double loss = 0;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * plan.rows;
  const unsigned step = gridDim.x * plan.rows;
#pragma unroll 1
  for (int64_t first = begin; first < a.rows; first += step) {
    const int count = a.rows - first < plan.rows ? static_cast<int>(a.rows - first) : plan.rows;
    const int ahead =
        plan.logits == TileOrder::kFlat ? misalignment(logits + first * a.classes) : 0;
    T *tile = reinterpret_cast<T *>(reinterpret_cast<char *>(spreads) +
                                    tile_spread_bytes<Real>(plan, dense)) +
              ahead;
    if (first != begin) __syncthreads(); // the threads are done with the tile before
    copy_tile<false>(logits, a.logits_at, plan.logits, tile, first, count, a.classes, plan);
    const int i = threadIdx.x;
    const LabelPair pair = i < plan.rows ? pair_of_row(a, first + i) : LabelPair{};
    if (first == begin) make_scales<Real>(a, scratch);
    if (i < plan.rows) rows[i] = loss_row<Real>(a, first + i, pair, scratch.scales);
    wait_copies();
    __syncthreads(); // tile and rows[] are complete
    if (dense) read_spread(a, rows, count, spreads, plan);

    const int index = threadIdx.x / plan.lanes, lane = threadIdx.x % plan.lanes;
    const int classes = index < count ? a.classes : 0;
    const LossRow<Real> &row = rows[index];
    T *z = tile + index * plan.pitch;
    const Real *t = spreads + index * plan.pitch;
    const auto spread = [&](int c) { return dense ? t[c] : row.base; };
    const auto logit = [&](int c) { return kGeneral ? capped(a, widen(z[c])) : widen(z[c]); };
    RowSums<Real> sums;
    for (int c = lane; c < classes; c += plan.lanes) sums.max = max_of(sums.max, logit(c));
    const Real pivot = pivot_of(sums.max);
    Real shifted_sum = 0, seen = 0;
    for (int c = lane; c < classes; c += plan.lanes) {
      const Real shifted = logit(c) - pivot;
      sums.exp_sum += exp_of(shifted);
      if (kGeneral)
        sums.add_term(spread(c), shifted);
      else
        shifted_sum += shifted, seen += 1;
    }
    if (!kGeneral && row.base != 0) {
      sums.mass += row.base * seen;
      sums.dot += row.base * shifted_sum;
    }
    if (row.y_own >= 0 && row.y_own % plan.lanes == lane)
      sums.add_term(row.hot_own, logit(row.y_own) - pivot);
    if (row.y_other >= 0 && row.y_other % plan.lanes == lane)
      sums.add_term(row.hot_other, logit(row.y_other) - pivot);
    sums = merge_lanes(sums, plan.lanes);
    RowResult<Real> result(sums, a.of_shard);
    loss += finish_row(a, first + index, lane == 0, row, result);

    if (first + step >= a.rows) post_loss(a, loss, scratch);
    if (!a.gradient) continue;
    const RowGradient<Real> gradient_of(row, result, mass_of(a, row, result, dense));
    for (int c = lane; c < classes; c += plan.lanes) {
      const Real at = logit(c);
      Real g = gradient_of(at, spread(c));
      if (c == row.y_own) g -= row.hot_own;
      if (c == row.y_other) g -= row.hot_other;
      if (kGeneral) g = through_cap(a, g, at);
      z[c] = narrow<T>(row.live ? g : Real(0));
    }
    __syncthreads(); // the gradients of the tile are complete
    copy_tile<true>(static_cast<T *>(a.gradient), a.gradient_at, plan.gradient, tile, first, count,
                    a.classes, plan);
  }
  write_total<Real>(a, scratch);
}

} // namespace mmix
