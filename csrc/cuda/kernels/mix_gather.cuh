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
  // Rows, and as many partners, in flight for each thread; with more, sm_100 would spill registers.
  static constexpr int kAtOnce = sizeof(T) == 2 ? 4 : sizeof(T) == 4 ? 3 : 2;
  static __device__ __forceinline__ Piece load_piece(const T *p) { return load_vec(p); }
  static __device__ __forceinline__ void store_piece(T *p, Piece v) { store_vec(p, v); }
  static __device__ __forceinline__ Piece mixed(Piece a, Piece b, Coefficients<Acc<T>> c) {
    return mix_any(a, b, c);
  }
  static __device__ __forceinline__ Piece both(Piece a, Piece b, Coefficients<Acc<T>> c) {
    return mix_both(a, b, c);
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
  static __device__ __forceinline__ T both(T a, T b, Coefficients<Acc<T>> c) {
    return c.both(a, b);
  }
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
  static constexpr unsigned kAll = ~0u;
  __device__ bool move_to(int64_t) { return true; }
  __device__ unsigned mask(int) const { return kAll; }
};

// The rows of a thread in one round: the block has a share of all rows of all tiles, tile after
// tile, and its teams take turns. A thread looks at several rows of one tile at a time: row u of
// them is row + u*step.
template <class T, bool kVectors, class Cover> struct RoundRows {
  using P = Pieces<T, kVectors>;
  const MixArgs<T> &a;
  const Team team;
  Cover cover;
  int64_t left, tile; // left: rows of the block from this one on
  int row;
  bool active; // this lane has a piece, and some row mixes it
  Offsets at;  // of the piece in row 0

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
  __device__ __forceinline__ int at_once(int u) const { return row + u * team.step; }
  __device__ __forceinline__ bool has(int u) const {
    return u * team.step < left && at_once(u) < a.batch;
  }
  // Of the elements that are mixed.
  __device__ __forceinline__ unsigned mask(int u) const {
    return active && has(u) ? cover.mask(at_once(u)) : 0;
  }
  __device__ __forceinline__ void skip(int rows) {
    left -= rows * team.step;
    row += rows * team.step;
    if (row < a.batch || left <= 0) return;
    for (; row >= a.batch; row -= a.batch) ++tile;
    find();
  }

private:
  __device__ __forceinline__ void find() {
    int64_t column = 0;
    active = P::place(a.columns, a.lanes, tile, team.lane, column, at);
    active = active && cover.move_to(column);
  }
};

// Reads the pieces of several rows and of those that their entries of perm name. Out of place it
// also writes the mixed pieces, in place they go to shared memory. With kPlain, one λ holds for all
// rows and leaves both terms: that loop is short, so that the caches of instructions hold it.
template <class T, bool kVectors, bool kPlain, class Cover> struct Gather {
  using P = Pieces<T, kVectors>;
  using Piece = typename P::Piece;
  using Rows = RoundRows<T, kVectors, Cover>;
  const MixArgs<T> &a;
  const Weights<T> weights;
  const Claims claims;
  // Of each row at a time. named is kBad if the entry is out of range.
  unsigned mask[P::kAtOnce];
  int named[P::kAtOnce];
  Piece of_row[P::kAtOnce], of_named[P::kAtOnce];

  // A place for each thread of the grid, row after row. All blocks have as many rows, or fewer.
  static __device__ __forceinline__ Piece *kept_outside(const MixArgs<T> &a) {
    const int64_t share = (a.round * a.batch + gridDim.x - 1) / gridDim.x;
    const int64_t rows = (share + blockDim.x / a.lanes - 1) / (blockDim.x / a.lanes);
    return static_cast<Piece *>(a.kept) + blockIdx.x * rows * blockDim.x + threadIdx.x;
  }
  // In passes, so that no load waits for one that it does not need.
  __device__ __forceinline__ void read(const Rows &rows, bool pastes) {
    const T *x = a.x + rows.at.x;
    int64_t entry[P::kAtOnce];
#pragma unroll
    for (int u = 0; u < P::kAtOnce; ++u) mask[u] = rows.mask(u);
#pragma unroll
    for (int u = 0; u < P::kAtOnce; ++u) {
      if (!mask[u]) continue;
      entry[u] = load(a.pairing.perm + rows.at_once(u));
      if (!pastes || mask[u] != Cover::kAll)
        of_row[u] = P::load_piece(x + rows.at_once(u) * a.x_row);
    }
#pragma unroll
    for (int u = 0; u < P::kAtOnce; ++u) {
      if (!mask[u]) continue;
      named[u] = claims.in_range(entry[u]);
      if (named[u] >= 0) of_named[u] = P::load_piece(x + named[u] * a.x_row);
    }
  }
  // Outside its box a row keeps its elements.
  __device__ __forceinline__ Piece inside(int u, Piece v) const {
    return Cover::kPartly ? P::blend(of_row[u], v, mask[u]) : v;
  }
  __device__ __forceinline__ Piece mix(Piece own, Piece other, int row, int partner) const {
    if constexpr (kPlain) return P::both(own, other, weights.of_all());
    return P::mixed(own, other, weights(row, partner));
  }
  // Whether another row has the same partner is not known yet.
  __device__ __forceinline__ Piece mixed(int u, int row) const {
    if (named[u] < 0) return inside(u, P::nan());
    return inside(u, mix(of_row[u], of_named[u], row, named[u]));
  }
  // Row `named` is the partner of `row`; in the adjoint it is the other way round.
  __device__ __forceinline__ void write(int u, int row, T *out, bool regular) const {
    const bool good = named[u] >= 0 && (regular || !claims.contested(named[u]));
    if (a.adjoint ? !regular && !claims.named(row) : !good)
      P::store_piece(out + row * a.out_row, inside(u, P::nan()));
    if (!good) return;
    const int own = a.adjoint ? named[u] : row, partner = a.adjoint ? row : named[u];
    const Piece mine = a.adjoint ? of_named[u] : of_row[u];
    const Piece theirs = a.adjoint ? of_row[u] : of_named[u];
    P::store_piece(out + own * a.out_row, inside(u, mix(mine, theirs, own, partner)));
  }
};

