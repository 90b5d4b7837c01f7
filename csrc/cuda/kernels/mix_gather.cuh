// The mix of any batch: rows are read where they are, their partners mostly from the L2 cache.
// Tiles are taken in rounds that fit in that cache. In place, a thread keeps the mixed pieces of a
// round in shared memory until all threads of the grid have read theirs; then it writes them. So no
// row is overwritten too early, whatever the permutation, and every thread has work at all times.
// With kVectors, rows are made of aligned 16-byte vectors; else of single elements, anywhere.
#pragma once
#include "cuda/kernels/grid.cuh"
#include "cuda/kernels/mix_slab.cuh"

namespace mmix {

constexpr int kGatherThreads = 512; // at most: 128 registers for each, for many loads in flight

// What a thread moves at a time, and where the lanes of a tile have it.
template <class T, bool kVectors> struct Pieces {
  using Piece = Vec<T>;
  static constexpr int kCount = Vec<T>::kCount;
  static constexpr int kAtOnce = 4; // rows, and as many partners, in flight for each thread
  static __device__ __forceinline__ Piece load_piece(const T *p) { return load_vec(p); }
  static __device__ __forceinline__ void store_piece(T *p, Piece v) { store_vec(p, v); }
  static __device__ __forceinline__ Piece mixed(Piece a, Piece b, Coefficients<Acc<T>> c) {
    return mix_any(a, b, c);
  }
  static __device__ __forceinline__ Piece nan() { return vector_of_nan<T>(); }
  // a, but b where the mask has a bit.
  static __device__ __forceinline__ Piece blend(Piece a, Piece b, unsigned mask) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (mask >> i & 1) a.at[i] = b.at[i];
    return a;
  }
  static __host__ __device__ int64_t tiles(const Columns &c, int lanes) {
    return tile_count(c, lanes * kCount);
  }
  // The column and the offsets of a lane's piece. Returns false if it has none.
  static __device__ __forceinline__ bool place(const Columns &c, int lanes, int64_t tile, int lane,
                                               int64_t &column, Offsets &o) {
    const TilePlace at(c, lanes * kCount, tile);
    column = at.column + lane * kCount;
    o = {at.x + lane * kCount, at.out + lane * kCount};
    return lane * kCount < at.n;
  }
};
template <class T> struct Pieces<T, false> {
  using Piece = T;
  static constexpr int kCount = 1;
  static constexpr int kAtOnce = sizeof(T) == 8 ? 4 : 8;
  static __device__ __forceinline__ T load_piece(const T *p) { return load(p); }
  static __device__ __forceinline__ void store_piece(T *p, T v) { store(p, v); }
  static __device__ __forceinline__ T mixed(T a, T b, Coefficients<Acc<T>> c) { return c(a, b); }
  static __device__ __forceinline__ T nan() { return not_a_number<T>(); }
  static __device__ __forceinline__ T blend(T a, T b, unsigned mask) { return mask ? b : a; }
  static __host__ __device__ int64_t tiles(const Columns &c, int lanes) { // of any columns
    return (c.run * c.runs + lanes - 1) / lanes;
  }
  static __device__ __forceinline__ bool place(const Columns &c, int lanes, int64_t tile, int lane,
                                               int64_t &column, Offsets &o) {
    column = tile * lanes + lane;
    if (column >= c.run * c.runs) return false;
    const int64_t in_run = column % c.run;
    o = run_offsets(c, column / c.run);
    o = {o.x + in_run, o.out + in_run};
    return true;
  }
};

// Which elements of a piece are mixed: here all. cutmix.cuh has the other answer.
struct Everything {
  static constexpr bool kPartly = false;
  __device__ void move_to(int64_t) {}
  __device__ unsigned mask(int) const { return ~0u; }
};

// The rows of a thread in one round: the block has a share of all rows of all tiles, tile after
// tile, and its teams take turns.
template <class T, bool kVectors, class Cover> struct RoundRows {
  using P = Pieces<T, kVectors>;
  const MixArgs<T> &a;
  Team team;
  Cover cover;
  int64_t left, tile; // rows of the block from this one on
  int row;
  bool active; // this lane has a piece
  Offsets at;

  __device__ __forceinline__ RoundRows(const MixArgs<T> &a_, Cover cover_, int64_t round)
      : a(a_), team(a_.lanes), cover(cover_) {
    const int64_t tile0 = round * a.round, tiles = min(a.round, a.tiles - tile0);
    const int64_t all = tiles * a.batch, share = (all + gridDim.x - 1) / gridDim.x;
    const int64_t from = share * blockIdx.x + team.first;
    left = min(share * (blockIdx.x + int64_t{1}), all) - from;
    if (left <= 0) return;
    tile = tile0 + from / a.batch;
    row = static_cast<int>(from % a.batch);
    find();
  }
  __device__ __forceinline__ bool any() const { return left > 0; }
  __device__ __forceinline__ unsigned mask() const { return active ? cover.mask(row) : 0; }
  __device__ __forceinline__ void next() {
    left -= team.step;
    row += team.step;
    if (row < a.batch || left <= 0) return;
    for (; row >= a.batch; row -= a.batch) ++tile;
    find();
  }

private:
  __device__ __forceinline__ void find() {
    int64_t column = 0;
    active = P::place(a.columns, a.lanes, tile, team.lane, column, at);
    if (active) cover.move_to(column);
  }
};

