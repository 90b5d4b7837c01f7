// Plans the launch of a mix: which kernel, how wide its tiles are, how many blocks. This is decided
// only here, by the layout of the tensors and the device.
#pragma once
#include "cuda/kernels/mix.cuh"
#include <algorithm>
#include <bit>
#include <cstddef>

namespace mmix {

struct Device {
  int multiprocessors;
  int shared; // the most bytes of shared memory a block may have
};

enum class Way { kSlab, kWalk, kStrided };

struct MixPlan {
  Way way;
  int width = 1, pitch = 1, lanes = 1; // as in MixArgs
  unsigned threads = 256, blocks = 1;
  int64_t shared = 0; // bytes
  Cut cut{};
  bool tables_in_block = true;
};

// The narrowest tile in bytes. The ends of a tile share sectors (32 bytes) with the neighbouring
// tiles, so narrower tiles read more than they use. At this width, traffic is at most 1.3 times the
// least possible, and 1.0 if rows start on sectors.
inline int narrowest_tile(int alignment) {
  return alignment % 32 == 0 ? 32 : alignment % 16 == 0 ? 128 : 512;
}

inline int64_t table_bytes(int batch) { return int64_t{4} * round_up(batch, 4); }

inline unsigned at_most(int64_t wanted, int64_t limit) {
  return static_cast<unsigned>(std::clamp<int64_t>(wanted, 1, limit));
}

constexpr int kThreadsOfSM = 2048; // 1024 to 2048, by architecture; excess blocks wait
constexpr int kWidestTile = 512;   // bytes of a row: 32 lanes of 16 bytes

// The shape of a problem, as far as a plan depends on it.
template <class T> struct MixShape {
  int batch;
  const Columns &columns;
  int alignment; // the largest power of two, at most 32, that divides every row's address in bytes
  int widest() const { // a power of two
    const auto run = std::min<int64_t>(columns.run * sizeof(T), kWidestTile);
    return std::max(16, static_cast<int>(std::bit_ceil(static_cast<unsigned>(run))));
  }
  int pitch(int bytes) const { return tile_pitch<T>(bytes / int(sizeof(T)), alignment % 16 == 0); }
  int64_t tiles(int bytes) const { return tile_count(columns, bytes / int(sizeof(T))); }
  int64_t slab_bytes(int bytes) const {
    return table_bytes(batch) + int64_t{batch} * pitch(bytes) * int64_t{sizeof(T)};
  }
};

// The width of a slab's tile in bytes, or 0 if none fits.
template <class T> int slab_width(const MixShape<T> &s, const Device &device) {
  const int narrowest = std::min(s.widest(), narrowest_tile(s.alignment));
  const auto fitting = [&](int64_t limit) {
    int bytes = s.widest();
    while (bytes >= narrowest && s.slab_bytes(bytes) > limit) bytes /= 2;
    return bytes >= narrowest ? bytes : 0;
  };
  // Two blocks on a multiprocessor overlap loads and stores. The device reserves 1 KiB for each
  // block.
  int bytes = fitting((device.shared - 1024) / 2);
  if (bytes == 0) bytes = fitting(device.shared);
  // With a small tensor, make tiles narrower, down to a cache line of each row, to give all
  // multiprocessors work.
  while (bytes > std::max(narrowest, 128) && s.tiles(bytes) < 2 * device.multiprocessors)
    bytes /= 2;
  return bytes;
}

template <class T> MixPlan plan_slab(const MixShape<T> &s, int bytes, const Device &device) {
  MixPlan plan{Way::kSlab};
  plan.width = bytes / int(sizeof(T));
  plan.pitch = s.pitch(bytes);
  plan.lanes = bytes / 16;
  plan.shared = s.slab_bytes(bytes);
  const auto resident = std::clamp<int64_t>(device.shared / plan.shared, 1, 16);
  const auto share = std::bit_floor(static_cast<unsigned>(kThreadsOfSM / resident));
  plan.threads =
      std::min({share, unsigned(kSlabThreads), unsigned(round_up(s.batch * plan.lanes, 32))});
  plan.blocks = at_most(s.tiles(bytes), device.multiprocessors * resident);
  return plan;
}

template <class T> MixPlan plan_walk(const MixShape<T> &s, const Device &device) {
  MixPlan plan{Way::kWalk};
  plan.width = s.widest() / int(sizeof(T));
  plan.pitch = s.pitch(s.widest());
  plan.lanes = 32;
  plan.threads = kWalkWarps * 32;
  const auto rows = static_cast<unsigned>((s.batch + kCutRows - 1) / kCutRows);
  plan.cut = {static_cast<int>(std::bit_ceil(rows)) - 1};
  const int tiles = plan.cut.count(s.batch) + kWalkTiles * kWalkWarps;
  plan.shared = 2 * table_bytes(s.batch) + int64_t{tiles} * plan.pitch * int64_t{sizeof(T)};
  plan.blocks = at_most(s.tiles(s.widest()), int64_t{4} * device.multiprocessors);
  return plan;
}

template <class T> MixPlan plan_strided(const MixShape<T> &s, const Device &device) {
  MixPlan plan{Way::kStrided};
  plan.cut = {(1 << 30) - 1}; // only row 0
  plan.shared = 2 * table_bytes(s.batch);
  const int64_t columns = s.columns.run * s.columns.runs;
  plan.blocks =
      at_most((columns + plan.threads - 1) / plan.threads, int64_t{8} * device.multiprocessors);
  if (plan.shared > device.shared) plan.tables_in_block = false, plan.shared = 0;
  return plan;
}

template <class T> MixPlan plan_mix(const MixShape<T> &s, const Device &device) {
  if (s.columns.run == 1 && s.columns.runs > 1) return plan_strided(s, device);
  if (const int bytes = slab_width(s, device)) return plan_slab(s, bytes, device);
  MixPlan plan = plan_walk(s, device);
  if (plan.shared > device.shared) {
    plan.tables_in_block = false;
    plan.shared -= 2 * table_bytes(s.batch);
  }
  return plan;
}

// The number of blocks, of `threads` threads each, that write the targets.
inline unsigned plan_targets(const TargetArgs &a, unsigned threads, const Device &device) {
  const Lines lines(a);
  const int64_t units = a.batch * lines.per_row * lines.pieces, warps = threads / 32;
  return at_most((units + warps - 1) / warps, int64_t{4} * device.multiprocessors);
}

} // namespace mmix
