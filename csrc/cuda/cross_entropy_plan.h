// How the rows of a loss are shared out: which kernel, how many lanes to a row and rows to a block.
// No torch, no device: numbers in, numbers out.
#pragma once
#include "kernels/cross_entropy_rows.cuh"
#include "kernels/cross_entropy_tiles.cuh"
#include <algorithm>

namespace mmix {

// Below this, a row's unaligned ends weigh more than a detour through shared memory does.
constexpr int64_t kShortRow = 1024; // bytes
// A tile of 8 rows of this many bytes leaves room for half of the threads an SM can have.
constexpr int64_t kLongestInTile = 4096;
constexpr int64_t kTileLaneBytes = 64; // of a row, to a lane, while a warp has lanes left
constexpr int64_t kUsualDepth = 8;     // packs of 16 bytes to a lane, while a block has lanes left
constexpr int kMostBlocks = 8;         // of a cluster, on any GPU that has clusters
constexpr int64_t kRowsOverhead = rows_shared_bytes<double>(0, 0, true);

struct LossPlan {
  bool general;       // more than labels: per-class targets or weights, softcap
  bool tiled, packed; // general float64 rows are not packed: that kernel would spill registers
  TilesPlan tiles;
  RowsPlan rows;
  unsigned threads;
  int64_t blocks;
};

inline TileOrder tile_order(const RowLayout &at, int classes) {
  if (at.class_stride != 1)
    return at.stride[0] < at.class_stride ? TileOrder::kRowsNear : TileOrder::kClassesNear;
  return at.dims == 1 && at.stride[0] == classes ? TileOrder::kFlat : TileOrder::kClassesNear;
}

// Whether every row of the gradient is as far from 16-byte alignment as that row of the logits.
inline bool aligned_alike(const LossProblem &a, int64_t element) {
  const RowLayout &z = a.logits_at, &g = a.gradient_at;
  if (z.class_stride != 1) return false;
  if (!a.gradient) return true;
  const auto apart = [&](int64_t x, int64_t y) { return (x - y) * element % 16 != 0; };
  if (g.class_stride != 1 || z.dims != g.dims) return false;
  if ((reinterpret_cast<uintptr_t>(a.logits) - reinterpret_cast<uintptr_t>(a.gradient)) % 16 != 0)
    return false;
  for (int d = 0; d < z.dims; ++d)
    if (z.size[d].n != g.size[d].n || (z.size[d].n > 1 && apart(z.stride[d], g.stride[d])))
      return false;
  return true;
}

// `sms`: with fewer blocks than twice this, threads are moved from rows that share a block to more
// blocks, and to more lanes a row. `shared`: the bytes a block may have. `clusters`: whether
// blocks may share a row.
inline LossPlan plan_loss(const LossProblem &a, int64_t element, int sms, int64_t shared,
                          bool clusters) {
  LossPlan plan{};
  const int64_t row_bytes = a.classes * element, width = 16 / element;
  plan.general = !a.labels || a.softcap != 0 || (a.weight.data && a.smoothing != 0);
  plan.packed = aligned_alike(a, element) && !(plan.general && element == 8);
  plan.tiled = row_bytes < kShortRow || (row_bytes <= kLongestInTile && !plan.packed);
  const auto few = [&](int64_t rows_a_block) { return a.rows < 2 * sms * rows_a_block; };
  if (plan.tiled) {
    plan.threads = kTileThreads;
    int lanes = 1;
    while (lanes < 32 && lanes * kTileLaneBytes < row_bytes) lanes *= 2;
    while (plan.threads > 64 && few(plan.threads / lanes)) plan.threads /= 2;
    const int rows = static_cast<int>(plan.threads) / lanes;
    plan.tiles = {lanes, rows, tile_order(a.logits_at, a.classes),
                  tile_order(a.gradient_at, a.classes)};
    plan.blocks = (a.rows + rows - 1) / rows;
    return plan;
  }
  const int64_t packs = std::max<int64_t>(1, a.classes / width);
  int lanes = 32;
  while (lanes < kRowThreads && lanes * kUsualDepth < packs) lanes *= 2;
  while (lanes < kRowThreads && lanes < packs && a.rows * lanes < int64_t{sms} * kRowThreads)
    lanes *= 2;
  plan.threads = std::max(256, lanes);
  while (plan.threads / 2 >= std::max(64u, unsigned(lanes)) && few(plan.threads / lanes))
    plan.threads /= 2;
  // Pieces are packs of 16 bytes, or single classes.
  const int64_t piece = plan.packed ? 16 : element, pieces = plan.packed ? packs : a.classes;
  const int64_t room = (shared - kRowsOverhead) / (plan.threads * piece);
  int cluster = 1;
  const auto too_few = [&] {
    const int64_t all = int64_t{lanes} * cluster;
    return pieces > all * room || (pieces >= all * 2 && a.rows * cluster * 2 <= sms);
  };
  while (clusters && lanes == kRowThreads && cluster < kMostBlocks && too_few()) cluster *= 2;
  const int64_t all = int64_t{lanes} * cluster;
  const int64_t depth = std::max<int64_t>(1, std::min(room, (pieces + all - 1) / all));
  plan.rows = {lanes, cluster, static_cast<int>(depth),
               static_cast<int>((pieces + all * depth - 1) / (all * depth))};
  const int64_t rows = plan.threads / lanes;
  plan.blocks = (a.rows + rows - 1) / rows * cluster;
  return plan;
}

template <class Real> size_t tile_shared_bytes(const LossPlan &plan, int classes, int64_t element) {
  const auto &t = plan.tiles;
  return 32 * sizeof(double) + t.rows * sizeof(LossRow<Real>) +
         static_cast<size_t>(t.rows) * classes * element + 16;
}

} // namespace mmix
