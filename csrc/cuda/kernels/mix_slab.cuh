// The slab for rows that are made of aligned 16-byte vectors: addresses are increments, and a
// thread has the same vector of each of its rows.
#pragma once
#include "cuda/kernels/mix.cuh"
#include "cuda/kernels/vectors.cuh"
#include <type_traits>

namespace mmix {

// Calls body with the number of rows to take at once, until all `count` are taken.
template <int kRows> using Rows = std::integral_constant<int, kRows>;
template <class Body> __device__ __forceinline__ void for_rows(int count, const Body &body) {
  constexpr int kAtOnce = 4;
#pragma unroll 1 // the body is unrolled
  for (; count >= kAtOnce; count -= kAtOnce) body(Rows<kAtOnce>{});
#pragma unroll 1
  for (; count > 0; --count) body(Rows<1>{});
}

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
  // The rows of this thread.
  __device__ __forceinline__ int rows() const {
    return (a.batch - team.first + team.step - 1) >> team.log_step;
  }
  // Starts to copy the tile into the slots.
  __device__ __forceinline__ void load_tile(const TilePlace &at) const {
    if (!active(at)) return;
    const T *x = a.x + at.x + offset(a.x_row);
    const int64_t hop = team.step * a.x_row;
    uint4 *slot = slots + threadIdx.x;
    for_rows(rows(), [&]<int kRows>(Rows<kRows>) {
#pragma unroll
      for (int u = 0; u < kRows; ++u) copy_vec(slot + u * blockDim.x, x + u * hop);
      slot += kRows * blockDim.x;
      x += kRows * hop;
    });
  }
  __device__ __forceinline__ Vec<T> kept(const uint4 *slot) const {
    Vec<T> v;
    v.raw = *slot;
    return v;
  }
  // Writes the mixed rows of a permutation. c holds for all rows, and neither coefficient is 0.
  __device__ __forceinline__ void write_plain(const TilePlace &at, Coefficients<Acc<T>> c) const {
    if (!active(at)) return;
    T *out = a.out + at.out + offset(a.out_row);
    const int64_t hop = team.step * a.out_row;
    const uint4 *own = slots + threadIdx.x, *lane = slots + team.lane;
    const int *link = next + team.first;
    for_rows(rows(), [&]<int kRows>(Rows<kRows>) {
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
        const uint4 *other = lane + link[u * team.step] * a.lanes;
        store_vec(out + u * hop, mix_both(kept(own + u * blockDim.x), kept(other), c));
      }
      link += kRows * team.step;
      own += kRows * blockDim.x;
      out += kRows * hop;
    });
  }
  // Writes the mixed rows, whatever perm and λ are.
  __device__ __forceinline__ void write_any(const TilePlace &at, const Weights<T> &weights) const {
    if (!active(at)) return;
    T *out = a.out + at.out + offset(a.out_row);
    for (int row = team.first; row < a.batch; row += team.step, out += team.step * a.out_row) {
      const int partner = next[row];
      if (partner < 0) {
        store_vec(out, vector_of_nan<T>());
        continue;
      }
      const auto c = weights(row, partner);
      if (a.in_place() && c.keep()) continue;
      const uint4 *slot = slots + team.lane;
      store_vec(out, mix_any(kept(slot + row * a.lanes), kept(slot + partner * a.lanes), c));
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
    if (weights.plain() && claims.regular())
      slab.write_plain(at, weights.of_all());
    else
      slab.write_any(at, weights);
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
