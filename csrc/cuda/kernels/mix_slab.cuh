// The slab for rows that are made of aligned 16-byte vectors: addresses are increments, and a
// thread has the same vector of each of its rows.
#pragma once
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

// A tile of all rows.
template <class T> struct AlignedSlab {
  static constexpr int kCount = Vec<T>::kCount;
  const MixArgs<T> &a;
  const Team team;
  const int *next;
  uint4 *slots; // a vector for each row and lane

  __device__ __forceinline__ bool active(const TilePlace &at) const {
    return team.lane * kCount < at.n;
  }
  // Of this thread's vector in its first row.
  __device__ __forceinline__ int64_t offset(int64_t row_stride) const {
    return team.first * row_stride + team.lane * kCount;
  }
  // Starts to copy the tile into the slots.
  __device__ __forceinline__ void load_tile(const TilePlace &at) const {
    if (!active(at)) return;
    const T *x = a.x + at.x + offset(a.x_row);
    const int64_t hop = team.step * a.x_row;
    uint4 *slot = slots + threadIdx.x;
#pragma unroll 4
    for (int row = team.first; row < a.batch; row += team.step) {
      copy_vec(slot, x);
      slot += blockDim.x;
      x += hop;
    }
  }
  // Writes the mixed rows. With kPlain, c holds for all rows and neither coefficient is 0.
  template <bool kPlain>
  __device__ __forceinline__ void write_tile(const TilePlace &at, const Weights<T> &weights,
                                             Coefficients<Acc<T>> c) const {
    if (!active(at)) return;
    T *out = a.out + at.out + offset(a.out_row);
    const int64_t hop = team.step * a.out_row;
    const auto *own = slots + threadIdx.x;
    const auto *lane = reinterpret_cast<const char *>(slots + team.lane);
    const int row_bytes = a.lanes * int(sizeof(uint4));
    const int *link = next + team.first;
#pragma unroll kPlain ? 4 : 1
    for (int row = team.first; row < a.batch; row += team.step) {
      const int partner = *link;
      if (partner < 0) {
        store_vec(out, vector_of_nan<T>());
      } else {
        if (!kPlain) c = weights(row, partner);
        if (kPlain || !a.in_place() || !c.keep()) {
          Vec<T> mine, theirs;
          mine.raw = *own;
          theirs.raw = *reinterpret_cast<const uint4 *>(lane + partner * row_bytes);
          store_vec(out, kPlain ? mix_both(mine, theirs, c) : mix_any(mine, theirs, c));
        }
      }
      own += blockDim.x;
      link += team.step;
      out += hop;
    }
  }
};

// Shared memory: the claims, next, then the slots.
template <class T> __device__ __forceinline__ void mix_aligned_slab_block(const MixArgs<T> &a) {
  unsigned *memory = dynamic_shared<unsigned>();
  const Claims claims = place_claims(a.pairing, memory);
  int *next = reinterpret_cast<int *>(memory);
  const AlignedSlab<T> slab{a, Team(a.lanes), next,
                            reinterpret_cast<uint4 *>(next + round_up(a.batch, kLineWords))};
  const Weights<T> weights(a);
  bool linked = false;
  for (int64_t index = blockIdx.x; index < a.tiles; index += a.blocks) {
    const TilePlace at(a.columns, a.width, index);
    // The first tile, and perm, do not wait for λ.
    if (!linked || !weights.still()) slab.load_tile(at);
    if (!linked) {
      link_rows(a.pairing, claims, a.adjoint, next);
      linked = true;
    }
    wait_copies();
    __syncthreads(); // a row is mixed with one that other threads have loaded
    if (weights.plain())
      slab.template write_tile<true>(at, weights, weights.of_all());
    else
      slab.template write_tile<false>(at, weights, weights.of_all());
    if (index + a.blocks < a.tiles)
      __syncthreads(); // others may still be mixing the rows that the next loads overwrite
  }
}

template <class T, bool kTargets>
__global__ void __launch_bounds__(kSlabThreads, 1)
    mix_slab_aligned(const MixArgs<T> a, const TargetArgs t) {
  mix_or_targets<kTargets>(a, t, mix_aligned_slab_block<T>);
}

} // namespace mmix
