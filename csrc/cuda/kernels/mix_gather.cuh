// Out of place, each row is mixed by itself: its partner is read where it is, mostly from the L2
// cache, where the block that copied that row has put it. Any number of blocks share the rows. With
// kVectors, rows are made of aligned 16-byte vectors; else of single elements, anywhere.
#pragma once
#include "cuda/kernels/mix_slab.cuh"

namespace mmix {

constexpr int kRowsAtOnce = 2; // rows in flight for each thread, with their partners

// What a thread moves at a time, and where the lanes of a tile have it.
template <class T, bool kVectors> struct Pieces {
  using Piece = Vec<T>;
  static constexpr int kCount = Vec<T>::kCount;
  static __device__ __forceinline__ Piece load_piece(const T *p) { return load_vec(p); }
  static __device__ __forceinline__ void store_piece(T *p, Piece v) { store_vec(p, v); }
  static __device__ __forceinline__ Piece mixed(Piece a, Piece b, Coefficients<Acc<T>> c) {
    return mix_any(a, b, c);
  }
  static __device__ __forceinline__ Piece poison() { return poisoned_vector<T>(); }
  static __host__ __device__ int64_t tiles(const Columns &c, int lanes) {
    return tile_count(c, lanes * kCount);
  }
  // The offsets of a lane's piece. Returns false if it has none.
  static __device__ __forceinline__ bool place(const Columns &c, int lanes, int64_t tile, int lane,
                                               Offsets &o) {
    const TilePlace at(c, lanes * kCount, tile);
    o = {at.x + lane * kCount, at.out + lane * kCount};
    return lane * kCount < at.n;
  }
};
template <class T> struct Pieces<T, false> {
  using Piece = T;
  static __device__ __forceinline__ T load_piece(const T *p) { return load(p); }
  static __device__ __forceinline__ void store_piece(T *p, T v) { store(p, v); }
  static __device__ __forceinline__ T mixed(T a, T b, Coefficients<Acc<T>> c) { return c(a, b); }
  static __device__ __forceinline__ T poison() { return not_a_number<T>(); }
  static __host__ __device__ int64_t tiles(const Columns &c, int lanes) { // of any columns
    return (c.run * c.runs + lanes - 1) / lanes;
  }
  static __device__ __forceinline__ bool place(const Columns &c, int lanes, int64_t tile, int lane,
                                               Offsets &o) {
    const int64_t column = tile * lanes + lane, in_run = column % c.run;
    if (column >= c.run * c.runs) return false;
    o = run_offsets(c, column / c.run);
    o = {o.x + in_run, o.out + in_run};
    return true;
  }
};

// Shared memory: the claims.
template <class T, bool kVectors>
__device__ __forceinline__ void mix_gather_block(const MixArgs<T> &a) {
  using P = Pieces<T, kVectors>;
  const Team team(a.lanes);
  const Weights<T> weights(a);
  const int at_once = kRowsAtOnce * team.step, chunks = (a.batch + at_once - 1) / at_once;
  const int64_t units = P::tiles(a.columns, a.lanes) * chunks;
  unsigned *memory = dynamic_shared<unsigned>();
  const Claims claims = place_claims(a.pairing, memory);
  bool marked = false;
  // Blocks that run at the same time have different rows of the same columns.
  for (int64_t unit = blockIdx.x; unit < units; unit += a.blocks) {
    Offsets o{0, 0};
    const bool active = P::place(a.columns, a.lanes, unit / chunks, team.lane, o);
    const int row0 = static_cast<int>(unit % chunks) * at_once + team.first;
    const int end = active ? a.batch : 0;
    const T *x = a.x + o.x;
    T *out = a.out + o.out;
    // Row `named` is the partner of `row`; in the adjoint it is the other way round.
    typename P::Piece of_row[kRowsAtOnce], of_named[kRowsAtOnce];
    int named[kRowsAtOnce];
#pragma unroll
    for (int u = 0; u < kRowsAtOnce; ++u) {
      const int row = row0 + u * team.step;
      if (row >= end) continue;
      named[u] = claims.in_range(load(a.pairing.perm + row));
      of_row[u] = P::load_piece(x + row * a.x_row);
      if (named[u] >= 0) of_named[u] = P::load_piece(x + named[u] * a.x_row);
    }
    if (!marked) mark_claims(a.pairing, claims); // while the first rows are on their way
    marked = true;
#pragma unroll
    for (int u = 0; u < kRowsAtOnce; ++u) {
      const int row = row0 + u * team.step;
      if (row >= end) continue;
      const bool good = named[u] >= 0 && !claims.contested(named[u]);
      if (a.adjoint ? !claims.named(row) : !good)
        P::store_piece(out + row * a.out_row, P::poison());
      if (!good) continue;
      const int own = a.adjoint ? named[u] : row, partner = a.adjoint ? row : named[u];
      const auto mine = a.adjoint ? of_named[u] : of_row[u];
      const auto theirs = a.adjoint ? of_row[u] : of_named[u];
      P::store_piece(out + own * a.out_row, P::mixed(mine, theirs, weights(own, partner)));
    }
  }
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kSlabThreads) mix_gather(const MixArgs<T> a) {
  mix_gather_block<T, kVectors>(a);
}

} // namespace mmix
