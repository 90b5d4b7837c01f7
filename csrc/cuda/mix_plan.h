// Plans the launch of a mix: which kernel, how wide its tiles are, how many blocks. This is decided
// only here, by the layout of the tensors, the device, and what the compiler made of the kernel.
#pragma once
#include "cuda/kernels/cutmix.cuh"
#include "cuda/kernels/mix_slab.cuh"
#include "cuda/launch.h"
#include <algorithm>
#include <bit>
#include <numeric>

namespace mmix {

enum class Way { kSlab, kAlignedSlab, kGather };

struct MixPlan {
  Way way = Way::kSlab;
  int width = 1, pitch = 1, lanes = 1; // as in MixArgs
  int64_t tiles = 1, round = 1;        // as in MixArgs
  unsigned threads = 256, blocks = 1;
  int64_t shared = 0;    // bytes
  bool claims = true;    // in shared memory
  int64_t kept = 0;      // bytes of global memory for mixed pieces; 0: they are in shared memory
  bool together = false; // all blocks of the grid must run at the same time
};

// The narrowest tile in bytes. Narrower pieces of rows are slow: on an H100, pieces of 32 bytes
// reach half of the bandwidth that pieces of 64 bytes reach. The ends of a tile that does not start
// on a sector (32 bytes) share sectors with the neighbouring tiles: at this width, traffic is at
// most 1.3 times the least possible.
inline int narrowest_tile(int alignment) {
  return alignment % 32 == 0 ? 64 : alignment % 16 == 0 ? 128 : 512;
}

inline int64_t table_bytes(int rows) { return int64_t{4} * round_up(rows, kLineWords); }

inline unsigned at_most(int64_t wanted, int64_t limit) {
  return static_cast<unsigned>(std::clamp<int64_t>(wanted, 1, limit));
}

constexpr int kLine = 128;             // bytes of a cache line
constexpr int kWidestTile = 512;       // bytes of a row: 32 lanes of 16 bytes
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
  int64_t slab_bytes(int bytes) const {
    return claims() + table_bytes(batch) + int64_t{batch} * pitch(bytes) * int64_t{sizeof(T)};
  }
};

// The width of a slab's tile in bytes, or 0 if none fits.
template <class T> int slab_width(const MixShape<T> &s, const Device &device) {
  const auto fitting = [&](int64_t limit) {
    int bytes = s.widest();
    while (bytes >= s.narrowest() && s.slab_bytes(bytes) > limit) bytes /= 2;
    return bytes >= s.narrowest() ? bytes : 0;
  };
  // Two blocks on a multiprocessor overlap loads and stores. But tiles of less than a cache line
  // of each row cost more than one block alone: on an H200, 1024 rows of 302 KB take 246 us in
  // tiles of 64 bytes, and 198 us in tiles of 128.
  int bytes = fitting(device.shared_of_sm / 2 - device.reserved);
  if (bytes < kLine) bytes = fitting(device.shared);
  // With a small tensor, make tiles narrower, down to a cache line of each row, to give nearly all
  // multiprocessors work; with large tiles, down to the narrowest, and to give them two blocks.
  const auto few = [&](int64_t blocks) { return s.tiles(bytes) < blocks; };
  const int64_t enough = nearly_all(device);
  while (bytes > std::max(s.narrowest(), kLine) && few(enough)) bytes /= 2;
  while (bytes > s.narrowest() && few(2 * enough) && int64_t{s.batch} * bytes > kLargeTile)
    bytes /= 2;
  return bytes;
}

// Whether tiles of this width keep too few multiprocessors busy.
template <class T> bool too_few(const MixShape<T> &s, int bytes, const Device &device) {
  return s.tiles(bytes) * kEnough < nearly_all(device) && int64_t{s.batch} * bytes > kLargeTile;
}

template <class T> MixPlan plan_slab(const MixShape<T> &s, int bytes) {
  MixPlan plan{s.aligned() ? Way::kAlignedSlab : Way::kSlab};
  plan.width = bytes / int(sizeof(T));
  plan.pitch = s.pitch(bytes);
  plan.lanes = bytes / 16;
  plan.tiles = s.tiles(bytes);
  plan.shared = s.slab_bytes(bytes);
  return plan;
}

// Threads and blocks of a slab. Copies wait in shared memory, so that few threads keep many bytes
// in flight; a thread has several vectors, for what it does once.
constexpr int kVectorsOfThread = 8;
template <class T>
void fill_slab(MixPlan &plan, const MixShape<T> &s, const Device &device, const Kernel &kernel) {
  const int64_t vectors = int64_t{s.batch} * plan.lanes;
  const int64_t fit = std::max<int64_t>(1, device.shared_of_sm / (plan.shared + device.reserved));
  const auto share = std::bit_floor(static_cast<unsigned>(
      std::max<int64_t>(32, device.threads_for(kernel) / std::min<int64_t>(fit, 16))));
  const auto wanted =
      std::bit_ceil(static_cast<unsigned>((vectors + kVectorsOfThread - 1) / kVectorsOfThread));
  plan.threads = std::clamp(std::min(share, wanted), std::max(32u, unsigned(plan.lanes)),
                            unsigned(kSlabThreads));
  const int64_t resident = device.resident(kernel, plan.threads, plan.shared);
  plan.blocks = at_most(plan.tiles, device.multiprocessors * resident);
}