// A piece of a row, and that of the row which its entry of perm names: its partner, or in the
// adjoint the row of which it is the partner.
template <class T, bool kVectors> struct Loaded {
  using P = Pieces<T, kVectors>;
  int row, named; // named is kBad if the entry is out of range
  unsigned mask;  // of the elements that are mixed
  T *out;
  typename P::Piece of_row, of_named;
  __device__ __forceinline__ void load_rows(const T *x, int64_t x_row, int named_) {
    named = named_;
    of_row = P::load_piece(x + row * x_row);
    if (named >= 0) of_named = P::load_piece(x + named * x_row);
  }
};

// Shared memory: the claims, unless they are in global memory; in place, a.slots pieces for each
// thread.
template <class T, bool kVectors, class Cover>
__device__ __forceinline__ Claims gather_block(const MixArgs<T> &a, const Cover &cover) {
  using P = Pieces<T, kVectors>;
  using Piece = typename P::Piece;
  using Rows = RoundRows<T, kVectors, Cover>;
  const Weights<T> weights(a);
  const int64_t *perm = a.pairing.perm;
  const bool in_place = a.in_place(), still = weights.still();
  unsigned *memory = dynamic_shared<unsigned>();
  const Claims claims = place_claims(a.pairing, memory);
  Piece *const kept = reinterpret_cast<Piece *>(memory) + threadIdx.x;
  const bool shared_claims = a.pairing.claims == nullptr;
  if (!shared_claims) {
    claims.clear(grid_share());
    MMIX_GRID_BARRIER(); // no bit is set before all are 0
    claims.mark(perm, grid_share(), nullptr);
    if (!in_place) MMIX_GRID_BARRIER(); // rows are asked for that others have marked
  }
  bool marked = !shared_claims;
  for (int64_t round = 0; round * a.round < a.tiles; ++round) {
    Rows rows(a, cover, round);
    auto *slot = kept;
    do {
      Loaded<T, kVectors> loaded[P::kAtOnce];
#pragma unroll
      for (int u = 0; u < P::kAtOnce; ++u) {
        Loaded<T, kVectors> &l = loaded[u];
        l.mask = rows.any() ? rows.mask() : 0;
        l.row = rows.row;
        l.out = a.out + rows.at.out;
        if (l.mask) l.load_rows(a.x + rows.at.x, a.x_row, claims.in_range(load(perm + l.row)));
        if (rows.any()) rows.next();
      }
      if (!marked) mark_claims(a.pairing, claims); // while the first rows are on their way
      marked = true;
      if (still) break; // nothing is mixed: the loads were started before λ was known
#pragma unroll
      for (int u = 0; u < P::kAtOnce; ++u, slot += blockDim.x) {
        const Loaded<T, kVectors> &l = loaded[u];
        if (!l.mask) continue;
        const auto inside = [&](Piece v) {
          return Cover::kPartly ? P::blend(l.of_row, v, l.mask) : v;
        };
        if (in_place) { // whether another row has the same partner is not known yet
          *slot = inside(l.named < 0 ? P::nan()
                                     : P::mixed(l.of_row, l.of_named, weights(l.row, l.named)));
          continue;
        }
        const bool good = l.named >= 0 && !claims.contested(l.named);
        if (a.adjoint ? !claims.named(l.row) : !good)
          P::store_piece(l.out + l.row * a.out_row, inside(P::nan()));
        if (!good) continue;
        const int own = a.adjoint ? l.named : l.row, partner = a.adjoint ? l.row : l.named;
        const auto mine = a.adjoint ? l.of_named : l.of_row;
        const auto theirs = a.adjoint ? l.of_row : l.of_named;
        P::store_piece(l.out + own * a.out_row,
                       inside(P::mixed(mine, theirs, weights(own, partner))));
      }
    } while (rows.any());
    if (!in_place) continue;
    MMIX_GRID_BARRIER(); // every row of the round is read; the claims are complete
    slot = kept;
    for (Rows writes(a, cover, round); writes.any(); writes.next(), slot += blockDim.x) {
      const unsigned mask = writes.mask();
      if (!mask) continue;
      const int partner = claims.partner(load(perm + writes.row));
      T *at = a.out + writes.at.out + writes.row * a.out_row;
      if (partner < 0)
        P::store_piece(at, Cover::kPartly
                               ? P::blend(still ? P::load_piece(at) : *slot, P::nan(), mask)
                               : P::nan());
      else if (!still && !weights(writes.row, partner).keep())
        P::store_piece(at, *slot);
    }
  }
  return claims;
}

// With kTargets all blocks then write the mixed targets, in float32 arithmetic.
template <class T, bool kVectors, bool kTargets>
__global__ void __launch_bounds__(kGatherThreads, 1)
    mix_gather(const MixArgs<T> a, const TargetArgs t) {
  const Claims claims = gather_block<T, kVectors>(a, Everything{});
  if constexpr (kTargets) targets_block<float, true>(t, claims, blockIdx.x, gridDim.x);
}

} // namespace mmix
