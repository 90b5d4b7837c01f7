// The slab for rows that are made of aligned 16-byte vectors: addresses are increments, and a
// thread has the same vector of each of its rows. Where a tile of all rows does not fit in one
// block's shared memory, or too few tiles would leave multiprocessors idle, the blocks of a cluster
// share it.
#pragma once
#include "cuda/kernels/cluster.cuh"
#include "cuda/kernels/mix.cuh"
#include "cuda/kernels/vectors.cuh"

namespace mmix {

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
    rows = kCluster ? min(per, a.batch - row0) : per;
  }
  __device__ __forceinline__ bool active(const TilePlace &at) const {
    return team.lane * kCount < at.n;
  }
  // Of this thread's vector in its first row.
  __device__ __forceinline__ int64_t offset(int64_t row_stride) const {
    return (row0 + team.first) * row_stride + team.lane * kCount;
  }
  // Starts to copy the tile into the slots.
  __device__ __forceinline__ void load_tile(const TilePlace &at) const {
    if (!active(at)) return;
    const T *x = a.x + at.x + offset(a.x_row);
    const int64_t hop = team.step * a.x_row;
    uint4 *slot = slots + threadIdx.x;
#pragma unroll 4
    for (int row = team.first; row < rows; row += team.step) {
      copy_vec(slot, x);
      slot += blockDim.x;
      x += hop;
    }
  }
  // This thread's vector of a row. lane is slots + team.lane, row_bytes are those of all lanes.
  __device__ __forceinline__ const uint4 *slot_of(int row, char *lane, int row_bytes) const {
    if constexpr (!kCluster) return reinterpret_cast<const uint4 *>(lane + row * row_bytes);
    const int rank = row / per;
    return MMIX_CLUSTER_SHARED(
        uint4, reinterpret_cast<uint4 *>(lane + (row - rank * per) * row_bytes), rank);
  }
  // Writes the mixed rows. With kPlain, c holds for all rows and neither coefficient is 0.
  template <bool kPlain>
  __device__ __forceinline__ void write_tile(const TilePlace &at, const Weights<T> &weights,
                                             Coefficients<Acc<T>> c) const {
    if (!active(at)) return;
    T *out = a.out + at.out + offset(a.out_row);
    const int64_t hop = team.step * a.out_row;
    const auto *own = slots + threadIdx.x;
    auto *lane = reinterpret_cast<char *>(slots + team.lane);
    const int row_bytes = a.lanes * int(sizeof(uint4));
    const int *link = next + team.first;
#pragma unroll kPlain ? 4 : 1
    for (int row = team.first; row < rows; row += team.step) {
      const int partner = *link;
      if (partner < 0) {
        store_vec(out, poisoned_vector<T>());
      } else {
        if (!kPlain) c = weights(row0 + row, partner);
        if (kPlain || !a.in_place() || !c.keep()) {
          Vec<T> mine, theirs;
          mine.raw = *own;
          theirs.raw = *slot_of(partner, lane, row_bytes);
          store_vec(out, kPlain ? mix_both(mine, theirs, c) : mix_any(mine, theirs, c));
        }
      }
      own += blockDim.x;
      link += team.step;
      out += hop;
    }
  }
};

// Shared memory: the claims, next of the block's rows, then the slots.
template <class T, bool kCluster>
__device__ __forceinline__ void mix_aligned_slab_block(const MixArgs<T> &a) {
  AlignedSlab<T, kCluster> slab(a);
  const int blocks = kCluster ? a.cluster : 1;
  unsigned *memory = dynamic_shared<unsigned>();
  const Claims claims = place_claims(a.pairing, memory);
  int *next = reinterpret_cast<int *>(memory);
  slab.next = next;
  slab.slots = reinterpret_cast<uint4 *>(next + round_up(slab.per, 4));
  const Weights<T> weights(a);
  const bool still = weights.still();
  bool linked = false;
  for (int64_t index = blockIdx.x / blocks; index < a.tiles; index += a.blocks / blocks) {
    const TilePlace at(a.columns, a.width, index);
    if (!still) slab.load_tile(at);
    if (!linked) { // while the first tile is on its way
      link_rows(a.pairing, claims, slab.row0, slab.rows, a.adjoint, next);
      linked = true;
    }
    wait_copies();
    if constexpr (kCluster) {
      MMIX_CLUSTER_BARRIER(); // a row is mixed with one that other threads have loaded
    } else {
      __syncthreads(); // a row is mixed with one that other threads have loaded
    }
    if (weights.plain())
      slab.template write_tile<true>(at, weights, weights.of_all());
    else
      slab.template write_tile<false>(at, weights, weights.of_all());
    if constexpr (kCluster) {
      MMIX_CLUSTER_BARRIER(); // others may still be mixing the rows that the next loads overwrite
    } else {
      if (index + a.blocks < a.tiles)
        __syncthreads(); // others may still be mixing the rows that the next loads overwrite
    }
  }
}

template <class T, bool kTargets>
__global__ void __launch_bounds__(kSlabThreads, 1)
    mix_slab_aligned(const MixArgs<T> a, const TargetArgs t) {
  mix_or_targets<kTargets>(a, t, mix_aligned_slab_block<T, false>);
}
template <class T, bool kTargets>
__global__ void __launch_bounds__(kSlabThreads, 1)
    mix_slab_cluster(const MixArgs<T> a, const TargetArgs t) {
  mix_or_targets<kTargets>(a, t, mix_aligned_slab_block<T, true>);
}

} // namespace mmix
