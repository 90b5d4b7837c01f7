// Plans the launch of a loss: which kernel, how many lanes for each row, how many rows for each
// block, how many blocks. This is decided only here, by the layout of the tensors, the device, and
// what the compiler made of the kernels.
#pragma once
#include "cuda/kernels/cross_entropy_maps.cuh"
#include "cuda/kernels/cross_entropy_rows.cuh"
#include "cuda/kernels/cross_entropy_tiles.cuh"
#include "cuda/launch.h"
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
constexpr int kMapBlocks = 4;      // of maps on a multiprocessor

struct LossPlan {
  bool mapped, tiled; // else rows
  MapsPlan maps;
  TilesPlan tiles;
  RowsPlan rows;
  unsigned threads, blocks;
  size_t shared; // bytes
};

// As many clusters of blocks as there is work for, or as run at the same time.
inline unsigned grid_for(int64_t pieces, int cluster, const Device &device, const Kernel &kernel,
                         unsigned threads, size_t shared) {
  const int resident = device.resident(kernel, threads, static_cast<int64_t>(shared));
  const int64_t most = int64_t{device.multiprocessors} * resident / cluster;
  return static_cast<unsigned>(std::clamp<int64_t>(most, 1, pieces) * cluster);
}

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

inline bool aligned_to(const void *p, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

// Whether kPixels neighbouring rows of a tensor, from a multiple of kPixels on, are moved at once.
inline bool pixels_near(const void *p, const RowLayout &at, int64_t element) {
  if (at.stride[0] != 1 || at.size[0].n % kPixels != 0) return false;
  for (int d = 1; d < at.dims; ++d)
    if (at.stride[d] % kPixels != 0) return false;
  return at.class_stride % kPixels == 0 && aligned_to(p, kPixels * element);
}

// Whether kPixels neighbouring rows of the logits, of the gradient and of the labels, from a
// multiple of kPixels on, belong to one sample and are moved at once.
inline bool map_like(const LossProblem &a, int64_t element) {
  if (!a.labels || a.inner % kPixels != 0 || a.of_shard) return false;
  return pixels_near(a.logits, a.logits_at, element) &&
         (!a.gradient || pixels_near(a.gradient, a.gradient_at, element)) &&
         aligned_to(a.labels, 16) && (!a.labels_b || aligned_to(a.labels_b, 16));
}

// What the logits and the options ask of a kernel.
struct LossForm {
  bool general; // there is a dense spread or a softcap
  bool packed;  // rows are read and written 16 bytes at a time
  bool turns;   // the blocks of rows take turns, see kTakesTurns
  bool map;     // kPixels neighbouring rows are read and written at once
  LossForm(const LossProblem &a, int64_t element)
      : general(a.dense || a.softcap != 0),
        // General float64 rows are not packed: that kernel would spill registers.
        packed(aligned_alike(a, element) && !(general && element == 8)),
        turns(packed && !general && element < 8),
        map(!general && element < 8 && map_like(a, element)) {}
};

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
  // Small blocks would take long to read all labels.
  const unsigned least = a.counts ? 128 : 64;
  while (plan.threads > least && few(plan.threads / t.lanes)) plan.threads /= 2;
  t.rows = static_cast<int>(plan.threads) / t.lanes;
  // With kRowsNear, a tile takes at least a sector of each class, or a cache line if two blocks
  // then fit in shared memory.
  const auto too_narrow = [&] {
    const int64_t bytes = t.rows * element;
    return bytes < kSector || (bytes < kLine && 4 * tile_bytes(a, t, element) <= shared);
  };
  while (near && t.lanes > 1 && too_narrow()) t.lanes /= 2, t.rows *= 2;
  plan.shared = tile_bytes(a, t, element);
}

// As few lanes for the same rows as let kMapBlocks blocks run on a multiprocessor. Only if that
// leaves two sectors of each class for a warp, and if there is a block for each multiprocessor.
inline void plan_maps(LossPlan &plan, const LossProblem &a, int64_t element, const Device &device) {
  int &lanes = plan.maps.lanes;
  const auto fit = [&] {
    plan.shared = map_bytes(a.classes, plan.maps, element);
    return kMapBlocks * (static_cast<int64_t>(plan.shared) + device.reserved) <=
           device.shared_of_sm;
  };
  const int64_t most = 32 * kPixels * element / (2 * kSector);
  lanes = 1;
  while (!fit() && 2 * lanes <= most) lanes *= 2;
  plan.threads = kMapThreads;
  plan.mapped = fit() && a.rows / kPixels * lanes >= int64_t{device.multiprocessors} * kMapThreads;
}

// The most lanes of a row. If all multiprocessors have rows for two blocks, two blocks of so many
// lanes run on each of them: one reads while the other one writes.
inline int most_lanes(const Device &device, const Kernel &kernel, bool many) {
  int lanes = kRowThreads;
  while (many && 2 * lanes > device.threads_for(kernel)) lanes /= 2;
  return lanes;
}