// Every block reads all of perm, if it has the claims of all rows in shared memory. With more rows
// than this, the grid shares the work, and the claims are in global memory: that costs two barriers
// of the grid.
constexpr int kClaimsInBlock = 4096; // rows; 32 KB of perm
constexpr int kPiecesOfThread = 4;   // so many for each thread, before a multiprocessor gets more

template <class T, bool kVectors> struct GatherPlan {
  using P = Pieces<T, kVectors>;
  static constexpr int64_t kPiece = sizeof(typename P::Piece);
  const MixShape<T> &s;
  const Device &device;
  bool claims_in_block() const {
    return s.batch <= kClaimsInBlock && s.claims() + kPiece * kGatherThreads <= device.shared;
  }
  int64_t room() const { return device.shared - (claims_in_block() ? s.claims() : 0); }
  // The rows of one tile of this many lanes that the grid keeps in shared memory.
  int64_t rows_kept(unsigned threads, int lanes) const {
    return room() / (threads * kPiece) * (threads / lanes) * device.multiprocessors;
  }
  int most_lanes() const {
    const int64_t pieces = (s.columns.run * s.columns.runs + P::kCount - 1) / P::kCount;
    return kVectors ? s.widest() / 16
                    : std::bit_ceil(static_cast<unsigned>(std::min<int64_t>(pieces, 32)));
  }
  // With a tile of 16 bytes, mixed pieces in global memory take no more than 16 bytes a row.
  int fewest_lanes() const { return std::min(most_lanes(), int(16 / kPiece)); }
  // Whether the grid can keep a tile of all rows in shared memory.
  bool fits() const { return rows_kept(kGatherThreads, fewest_lanes()) >= s.batch; }

  MixPlan plan() const {
    MixPlan plan{Way::kGather};
    plan.lanes = most_lanes();
    plan.claims = claims_in_block();
    plan.shared = plan.claims ? s.claims() : 0;
    plan.together = s.in_place || !plan.claims;
    const auto units = [&](int64_t pieces) { // of so many pieces each
      return (P::tiles(s.columns, plan.lanes) * s.batch * plan.lanes + pieces - 1) / pieces;
    };
    // A grid that waits for itself has one block on each multiprocessor.
    plan.threads = std::clamp(
        std::bit_ceil(at_most(units(int64_t{kPiecesOfThread} * device.multiprocessors), 1 << 20)),
        128u, unsigned(kGatherThreads));
    while (s.in_place && plan.lanes > fewest_lanes() &&
           rows_kept(plan.threads, plan.lanes) < s.batch)
      plan.lanes /= 2;
    while (s.in_place && plan.threads < kGatherThreads &&
           rows_kept(plan.threads, plan.lanes) < s.batch)
      plan.threads *= 2;
    plan.tiles = P::tiles(s.columns, plan.lanes);
    plan.blocks = at_most(units(plan.threads), device.multiprocessors);
    plan.round = std::max<int64_t>(1, rows_kept(plan.threads, plan.lanes) / s.batch);
    plan.round = std::min(plan.round, plan.tiles);
    const int64_t rounds = (plan.tiles + plan.round - 1) / plan.round;
    plan.round = (plan.tiles + rounds - 1) / rounds; // of equal size
    if (!s.in_place) return plan;
    const int64_t teams = plan.threads / plan.lanes;
    const int64_t share = (plan.round * s.batch + plan.blocks - 1) / plan.blocks;
    const int64_t kept = (share + teams - 1) / teams * plan.threads * kPiece; // of a block
    if (fits())
      plan.shared += kept;
    else
      plan.kept = kept * plan.blocks;
    return plan;
  }
};

// A step that visits all tiles, neighbouring ones at different times: near the golden section, and
// without a divisor of their number.
inline int64_t spread(int64_t tiles) {
  if (tiles > INT32_MAX) return 1; // the product of an index and the step must fit in 64 bits
  int64_t step = std::max<int64_t>(1, tiles * 618 / 1000);
  while (std::gcd(step, tiles) != 1) ++step;
  return step;
}

// The way; a slab's plan is complete after fill_slab, which has to know the kernel.
template <class T> MixPlan plan_mix(const MixShape<T> &s, const Device &device) {
  const bool scattered = s.columns.run == 1 && s.columns.runs > 1;
  const int bytes = scattered ? 0 : slab_width(s, device);
  if (bytes && !(s.aligned() && too_few(s, bytes, device))) return plan_slab(s, bytes);
  return {Way::kGather};
}

// The number of blocks, of `threads` threads each, that write the targets.
inline unsigned plan_targets(const TargetArgs &a, unsigned threads, const Device &device) {
  const Lines lines(a);
  const int64_t units = int64_t{a.batch} * lines.per_row * lines.pieces, warps = threads / 32;
  return at_most((units + warps - 1) / warps, int64_t{4} * device.multiprocessors);
}

} // namespace mmix
