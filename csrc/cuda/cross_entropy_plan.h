// Plans the launch of a loss: which kernel, how many lanes for each row, how many rows for each
// block. It uses neither torch nor a device: its input and output are numbers.
#pragma once
#include "cuda/kernels/cross_entropy_rows.cuh"
#include "cuda/kernels/cross_entropy_tiles.cuh"
#include <algorithm>

namespace mmix {

// Below this size, the unaligned ends of a row cost more than copying it through shared memory.
constexpr int64_t kShortRow = 1024; // bytes
// With tiles of 8 rows of this size, shared memory has room for half of the threads of an SM.
constexpr int64_t kLongestInTile = 4096;
constexpr int64_t kTileLaneBytes = 64; // bytes of a row for each lane, up to 32 lanes
constexpr int64_t kSector = 32;        // bytes, the least that memory moves at a time
constexpr int64_t kLine = 128;         // bytes, a cache line
constexpr int64_t kUsualDepth = 8; // packs of 16 bytes for each lane, up to the lanes of a block
constexpr int kMostBlocks = 8;     // in a cluster, on any GPU that has clusters

struct LossPlan {
  bool general; // there is a dense spread or a softcap
  bool tiled, packed;
  TilesPlan tiles;
  RowsPlan rows;
  unsigned threads;
  int64_t blocks;
  size_t shared; // bytes
};

// Whether the classes have stride 1, and each row of the gradient (if there is one) has the same
// address modulo 16 bytes as that row of the logits.
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

inline size_t tile_bytes(const LossProblem &a, const TilesPlan &t, int64_t element) {
  const auto beside = [&]<class Real>(Real) {
    return tile_rows_bytes<Real>(t) + tile_spread_bytes<Real>(t, a.dense);
  };
  return (element == 8 ? beside(0.0) : beside(0.0f)) +
         static_cast<size_t>(t.rows * t.pitch * element) + 16; // for the shift of kFlat
}

// few(n): whether blocks of n rows are too few to give every multiprocessor work.
template <class Few>
void plan_tiles(LossPlan &plan, const LossProblem &a, int64_t element, size_t shared,
                const Few &few) {
  TilesPlan &t = plan.tiles;
  t.logits = tile_order(a.logits_at, a.classes);
  t.gradient = tile_order(a.gradient_at, a.classes);
  const bool flat = t.logits == TileOrder::kFlat || t.gradient == TileOrder::kFlat;
  const bool near = t.logits == TileOrder::kRowsNear;
  // Neighbouring threads copy neighbouring rows: an odd pitch avoids bank conflicts.
  t.pitch = near && !flat ? a.classes | 1 : a.classes;
  plan.threads = kTileThreads;
  t.lanes = 1;
  while (t.lanes < 32 && t.lanes * kTileLaneBytes < a.classes * element) t.lanes *= 2;
  while (plan.threads > 64 && few(plan.threads / t.lanes)) plan.threads /= 2;
  t.rows = static_cast<int>(plan.threads) / t.lanes;
  // With kRowsNear, a tile takes at least a sector of each class, or a cache line if two blocks
  // then fit in shared memory.
  const auto too_narrow = [&] {
    const int64_t bytes = t.rows * element;
    return bytes < kSector || (bytes < kLine && 4 * tile_bytes(a, t, element) <= shared);
  };
  while (near && t.lanes > 1 && too_narrow()) t.lanes /= 2, t.rows *= 2;
  plan.blocks = (a.rows + t.rows - 1) / t.rows;
  plan.shared = tile_bytes(a, t, element);
}

template <class Few>
void plan_rows(LossPlan &plan, const LossProblem &a, int64_t element, int sms, int64_t shared,
               bool clusters, const Few &few) {
  const int64_t packs = std::max<int64_t>(1, a.classes / (16 / element));
  const auto piece = static_cast<int64_t>(piece_bytes(element, plan.packed, a.dense));
  const auto overhead =
      static_cast<int64_t>(element == 8 ? kRowsOverhead<double> : kRowsOverhead<float>);
  int most = kRowThreads; // the most lanes for which a piece each fits in shared memory
  while (most > 32 && overhead + most * piece > shared) most /= 2;
  int lanes = 32;
  while (lanes < most && lanes * kUsualDepth < packs) lanes *= 2;
  while (lanes < most && lanes < packs && a.rows * lanes < int64_t{sms} * kRowThreads) lanes *= 2;
  plan.threads = std::max(std::min(256, most), lanes);
  while (plan.threads / 2 >= std::max(64u, unsigned(lanes)) && few(plan.threads / lanes))
    plan.threads /= 2;
  // Pieces are packs of 16 bytes, or single classes.
  const int64_t pieces = plan.packed ? packs : a.classes;
  const int64_t room = (shared - overhead) / (plan.threads * piece);
  int cluster = 1;
  const auto too_few = [&] {
    const int64_t all = int64_t{lanes} * cluster;
    return pieces > all * room || (pieces >= all * 2 && a.rows * cluster * 2 <= sms);
  };
  while (clusters && lanes == most && cluster < kMostBlocks && too_few()) cluster *= 2;
  const int64_t all = int64_t{lanes} * cluster;
  const int64_t depth = std::max<int64_t>(1, std::min(room, (pieces + all - 1) / all));
  plan.rows = {lanes, cluster, static_cast<int>(depth),
               static_cast<int>((pieces + all * depth - 1) / (all * depth))};
  const int64_t rows = plan.threads / lanes;
  plan.blocks = (a.rows + rows - 1) / rows * cluster;
  plan.shared = static_cast<size_t>(overhead + plan.threads * piece * depth);
}

// sms: the number of multiprocessors. If there are fewer than about 2*sms blocks, blocks get fewer
// rows, and rows get more lanes. shared: the bytes of shared memory a block may have. clusters:
// whether the blocks of a cluster may share a row.
inline LossPlan plan_loss(const LossProblem &a, int64_t element, int sms, int64_t shared,
                          bool clusters) {
  LossPlan plan{};
  const int64_t row_bytes = a.classes * element;
  plan.general = a.dense || a.softcap != 0;
  // General float64 rows are not packed: that kernel would spill registers.
  plan.packed = aligned_alike(a, element) && !(plan.general && element == 8);
  const auto few = [&](int64_t rows_a_block) { return a.rows < 2 * sms * rows_a_block; };
  plan_tiles(plan, a, element, static_cast<size_t>(shared), few);
  // If neighbouring rows fill a sector, use tiles whenever a tile fits: a single row would be read
  // one sector for every class.
  const bool near = plan.tiles.logits == TileOrder::kRowsNear &&
                    static_cast<int64_t>(a.logits_at.size[0].n) * element >= kSector;
  plan.tiled = row_bytes < kShortRow || (row_bytes <= kLongestInTile && !plan.packed) || near;
  plan.tiled = plan.tiled && plan.shared <= static_cast<size_t>(shared);
  if (!plan.tiled) plan_rows(plan, a, element, sms, shared, clusters, few);
  return plan;
}

} // namespace mmix
