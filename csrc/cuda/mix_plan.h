// Plans the launch of a mix: which kernel, how wide its tiles are, how many blocks. This is decided
// only here, by the layout of the tensors, the device, and what the compiler made of the kernel.
#pragma once
#include "cuda/kernels/cutmix.cuh"
#include "cuda/kernels/mix_stretches.cuh"
#include "cuda/launch.h"
#include <algorithm>
#include <bit>

namespace mmix {

enum class Way { kSlab, kAlignedSlab, kClusterSlab, kGather, kStretches, kWalk };

struct MixPlan {
  Way way = Way::kSlab;
  bool vectors = false;                             // for kGather and kStretches: as in Pieces
  int width = 1, pitch = 1, lanes = 1, cluster = 1; // as in MixArgs
  unsigned threads = 256, blocks = 1;
  int64_t shared = 0; // bytes
  Cut cut{};
  bool claims = true, table = false; // in shared memory
};

// The narrowest tile in bytes. Narrower pieces of rows are slow: on an H100, pieces of 32 bytes
// reach half of the bandwidth that pieces of 64 bytes reach. The ends of a tile that does not start
// on a sector (32 bytes) share sectors with the neighbouring tiles: at this width, traffic is at
// most 1.3 times the least possible.
inline int narrowest_tile(int alignment) {
  return alignment % 32 == 0 ? 64 : alignment % 16 == 0 ? 128 : 512;
}

inline int64_t table_bytes(int rows) { return int64_t{4} * round_up(rows, 4); }

inline unsigned at_most(int64_t wanted, int64_t limit) {
  return static_cast<unsigned>(std::clamp<int64_t>(wanted, 1, limit));
}

constexpr int kWidestTile = 512;       // bytes of a row: 32 lanes of 16 bytes
constexpr int kMostCluster = 8;        // blocks, on any GPU that has clusters
constexpr int kLargeTile = 128 * 1024; // bytes: loading it takes one block long
// The part of the multiprocessors that can use all of the memory's bandwidth: one takes 64 bytes a
// cycle from the L2 cache, four times its share.
constexpr int kEnough = 4;
inline int nearly_all(const Device &device) {
  return device.multiprocessors - device.multiprocessors / 8;
}

// The shape of a problem, as far as a plan depends on it.
template <class T> struct MixShape {
  int batch;
  const Columns &columns;
  int alignment; // the largest power of two, at most 32, that divides every row's address in bytes
  bool in_place;
  bool aligned() const { // rows are made of 16-byte vectors
    return alignment % 16 == 0 && columns.run * int64_t{sizeof(T)} % 16 == 0;
  }
  int widest() const { // a power of two
    const auto run = std::min<int64_t>(columns.run * sizeof(T), kWidestTile);
    return std::max(16, static_cast<int>(std::bit_ceil(static_cast<unsigned>(run))));
  }
  int narrowest() const { return std::min(widest(), narrowest_tile(alignment)); }
  int pitch(int bytes) const { return tile_pitch<T>(bytes / int(sizeof(T)), alignment % 16 == 0); }
  int64_t tiles(int bytes) const { return tile_count(columns, bytes / int(sizeof(T))); }
  int64_t claims() const { return Claims::bytes(batch); }
  int64_t slab_bytes(int bytes, int cluster = 1) const { // of each block
    const int rows = (batch + cluster - 1) / cluster;
    return claims() + table_bytes(rows) + int64_t{rows} * pitch(bytes) * int64_t{sizeof(T)};
  }
};

// The width of a slab's tile in bytes, or 0 if none fits.
template <class T> int slab_width(const MixShape<T> &s, const Device &device) {
  const auto fitting = [&](int64_t limit) {
    int bytes = s.widest();
    while (bytes >= s.narrowest() && s.slab_bytes(bytes) > limit) bytes /= 2;
    return bytes >= s.narrowest() ? bytes : 0;
  };
  // Two blocks on a multiprocessor overlap loads and stores.
  int bytes = fitting(device.shared_of_sm / 2 - device.reserved);
  if (bytes == 0) bytes = fitting(device.shared);
  // With a small tensor, make tiles narrower, down to a cache line of each row, to give nearly all
  // multiprocessors work; with large tiles, down to the narrowest, and to give them two blocks.
  const auto few = [&](int64_t blocks) { return s.tiles(bytes) < blocks; };
  const int64_t enough = nearly_all(device);
  while (bytes > std::max(s.narrowest(), 128) && few(enough)) bytes /= 2;
  while (bytes > s.narrowest() && few(2 * enough) && int64_t{s.batch} * bytes > kLargeTile)
    bytes /= 2;
  return bytes;
}

// Whether tiles of this width keep too few multiprocessors busy.
template <class T> bool too_few(const MixShape<T> &s, int bytes, const Device &device) {
  return s.tiles(bytes) * kEnough < nearly_all(device) && int64_t{s.batch} * bytes > kLargeTile;
}

// The fewest blocks that hold the narrowest tile of all rows together and keep enough
// multiprocessors busy; 0 if the most do not hold it. Every block reads all of perm.
template <class T> int cluster_of(const MixShape<T> &s, const Device &device) {
  if (!device.clusters) return 0;
  const int bytes = s.narrowest();
  int cluster = 2;
  while (cluster < kMostCluster && (s.slab_bytes(bytes, cluster) > device.shared ||
                                    s.tiles(bytes) * cluster * kEnough < nearly_all(device)))
    cluster *= 2;
  return s.slab_bytes(bytes, cluster) <= device.shared ? cluster : 0;
}

template <class T> MixPlan plan_slab(const MixShape<T> &s, int bytes, int cluster) {
  MixPlan plan{cluster > 1 ? Way::kClusterSlab : s.aligned() ? Way::kAlignedSlab : Way::kSlab};
  plan.cluster = cluster;
  plan.width = bytes / int(sizeof(T));
  plan.pitch = s.pitch(bytes);
  plan.lanes = bytes / 16;
  plan.shared = s.slab_bytes(bytes, cluster);
  return plan;
}

// Threads and blocks of a slab. Copies wait in shared memory, so that few threads keep many bytes
// in flight; a thread has several vectors, for what it does once.
constexpr int kVectorsOfThread = 16;
template <class T>
void fill_slab(MixPlan &plan, const MixShape<T> &s, const Device &device, const Kernel &kernel) {
  const int rows = (s.batch + plan.cluster - 1) / plan.cluster;
  const int64_t vectors = int64_t{rows} * plan.lanes;
  const int64_t fit = std::max<int64_t>(1, device.shared_of_sm / (plan.shared + device.reserved));
  const auto share = std::bit_floor(static_cast<unsigned>(
      std::max<int64_t>(32, device.threads_for(kernel) / std::min<int64_t>(fit, 16))));
  const auto wanted =
      std::bit_ceil(static_cast<unsigned>((vectors + kVectorsOfThread - 1) / kVectorsOfThread));
  plan.threads = std::clamp(std::min(share, wanted), std::max(32u, unsigned(plan.lanes)),
                            unsigned(kSlabThreads));
  const int64_t resident = device.resident(kernel, plan.threads, plan.shared);
  const int64_t clusters = std::max<int64_t>(1, device.multiprocessors * resident / plan.cluster);
  plan.blocks = at_most(s.tiles(plan.width * int(sizeof(T))), clusters) * plan.cluster;
}

// In shared memory: the claims and, of walks, a table of partners, as far as they fit into `room`.
inline void fill_tables(MixPlan &plan, int batch, int64_t room, bool table) {
  plan.claims = Claims::bytes(batch) <= room;
  if (plan.claims) plan.shared += Claims::bytes(batch), room -= Claims::bytes(batch);
  plan.table = table && table_bytes(batch) <= room;
  if (plan.table) plan.shared += table_bytes(batch);
}

// Pieces are vectors if rows are aligned, else elements.
template <class T> void plan_pieces(MixPlan &plan, const MixShape<T> &s, int widest) {
  plan.vectors = s.aligned();
  const int64_t columns = s.columns.run * s.columns.runs;
  plan.lanes = plan.vectors ? widest / 16
                            : std::min(32, static_cast<int>(std::bit_ceil(static_cast<unsigned>(
                                               std::min<int64_t>(columns, 32)))));
}
template <class T> int64_t piece_tiles(const MixPlan &plan, const MixShape<T> &s) {
  return plan.vectors ? Pieces<T, true>::tiles(s.columns, plan.lanes)
                      : Pieces<T, false>::tiles(s.columns, plan.lanes);
}

template <class T>
void fill_gather(MixPlan &plan, const MixShape<T> &s, const Device &device, const Kernel &kernel) {
  plan_pieces(plan, s, s.widest());
  fill_tables(plan, s.batch, device.shared, false);
  // Every block reads all of perm, so few large blocks.
  plan.threads =
      std::min<unsigned>(kSlabThreads, std::bit_floor(unsigned(device.threads_for(kernel))));
  const auto units = [&] {
    const int64_t rows = int64_t{kRowsAtOnce} * (plan.threads / plan.lanes);
    return (s.batch + rows - 1) / rows * piece_tiles(plan, s);
  };
  while (plan.threads > 128 && units() < device.multiprocessors) plan.threads /= 2;
  // No more blocks than read as much of perm as they read of x.
  const int64_t row_bytes = s.columns.run * s.columns.runs * int64_t{sizeof(T)};
  const int64_t most = std::max<int64_t>(row_bytes / 8, nearly_all(device) / kEnough);
  const int64_t resident = device.resident(kernel, plan.threads, plan.shared);
  plan.blocks = at_most(std::min(units(), most), device.multiprocessors * resident);
}

template <class T>
void fill_stretches(MixPlan &plan, const MixShape<T> &s, const Device &device,
                    const Kernel &kernel) {
  plan_pieces(plan, s, s.widest());
  while (plan.vectors && plan.lanes * 16 > s.narrowest() &&
         piece_tiles(plan, s) < device.multiprocessors)
    plan.lanes /= 2;
  plan.threads =
      std::min<unsigned>(kSlabThreads, std::bit_floor(unsigned(device.threads_for(kernel))));
  const int64_t piece = plan.vectors ? 16 : sizeof(T);
  while (plan.threads > 128 && plan.threads * piece > device.shared / 4) plan.threads /= 2;
  const auto row = plan.lanes * piece;
  // The heads have a part of the shared memory, the tables the rest.
  const int64_t heads =
      std::min<int64_t>(device.shared / 4 / row, int64_t{kHeads} * plan.threads / plan.lanes);
  const auto step = (s.batch + heads - 1) / std::max<int64_t>(heads, 1);
  plan.cut = {static_cast<int>(std::bit_ceil(static_cast<unsigned>(step))) - 1};
  plan.shared = plan.cut.count(s.batch) * row + plan.threads * piece;
  fill_tables(plan, s.batch, device.shared - plan.shared, true);
  plan.blocks =
      at_most(piece_tiles(plan, s),
              device.multiprocessors * device.resident(kernel, plan.threads, plan.shared));
}

template <class T>
void fill_walk(MixPlan &plan, const MixShape<T> &s, const Device &device, const Kernel &kernel) {
  plan.width = s.widest() / int(sizeof(T));
  plan.pitch = s.pitch(s.widest());
  plan.lanes = 32;
  plan.threads = kWalkWarps * 32;
  const auto rows = static_cast<unsigned>((s.batch + kCutRows - 1) / kCutRows);
  plan.cut = {static_cast<int>(std::bit_ceil(rows)) - 1};
  const int tiles = plan.cut.count(s.batch) + kWalkTiles * kWalkWarps;
  plan.shared = int64_t{tiles} * plan.pitch * int64_t{sizeof(T)};
  fill_tables(plan, s.batch, device.shared - plan.shared, true);
  plan.blocks =
      at_most(s.tiles(s.widest()),
              device.multiprocessors * device.resident(kernel, plan.threads, plan.shared));
}

// One thread walks each column.
template <class T>
void fill_cutmix(MixPlan &plan, const MixShape<T> &s, const Device &device, const Kernel &kernel) {
  plan.cut = {(1 << 30) - 1}; // only row 0
  fill_tables(plan, s.batch, device.shared, true);
  const int64_t columns = s.columns.run * s.columns.runs;
  plan.blocks =
      at_most((columns + plan.threads - 1) / plan.threads,
              device.multiprocessors * device.resident(kernel, plan.threads, plan.shared));
}

// The way; the plan is complete after its fill function, which has to know the kernel.
template <class T> MixPlan plan_mix(const MixShape<T> &s, const Device &device) {
  const bool scattered = s.columns.run == 1 && s.columns.runs > 1;
  const int bytes = scattered ? 0 : slab_width(s, device);
  if (bytes && !(s.aligned() && too_few(s, bytes, device))) return plan_slab(s, bytes, 1);
  if (!s.in_place && (scattered || s.aligned() || !bytes)) return {Way::kGather};
  if (!scattered && s.aligned())
    if (const int cluster = cluster_of(s, device)) return plan_slab(s, s.narrowest(), cluster);
  if (bytes) return plan_slab(s, bytes, 1);
  return {scattered || s.aligned() ? Way::kStretches : Way::kWalk};
}

// The number of blocks, of `threads` threads each, that write the targets.
inline unsigned plan_targets(const TargetArgs &a, unsigned threads, const Device &device) {
  const Lines lines(a);
  const int64_t units = int64_t{a.batch} * lines.per_row * lines.pieces, warps = threads / 32;
  return at_most((units + warps - 1) / warps, int64_t{4} * device.multiprocessors);
}

} // namespace mmix
