// The slab for rows that are made of aligned 16-byte vectors: addresses are increments, and a thread
// has the same vector of each of its rows. Where a tile of all rows does not fit in one block's
// shared memory, or too few tiles would leave multiprocessors idle, the blocks of a cluster share it.
#pragma once
#include "cuda/kernels/cluster.cuh"
#include "cuda/kernels/mix.cuh"
#include "cuda/kernels/vectors.cuh"

namespace mmix {

constexpr int kAtOnce = 4; // vectors in flight for each thread

// The rows of a thread: first, first + step, ... Its vector of them is `lane` of the tile's.
struct Team {
  int lane, first, step;
  __device__ __forceinline__ explicit Team(int lanes) // a power of two
      : lane(static_cast<int>(threadIdx.x) & (lanes - 1)), first(threadIdx.x / lanes),
        step(blockDim.x / lanes) {}
};

// The rows of a tile that this block holds.
template <class T, bool kCluster> struct AlignedSlab {
  static constexpr int kCount = Vec<T>::kCount;
  const MixArgs<T> &a;
  const Team team;
  int per, row0, rows; // rows of a block, but for the last of a cluster; this block's
  const int *next;
  uint4 *slots; // a vector for each row and lane

  __device__ __forceinline__ explicit AlignedSlab(const MixArgs<T> &a_) : a(a_), team(a_.lanes) {
    per = kCluster ? (a.batch + a.cluster - 1) / a.cluster : a.batch;
    row0 = kCluster ? min(static_cast<int>(blockIdx.x) % a.cluster * per, a.batch) : 0;
    rows = min(per, a.batch - row0);
  }
  __device__ __forceinline__ bool active(const TilePlace &at) const {
    return team.lane * kCount < at.n;
  }
  // Of this thread's vector in its first row.
  __device__ __forceinline__ int64_t offset(int64_t row_stride) const {
    return (row0 + team.first) * row_stride + team.lane * kCount;
  }

  // Loads the vectors of kAtOnce rows, of which the first is `row`, and puts them into their slots.
  __device__ __forceinline__ void fetch(const T *x, int row, Vec<T> (&v)[kAtOnce]) const {
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u)
      if (row + u * team.step < rows) v[u] = load_once(x + u * (team.step * a.x_row));
  }
  __device__ __forceinline__ void keep(uint4 *slot, int row, const Vec<T> (&v)[kAtOnce]) const {
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u)
      if (row + u * team.step < rows) slot[u * blockDim.x] = v[u].raw;
  }
  // The first kAtOnce rows of a tile are fetched before the tile's turn.
  __device__ __forceinline__ void fetch_first(const TilePlace &at, Vec<T> (&v)[kAtOnce]) const {
    if (active(at)) fetch(a.x + at.x + offset(a.x_row), team.first, v);
  }
  __device__ __forceinline__ void load_tile(const TilePlace &at, Vec<T> (&v)[kAtOnce]) const {
    if (!active(at)) return;
    const T *x = a.x + at.x + offset(a.x_row);
    uint4 *slot = slots + threadIdx.x;
    int row = team.first;
    keep(slot, row, v);
    while ((row += kAtOnce * team.step) < rows) {
      x += kAtOnce * team.step * a.x_row;
      slot += kAtOnce * blockDim.x;
      fetch(x, row, v);
      keep(slot, row, v);
    }
  }

  __device__ __forceinline__ const uint4 *slot_of(int row) const {
    if constexpr (!kCluster) return slots + row * a.lanes + team.lane;
    const int rank = row / per;
    return MMIX_CLUSTER_SHARED(const uint4, slots + (row - rank * per) * a.lanes + team.lane, rank);
  }
  // Writes the mixed rows. With kPlain, c holds for all rows and neither coefficient is 0.
  template <bool kPlain>
  __device__ __forceinline__ void write_tile(const TilePlace &at, const Weights<T> &weights,
                                             Coefficients<Acc<T>> c) const {
    if (!active(at)) return;
    T *out = a.out + at.out + offset(a.out_row);
    const uint4 *own = slots + threadIdx.x;
#pragma unroll 2
    for (int row = team.first; row < rows; row += team.step) {
      const int partner = next[row];
      if (partner < 0) {
        store_vec(out, poisoned_vector<T>());
      } else {
        if (!kPlain) c = weights(row0 + row, partner);
        if (kPlain || !a.in_place() || !c.keep()) {
          Vec<T> mine, theirs;
          mine.raw = *own;
          theirs.raw = *slot_of(partner);
          store_vec(out, kPlain ? mix_both(mine, theirs, c) : mix_any(mine, theirs, c));
        }
      }
      own += blockDim.x;
      out += team.step * a.out_row;
    }
  }
  // Rows are mixed with rows that other threads, of this block or of its cluster, load.
  __device__ __forceinline__ void barrier() const {
    if constexpr (kCluster) {
      MMIX_CLUSTER_BARRIER(); // all have loaded, or all have mixed: see the calls
    } else {
      __syncthreads(); // the same
    }
  }
};

// Shared memory: the claims, next of the block's rows, then the slots.
template <class T, bool kCluster>
__device__ __forceinline__ void mix_aligned_slab_block(const MixArgs<T> &a) {
  AlignedSlab<T, kCluster> slab(a);
  const Weights<T> weights(a);
  const int own_rows = slab.rows, blocks = kCluster ? a.cluster : 1;
  const auto c = weights(0, 0);
  const bool plain = a.lam.stride == 0 && c.own != 0 && c.other != 0, still = weights.still();
  const int64_t tiles = tile_count(a.columns, a.width), hop = a.blocks / blocks;
  int64_t index = blockIdx.x / blocks;
  TilePlace at(a.columns, a.width, index);
  Vec<T> v[kAtOnce];
  if (!still) slab.fetch_first(at, v);

  unsigned *memory = dynamic_shared<unsigned>();
  const Claims claims = claim_rows(a.pairing, memory);
  int *next = reinterpret_cast<int *>(memory);
  link_rows(a.pairing, claims, slab.row0, own_rows, a.adjoint, next);
  slab.next = next;
  slab.slots = reinterpret_cast<uint4 *>(next + round_up(slab.per, 4));
  for (;;) {
    if (!still) slab.load_tile(at, v);
    slab.barrier(); // a row is mixed with one that other threads have loaded
    const TilePlace now = at;
    index += hop;
    if (index < tiles) {
      at = TilePlace(a.columns, a.width, index);
      if (!still) slab.fetch_first(at, v);
    }
    if (plain && !still)
      slab.template write_tile<true>(now, weights, c);
    else
      slab.template write_tile<false>(now, weights, c);
    if (!kCluster && index >= tiles) return;
    slab.barrier(); // the next loads overwrite rows that others may still be mixing
    if (index >= tiles) return;
  }
}

template <class T, bool kTargets>
__global__ void __launch_bounds__(kSlabThreads)
    mix_slab_aligned(const MixArgs<T> a, const TargetArgs t) {
  mix_or_targets<kTargets>(a, t, mix_aligned_slab_block<T, false>);
}
template <class T, bool kTargets>
__global__ void __launch_bounds__(kSlabThreads)
    mix_slab_cluster(const MixArgs<T> a, const TargetArgs t) {
  mix_or_targets<kTargets>(a, t, mix_aligned_slab_block<T, true>);
}

} // namespace mmix