// The rounds of a block. kept: this thread's first place for a mixed piece.
template <class T, bool kVectors, bool kInPlace, bool kPastes, bool kPlain, class Cover>
__device__ __forceinline__ void gather_rounds(const MixArgs<T> &a, const Cover &cover,
                                              const Claims &claims,
                                              typename Pieces<T, kVectors>::Piece *kept) {
  using G = Gather<T, kVectors, kPlain, Cover>;
  using P = typename G::P;
  G gather{a, Weights<T>(a), claims};
  const bool still = kInPlace && !kPlain && gather.weights.still();
  // With a λ of 0, as usual in CutMix, a row itself need not be read.
  const bool pastes = kPastes && !kPlain && gather.weights.pastes();
  for (int64_t round = 0; round * a.round < a.tiles; ++round) {
    auto *slot = kept;
    typename G::Rows rows(a, cover, round);
    do {
      gather.read(rows, pastes);
      if (still) break; // nothing is mixed
      const bool regular = !kInPlace && claims.regular();
      int count = 0;
#pragma unroll
      for (int u = 0; u < P::kAtOnce; ++u) {
        if (!rows.has(u)) continue;
        ++count;
        if constexpr (kInPlace) {
          if (gather.mask[u]) store(slot, gather.mixed(u, rows.at_once(u)));
        } else {
          if (gather.mask[u]) gather.write(u, rows.at_once(u), a.out + rows.at.out, regular);
        }
        slot += blockDim.x;
      }
      rows.skip(count);
    } while (rows.any());
    if constexpr (kInPlace) {
      MMIX_GRID_BARRIER(); // every row of the round is read; the claims are complete
      const bool regular = claims.regular();
      slot = kept;
      for (typename G::Rows w(a, cover, round); w.any(); w.skip(1), slot += blockDim.x) {
        const unsigned mask = w.mask(0);
        if (!mask) continue;
        T *at = a.out + w.at.out + w.row * a.out_row;
        const auto good = [&] { return claims.partner(load(a.pairing.perm + w.row)) >= 0; };
        if (!regular && !good())
          P::store_piece(at, Cover::kPartly
                                 ? P::blend(still ? P::load_piece(at) : load(slot), P::nan(), mask)
                                 : P::nan());
        else if (kPlain || gather.weights.lam(w.row) != 1)
          P::store_piece(at, load(slot));
      }
    }
  }
}

// Shared memory: the claims, and in place as many pieces for each thread as it has in a round,
// unless they are in global memory.
template <class T, bool kVectors, bool kInPlace, bool kPastes, class Cover>
__device__ __forceinline__ Claims gather_block(const MixArgs<T> &a, const Cover &cover) {
  unsigned *memory = dynamic_shared<unsigned>();
  const Claims claims = place_claims(a.pairing, memory);
  auto *kept = reinterpret_cast<typename Pieces<T, kVectors>::Piece *>(memory) + threadIdx.x;
  if (a.kept != nullptr) kept = Gather<T, kVectors, true, Cover>::kept_outside(a);
  const Weights<T> weights(a); // λ is on its way while claims are marked
  if (a.pairing.claims == nullptr) {
    mark_claims(a.pairing, claims);
  } else {
    claims.clear(grid_share());
    MMIX_GRID_BARRIER(); // no bit is set before all are 0
    claims.mark(a.pairing.perm, grid_share(), nullptr);
    if (!kInPlace) MMIX_GRID_BARRIER(); // rows are asked for that others have marked
  }
  if (weights.plain())
    gather_rounds<T, kVectors, kInPlace, kPastes, true>(a, cover, claims, kept);
  else
    gather_rounds<T, kVectors, kInPlace, kPastes, false>(a, cover, claims, kept);
  return claims;
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kGatherThreads, 1) mix_gather(const MixArgs<T> a) {
  gather_block<T, kVectors, false, false>(a, Everything{});
}
// With kTargets all blocks then write the mixed targets, in float32 arithmetic.
template <class T, bool kVectors, bool kTargets>
__global__ void __launch_bounds__(kGatherThreads, 1)
    mix_gather_in_place(const MixArgs<T> a, const TargetArgs t) {
  const Claims claims = gather_block<T, kVectors, true, false>(a, Everything{});
  if constexpr (kTargets) targets_block<float, true>(t, claims, blockIdx.x, gridDim.x);
}

} // namespace mmix
