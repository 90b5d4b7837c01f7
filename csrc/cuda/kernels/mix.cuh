// out[i] = own[i]*x[i] + other[i]*x[partner(i)] for every column of a batch, in place or not. Three
// ways, chosen by mix_plan.h:
//   slab           (here) any layout of a batch whose tile fits in shared memory: the block loads
//                  its part of every row, then writes all mixed rows
//   aligned slab   (mix_slab.cuh) the same for rows of aligned 16-byte vectors
//   gather         (mix_gather.cuh) any batch: rows are read where they are
#pragma once
#include "cuda/kernels/columns.cuh"
#include "cuda/kernels/pairing.cuh"
#include "cuda/kernels/targets.cuh"
#include "cuda/kernels/tile.cuh"

namespace mmix {

constexpr int kSlabThreads = 1024; // at most

template <class T> struct MixArgs {
  const T *x;
  T *out; // may be x
  int batch;
  int64_t x_row, out_row; // strides of the batch dimension
  Columns columns;
  int width, pitch, lanes; // of a tile: columns, elements of shared memory, threads for each row
  Pairing pairing;
  bool adjoint;
  LamRef lam;
  unsigned blocks;      // slabs: the blocks of the grid that mix; the rest write targets
  int64_t tiles, round; // round: tiles that a gather takes at a time
  void *kept;           // in place: global memory for a round; null: it is in shared memory

  __device__ bool in_place() const { return x == out; }
};

// The rows of a thread: first, first + step, ... Its vector or piece of them is `lane` of the
// tile's.
struct Team {
  int lane, first, step, log_step;
  __device__ __forceinline__ explicit Team(int lanes) { // a power of two, as the threads are
    const int log_lanes = 31 - __clz(lanes), thread = static_cast<int>(threadIdx.x);
    lane = thread & (lanes - 1);
    first = thread >> log_lanes;
    log_step = 31 - __clz(static_cast<int>(blockDim.x)) - log_lanes;
    step = 1 << log_step;
  }
};

// The coefficients of a row: y = own*x[row] + other*x[partner].
template <class T> struct Weights {
  using A = Acc<T>;
  const MixArgs<T> &a;
  const A lam0;
  __device__ explicit Weights(const MixArgs<T> &a_) : a(a_), lam0(a_.lam.template own<A>(0)) {}
  __device__ A lam(int row) const { return a.lam.stride ? a.lam.template own<A>(row) : lam0; }
  __device__ Coefficients<A> operator()(int row, int partner) const {
    const A own = lam(row);
    return {own, plus(A(1), -(a.adjoint ? lam(partner) : own))};
  }
  // One λ for all rows that leaves both terms: of these coefficients.
  __device__ bool plain() const { return a.lam.stride == 0 && lam0 != 0 && lam0 != 1; }
  __device__ Coefficients<A> of_all() const { return {lam0, plus(A(1), -lam0)}; }
  // One λ of 0 for all rows: each row becomes its partner.
  __device__ bool pastes() const { return a.lam.stride == 0 && lam0 == 0; }
  // One λ of 1 for all rows, in place: only bad rows change.
  __device__ bool still() const { return a.in_place() && a.lam.stride == 0 && lam0 == 1; }
};

template <class T> struct TileView { // the place of the current tile of a block
  const MixArgs<T> &a;
  TilePlace at;
  __device__ TileView(const MixArgs<T> &a_, int64_t index)
      : a(a_), at(a_.columns, a_.width, index) {}
  __device__ Tile<T> tile(int row, T *shared) const {
    return {shared, a.x + at.x + row * a.x_row, at.n};
  }
  __device__ T *out(int row) const { return a.out + at.out + row * a.out_row; }
};

// Shared memory: the claims, next[batch], then a tile of every row.
template <class T> __device__ __forceinline__ void mix_slab_block(const MixArgs<T> &a) {
  unsigned *memory = dynamic_shared<unsigned>();
  const Claims claims = place_claims(a.pairing, memory);
  int *next = reinterpret_cast<int *>(memory);
  T *tiles = reinterpret_cast<T *>(next + round_up(a.batch, kLineWords));
  link_rows(a.pairing, claims, a.adjoint, next);

  const Weights<T> weights(a);
  const ThreadGroup group{static_cast<int>(threadIdx.x) % a.lanes, a.lanes};
  const int first = threadIdx.x / a.lanes, step = blockDim.x / a.lanes;
  for (int64_t index = blockIdx.x; index < tile_count(a.columns, a.width); index += a.blocks) {
    const TileView<T> view(a, index);
    const auto tile = [&](int row) { return view.tile(row, tiles + int64_t{row} * a.pitch); };
    constexpr int kAtOnce = 4; // loads in flight for each thread
    for (int row = weights.still() ? a.batch : first; row < a.batch; row += kAtOnce * step) {
      Vec<T> v[kAtOnce];
      bool some[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u)
        some[u] = row + u * step < a.batch && tile(row + u * step).fetch(group, v[u]);
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        if (some[u]) tile(row + u * step).keep(group, v[u]);
        if (row + u * step < a.batch) tile(row + u * step).copy_edges(group);
      }
    }
    __syncthreads(); // a row is mixed with one that other threads have loaded
    for (int row = first; row < a.batch; row += step) {
      const int partner = next[row];
      if (partner < 0) {
        poison_tile(view.out(row), view.at.n, group);
        continue;
      }
      const auto c = weights(row, partner);
      if (a.in_place() && c.keep()) continue;
      mix_tile(view.out(row), tile(row).begin(), tile(partner).begin(), view.at.n, c, group);
    }
    __syncthreads(); // the next loads overwrite rows that other threads may still be mixing
  }
}

// With kTargets the last blocks of the grid write the mixed targets, in float32 arithmetic. So a
// whole batch takes one launch.
template <bool kTargets, class T, class Mix>
__device__ __forceinline__ void mix_or_targets(const MixArgs<T> &a, const TargetArgs &t,
                                               const Mix &mix) {
  static_assert(!kTargets || sizeof(T) < 8, "with float64 too there are not enough registers");
  if constexpr (kTargets) {
    if (blockIdx.x >= a.blocks) {
      unsigned *memory = dynamic_shared<unsigned>();
      const Claims claims = claim_rows(t.pairing, memory);
      return targets_block<float, true>(t, claims, blockIdx.x - a.blocks, gridDim.x - a.blocks);
    }
  }
  mix(a);
}

template <class T, bool kTargets>
__global__ void __launch_bounds__(kSlabThreads) mix_slab(const MixArgs<T> a, const TargetArgs t) {
  mix_or_targets<kTargets>(a, t, mix_slab_block<T>);
}
// Marks the claims of a batch that is too large for shared memory.
inline __global__ void claim_rows_kernel(const Pairing p) {
  Claims(p.claims, p.batch).mark(p.perm, grid_share(), nullptr);
}

} // namespace mmix
