// out[i] = own[i]*x[i] + other[i]*x[partner(i)] for every column of a batch, in place or not.
// Columns are independent, so a block takes some columns of all rows. Here are the ways for any
// layout; those for aligned rows are in the other mix_*.cuh.
//   slab     the block loads its part of every row into shared memory, then writes all mixed rows.
//            For a batch that fits.
//   walk     in place: each warp walks along partners and holds two rows. A row is overwritten only
//            after the walk has read its partner. For any batch.
// Both read and write each element once.
#pragma once
#include "cuda/kernels/columns.cuh"
#include "cuda/kernels/pairing.cuh"
#include "cuda/kernels/targets.cuh"
#include "cuda/kernels/tile.cuh"

namespace mmix {

constexpr int kSlabThreads = 1024; // at most
constexpr int kWalkWarps = 16;     // of a block
constexpr int kCutRows = 32;       // at most; the block saves their tiles
constexpr unsigned kAll = 0xffffffffu;

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
  unsigned blocks; // the blocks of the grid that mix; the rest write targets
  Cut cut;
  bool table;  // walks: of all partners, in shared memory
  int cluster; // blocks that share a slab; 1 without clusters

  int64_t tiles; // of the aligned slab

  __device__ bool in_place() const { return x == out; }
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
  T *tiles = reinterpret_cast<T *>(next + round_up(a.batch, 4));
  link_rows(a.pairing, claims, 0, a.batch, a.adjoint, next);

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

// The tiles of a warp in shared memory: the head of its walk, and two rows in turn.
constexpr int kWalkTiles = 3;

// Walks along partners from row `first`, whose tile is in `head`. Ends at a bad row, at a cut row
// (some warp has saved its tile in `heads`), or back at `first`.
template <class T, bool kTargets>
__device__ __forceinline__ void walk(const TileView<T> &view, const Weights<T> &weights,
                                     const Links &links, int first, T *head, T *heads, T *turns,
                                     ThreadGroup group) {
  const MixArgs<T> &a = view.a;
  const auto ends = [&](int row) { return row < 0 || row == first || a.cut(row); };
  Tile<T> own = view.tile(first, head), other = own;
  int row = first, partner = links(row);
  // Loads the row after next while a row is mixed. float64, and targets in the same launch, leave
  // too few registers.
  constexpr bool kAhead = sizeof(T) < 8 && !kTargets;
  Vec<T> v;
  bool some = kAhead && !ends(partner) && view.tile(partner, turns).fetch(group, v);
  for (int turn = 0;; turn ^= 1) {
    if (partner < 0) {
      poison_tile(view.out(row), view.at.n, group);
      return;
    }
    const bool last = ends(partner);
    if (last) {
      other =
          view.tile(partner, partner == first ? head : heads + partner / a.cut.step() * a.pitch);
    } else {
      other = view.tile(partner, turns + turn * a.pitch);
      if (!kAhead) some = other.fetch(group, v);
      if (some) other.keep(group, v);
      other.copy_edges(group);
    }
    const int after = last ? kBad : links(partner);
    if (kAhead && !ends(after)) some = view.tile(after, turns).fetch(group, v);
    __syncwarp(); // the row is mixed with elements that other lanes have loaded
    const auto c = weights(row, partner);
    if (!a.in_place() || !c.keep())
      mix_tile(view.out(row), own.begin(), other.begin(), view.at.n, c, group);
    __syncwarp(); // the next load goes where other lanes may still be reading
    if (last) return;
    own = other;
    row = partner;
    partner = after;
  }
}

// Shared memory: the links, the heads of the cut rows, and kWalkTiles tiles for each warp.
template <class T, bool kTargets>
__device__ __forceinline__ void mix_walk_block(const MixArgs<T> &a) {
  unsigned *memory = dynamic_shared<unsigned>();
  const Links links = link_all(a.pairing, a.table, memory);
  T *heads = reinterpret_cast<T *>(memory);
  const Weights<T> weights(a);
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const ThreadGroup group{static_cast<int>(threadIdx.x % 32), 32};
  const int pitch = a.pitch, cuts = a.cut.count(a.batch);
  T *own_head = heads + (cuts + kWalkTiles * warp) * pitch, *turns = own_head + pitch;
  for (int64_t index = blockIdx.x; index < tile_count(a.columns, a.width); index += a.blocks) {
    const TileView<T> view(a, index);
    if (weights.still()) {
      for (int row = warp; row < a.batch; row += warps)
        if (links(row) < 0) poison_tile(view.out(row), view.at.n, group);
      continue;
    }
    for (int k = warp; k < cuts; k += warps)
      view.tile(k * a.cut.step(), heads + k * pitch).copy(group);
    __syncthreads(); // a walk reads heads that other warps save, and may overwrite their rows
    for (int k = warp; k < cuts; k += warps)
      walk<T, kTargets>(view, weights, links, k * a.cut.step(), heads + k * pitch, heads, turns,
                        group);
    for (int base = warp * 32; base < a.batch; base += warps * 32) {
      const int mine = base + group.lane;
      unsigned found = __ballot_sync(kAll, mine < a.batch && links.starts(mine, a.cut));
      for (; found; found &= found - 1) {
        const int first = base + __ffs(static_cast<int>(found)) - 1;
        if (links(first) < 0) {
          poison_tile(view.out(first), view.at.n, group);
          continue;
        }
        view.tile(first, own_head).copy(group);
        walk<T, kTargets>(view, weights, links, first, own_head, heads, turns, group);
      }
    }
    __syncthreads(); // the next tile's heads overwrite those that other warps may still be reading
  }
}

// With kTargets the last blocks of the grid write the mixed targets, in float32 arithmetic. So a
// whole batch takes one launch.
template <bool kTargets, class T, class Mix>
__device__ __forceinline__ void mix_or_targets(const MixArgs<T> &a, const TargetArgs &t,
                                               const Mix &mix) {
  static_assert(!kTargets || sizeof(T) < 8, "with float64 too there are not enough registers");
  if constexpr (kTargets) {
    if (blockIdx.x >= a.blocks)
      return targets_block<float, true>(t, blockIdx.x - a.blocks, gridDim.x - a.blocks);
  }
  mix(a);
}

template <class T, bool kTargets>
__global__ void __launch_bounds__(kSlabThreads) mix_slab(const MixArgs<T> a, const TargetArgs t) {
  mix_or_targets<kTargets>(a, t, mix_slab_block<T>);
}
template <class T, bool kTargets>
__global__ void __launch_bounds__(kWalkWarps * 32, 2)
    mix_walk(const MixArgs<T> a, const TargetArgs t) {
  mix_or_targets<kTargets>(a, t, mix_walk_block<T, kTargets>);
}

// Marks the claims of a batch that is too large for shared memory.
__global__ void claim_rows_kernel(const Pairing p) {
  Claims(p.claims, p.batch).mark(p.perm, grid_share(), nullptr);
}

} // namespace mmix
