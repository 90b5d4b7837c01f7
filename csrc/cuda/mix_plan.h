// How a mix is launched: which kernel, how wide its tiles are, how many blocks. The only place that
// decides it; everything here is a function of shapes and of the device.
#pragma once
#include "kernels/mix.cuh"
#include <algorithm>
#include <bit>
#include <cstddef>

namespace mmix {

struct Device {
  int multiprocessors;
  size_t shared; // the most a block may have
};

enum class Way { kSlab, kWalk, kStrided };

struct MixPlan {
  Way way;
  int width = 1, lanes = 1; // of a tile: columns, threads that share a row
  unsigned threads = 256, blocks = 1;
  size_t shared = 0;
  Cut cut{};
  bool tables_in_block = true;
};

// A row's part should be at least this wide, or it reads sectors (32 bytes) that it shares with its
// neighbours: the narrowest tile that keeps traffic within 1.3 (1.0 where rows start on sectors).
inline int narrowest_tile(int alignment) {
  return alignment % 32 == 0 ? 32 : alignment % 16 == 0 ? 128 : 512;
}

inline size_t table_bytes(int batch) { return sizeof(int) * round_up(batch, 4); }

inline unsigned at_most(int64_t wanted, int64_t limit) {
  return static_cast<unsigned>(std::clamp<int64_t>(wanted, 1, limit));
}

constexpr int kThreadsOfSM = 2048; // 1024 to 2048 by architecture; more blocks just wait

// alignment: the largest power of two, at most 32, that divides every row's address in bytes.
template <class T>
MixPlan plan_mix(int batch, const Columns &columns, int alignment, const Device &device) {
  constexpr int kElement = sizeof(T), kWidest = 512;
  MixPlan plan;
  const auto bytes_of_run = std::min<int64_t>(columns.run * kElement, kWidest);
  const int widest = std::max<int>(16, static_cast<int>(std::bit_ceil(uint64_t(bytes_of_run))));
  if (columns.run == 1 && columns.runs > 1) {
    plan.way = Way::kStrided;
    plan.cut = {(1 << 30) - 1}; // row 0 alone
    plan.shared = 2 * table_bytes(batch);
    plan.blocks = at_most((columns.runs + plan.threads - 1) / plan.threads,
                          int64_t{8} * device.multiprocessors);
  } else {
    const int narrowest = std::min(widest, narrowest_tile(alignment));
    const auto slab_bytes = [&](int bytes) {
      return table_bytes(batch) + size_t(batch) * tile_pitch<T>(bytes / kElement) * kElement;
    };
    const auto fitting = [&](size_t limit) { // the widest tile that fits; 0 if none
      int bytes = widest;
      while (bytes >= narrowest && slab_bytes(bytes) > limit) bytes /= 2;
      return bytes >= narrowest ? bytes : 0;
    };
    int bytes = fitting(device.shared / 2 - 1024); // two blocks: one loads while the other stores
    if (bytes == 0) bytes = fitting(device.shared);
    if (bytes != 0) {
      plan.way = Way::kSlab;
      // A small tensor is spread over the device instead, down to a cache line a row.
      while (bytes > std::max(narrowest, 128) &&
             tile_count(columns, bytes / kElement) < 2 * device.multiprocessors)
        bytes /= 2;
      plan.shared = slab_bytes(bytes);
      plan.lanes = bytes / 16;
      const auto resident = static_cast<int>(std::min<size_t>(16, device.shared / plan.shared));
      const int wanted = std::min<int>(kThreadsOfSM / std::max(resident, 1), kSlabThreads);
      plan.threads = static_cast<unsigned>(std::min(
          int(std::bit_floor(unsigned(std::max(wanted, 32)))), round_up(batch * plan.lanes, 32)));
      plan.width = bytes / kElement;
      plan.blocks = at_most(tile_count(columns, plan.width),
                            int64_t{device.multiprocessors} * kThreadsOfSM / plan.threads);
    } else {
      plan.way = Way::kWalk;
      plan.width = widest / kElement;
      plan.lanes = 32;
      plan.threads = kWalkWarps * 32;
      const int rows = (batch + kCutRows - 1) / kCutRows;
      plan.cut = {static_cast<int>(std::bit_ceil(unsigned(rows))) - 1};
      const int tiles = plan.cut.count(batch) + kWalkTiles * kWalkWarps;
      plan.shared = 2 * table_bytes(batch) + size_t(tiles) * tile_pitch<T>(plan.width) * kElement;
      plan.blocks = at_most(tile_count(columns, plan.width), int64_t{4} * device.multiprocessors);
    }
  }
  if (plan.shared > device.shared) {
    plan.tables_in_block = false;
    plan.shared -= 2 * table_bytes(batch);
  }
  return plan;
}

// Blocks for the targets, of `threads` threads.
inline unsigned plan_targets(const TargetArgs &a, unsigned threads, const Device &device) {
  const Lines lines(a);
  const int64_t units = a.batch * lines.per_row * lines.pieces, warps = threads / 32;
  return at_most((units + warps - 1) / warps, int64_t{4} * device.multiprocessors);
}

} // namespace mmix