template <class Few>
void plan_rows(LossPlan &plan, const LossProblem &a, const LossForm &form, int64_t element,
               const Device &device, const Kernel &kernel, bool clusters, const Few &few) {
  const int sms = device.multiprocessors;
  const int64_t packs = std::max<int64_t>(1, a.classes / (16 / element));
  // Bytes of a piece and of what comes with it: in the terms of a spread, its classes.
  const int64_t width = form.packed ? 16 / element : 1;
  int64_t shifts = 0, of_class = 0;
  for (const Values &v : a.terms)
    if (a.dense && v.data) shifts += kRunShift, of_class += element_size(v.type);
  const int64_t piece = width * (element + of_class);
  const auto overhead = [&](int threads, int lanes) {
    return static_cast<int64_t>(element == 8 ? rows_overhead<double>(threads, lanes)
                                             : rows_overhead<float>(threads, lanes)) +
           shifts * (threads / lanes);
  };
  const bool many = a.rows >= 2 * sms;
  int most = most_lanes(device, kernel, many);
  // So that a piece of each lane fits in shared memory.
  while (most > 32 && overhead(most, most) + most * piece > device.shared) most /= 2;
  int lanes = 32;
  while (lanes < most && lanes * kUsualDepth < packs) lanes *= 2;
  while (lanes < most && lanes < packs && a.rows * lanes < int64_t{sms} * kRowThreads) lanes *= 2;
  // Large blocks where each one reads all labels.
  plan.threads = std::max(std::min(form.turns && a.counts ? kRowThreads : 256, most), lanes);
  while (plan.threads / 2 >= std::max(64u, unsigned(lanes)) && few(plan.threads / lanes))
    plan.threads /= 2;
  // Pieces are packs of 16 bytes, or single classes.
  const int64_t pieces = form.packed ? packs : a.classes;
  const int64_t beside = overhead(plan.threads, lanes);
  const auto room = [&](int64_t shared) { // for the pieces of each lane
    return (shared - beside) / (plan.threads * piece);
  };
  const int64_t whole = room(device.shared);
  const int64_t half = room(device.shared_of_sm / 2 - device.reserved);
  int cluster = 1;
  const auto too_few = [&] {
    const int64_t all = int64_t{lanes} * cluster;
    return pieces > all * (many && half > 0 ? half : whole) ||
           (pieces >= all * 2 && a.rows * cluster * 2 <= sms);
  };
  while (clusters && lanes == most && cluster < kMostBlocks && too_few()) cluster *= 2;
  const int64_t all = int64_t{lanes} * cluster;
  const int64_t depth = std::max<int64_t>(1, std::min(whole, (pieces + all - 1) / all));
  plan.rows = {lanes, cluster, static_cast<int>(depth),
               static_cast<int>((pieces + all * depth - 1) / (all * depth)),
               static_cast<int>(shifts + lanes * depth * width * of_class)};
  plan.shared = static_cast<size_t>(beside + plan.threads * piece * depth);
}

// Up to this many rows, each block sums the divisors itself. The labels then come from the L1 or L2
// cache.
inline int64_t most_counted_rows(const LossForm &form, int64_t element) {
  if (element == 8) return 0; // see kCountsItself
  return form.turns ? 8192 : 2048;
}

// If there are fewer than one or two blocks for each multiprocessor, blocks get fewer rows, and
// rows get more lanes. clusters: whether the blocks of a cluster may share a row.
inline LossPlan plan_loss(const LossProblem &a, const LossForm &form, int64_t element,
                          const Device &device, const Kernel *maps, const Kernel &tiles,
                          const Kernel &rows, bool clusters) {
  LossPlan plan{};
  if (form.map) plan_maps(plan, a, element, device);
  if (plan.mapped) {
    const int64_t rows_a_block = kMapThreads / plan.maps.lanes * kPixels;
    plan.blocks = grid_for((a.rows + rows_a_block - 1) / rows_a_block, 1, device, *maps,
                           plan.threads, plan.shared);
    return plan;
  }
  const int64_t row_bytes = a.classes * element;
  const auto shared = static_cast<size_t>(device.shared);
  const auto few = [&](int64_t rows_a_block) {
    return a.rows < (a.counts ? 1 : 2) * device.multiprocessors * rows_a_block;
  };
  plan_tiles(plan, a, element, shared, few);
  // If neighbouring rows fill a sector, use tiles whenever a tile fits: a single row would be read
  // one sector for every class.
  const bool near = plan.tiles.logits == TileOrder::kRowsNear &&
                    static_cast<int64_t>(a.logits_at.size[0].n) * element >= kSector;
  plan.tiled = row_bytes < kShortRow || (row_bytes <= kLongestInTile && !form.packed) || near;
  plan.tiled = plan.tiled && plan.shared <= shared;
  if (!plan.tiled) plan_rows(plan, a, form, element, device, rows, clusters, few);
  const int64_t rows_a_block = plan.tiled ? plan.tiles.rows : plan.threads / plan.rows.lanes;
  const int64_t pieces = (a.rows + rows_a_block - 1) / rows_a_block;
  const int cluster = plan.tiled ? 1 : plan.rows.cluster;
  STD_TORCH_CHECK(pieces * cluster <= INT32_MAX, "logits have too many rows");
  if (plan.tiled || form.turns)
    plan.blocks =
        grid_for(pieces, cluster, device, plan.tiled ? tiles : rows, plan.threads, plan.shared);
  else
    plan.blocks = static_cast<unsigned>(pieces * cluster);
  return plan;
}

} // namespace mmix
