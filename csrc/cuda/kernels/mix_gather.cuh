// The mix of any batch: rows are read where they are, their partners mostly from the L2 cache.
// Tiles are taken in rounds that fit in that cache. In place, a thread keeps the mixed pieces of a
// round in shared memory until all threads of the grid have read theirs; then it writes them. So no
// row is overwritten too early, whatever the permutation, and every thread has work at all times.
// With kVectors, rows are made of aligned 16-byte vectors; else of single elements, anywhere.
#pragma once
#include "cuda/kernels/grid.cuh"
#include "cuda/kernels/pieces.cuh"

namespace mmix {

constexpr int kGatherThreads = 512; // at most: 128 registers for each, for many loads in flight

// The rows of a thread in one round: the block has a share of all rows of all tiles, tile after
// tile, and its teams take turns. find() gives those of one tile: row, row + step, ... of `count`.
template <class T, bool kVectors, bool kInPlace, class Cover> struct RoundRows {
  const MixArgs<T> &a;
  const Team team;
  Cover cover;
  Pieces<T, kVectors, kInPlace> at;
  int64_t tile;
  int left, row, count = 0; // left: rows of the block from this one on

  __device__ __forceinline__ RoundRows(const MixArgs<T> &a_, const Cover &cover_, int64_t round)
      : a(a_), team(a_.lanes), cover(cover_) {
    const int64_t tile0 = round * a.round, tiles = min(a.round, a.tiles - tile0);
    const int64_t all = tiles * a.batch, share = (all + gridDim.x - 1) / gridDim.x;
    const int64_t from = share * blockIdx.x + team.first;
    left = static_cast<int>(min(share * (blockIdx.x + int64_t{1}), all) - from);
    tile = tile0 + from / a.batch;
    row = static_cast<int>(from % a.batch);
  }
  // Returns false if there are no more.
  __device__ __forceinline__ bool find() {
    left -= count << team.log_step;
    row += count << team.log_step;
    if (left <= 0) return false;
    for (; row >= a.batch; row -= a.batch) ++tile;
    count = (min(left, a.batch - row) + team.step - 1) >> team.log_step;
    at.find(a.columns, a.lanes, cover.tile(tile, a.tiles), team.lane, cover);
    if (Cover::kPartly && at.mask && cover.same_for_all()) at.mask &= cover.mask(0);
    return true;
  }
  __device__ __forceinline__ int at_row(int k) const { return row + (k << team.log_step); }
};

template <class T, bool kVectors, bool kInPlace, class Cover> struct Gather {
  using P = Pieces<T, kVectors, kInPlace>;
  using Piece = typename P::Piece;
  using Rows = RoundRows<T, kVectors, kInPlace, Cover>;
  // Rows, and as many partners, in flight for each thread; with more, registers would spill.
  static constexpr int kMost = kVectors && sizeof(T) < 8 ? 4 : 2;
  static constexpr int kAtOnce = Cover::kPartly ? kMost / 2 : kMost;
  const MixArgs<T> &a;
  const Weights<T> weights;
  const Claims claims;
  // The usual case has short code: one λ for all rows that leaves both terms, or in CutMix one λ of
  // 0, with which rows become their partners.
  const bool usual;

  __device__ __forceinline__ Gather(const MixArgs<T> &a_, const Weights<T> &w, const Claims &c)
      : a(a_), weights(w), claims(c), usual(Cover::kPartly ? w.pastes() : w.plain()) {}

  // The elements of a row that are mixed.
  __device__ __forceinline__ unsigned mask(const Rows &r, int row) const {
    if (!Cover::kPartly || r.cover.same_for_all()) return r.at.mask;
    return r.at.mask & r.cover.mask(row);
  }
  // The coefficients of a row's piece and of that which its entry of perm names. In the adjoint,
  // the row is the partner of the named one, which gets the sum.
  __device__ __forceinline__ Coefficients<Acc<T>> coefficients(int row, int named) const {
    if (!a.adjoint) return weights(row, named);
    const auto c = weights(named, row);
    return {c.other, c.own};
  }
  template <bool kUsual>
  __device__ __forceinline__ Piece mixed(Piece mine, Piece theirs, int row, int named) const {
    if constexpr (!kUsual)
      return P::mixed(mine, theirs, coefficients(row, named));
    else if constexpr (Cover::kPartly)
      return theirs;
    else {
      const auto c = weights.of_all();
      return P::both(mine, theirs, a.adjoint ? Coefficients<Acc<T>>{c.other, c.own} : c);
    }
  }

  // The next row of a thread, and the steps to the one after.
  struct Cursor {
    int row;
    const int step;
    const int64_t hop, out_hop; // elements of x and of out
    const int64_t *entry;       // of perm
    const T *own;
    T *out;
    Piece *slot;
    __device__ __forceinline__ Cursor(const MixArgs<T> &a, const Rows &r, Piece *slot_)
        : row(r.row), step(r.team.step), hop(step * a.x_row), out_hop(step * a.out_row),
          entry(a.pairing.perm + row), own(row_of(r.at.from(a.x), a.x_row, row)),
          out(row_of(r.at.to(a.out), a.out_row, row)), slot(slot_) {}
    __device__ __forceinline__ void skip(int rows) {
      row += rows * step;
      entry += rows * step;
      own += rows * hop;
      out += rows * out_hop;
      slot += rows * blockDim.x;
    }
  };

  // Reads the pieces of kRows rows from the cursor on, and of those that their entries of perm
  // name. In place it keeps the mixed pieces, else it writes them. In passes, so that no load waits
  // for one that it does not need.
  template <bool kUsual, int kRows, bool kWhole = false>
  __device__ __forceinline__ void take(const Rows &r, Cursor &at) const {
    int named[kRows];
    unsigned some[kRows];
    Piece mine[kRows], theirs[kRows];
    int64_t entries[kRows];
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      some[u] = mask(r, at.row + u * at.step);
      entries[u] = load(at.entry + u * at.step);
      // With CutMix a row is read only where a vector is partly inside the box.
      if (!Cover::kPartly || !kUsual || (P::kBlends && some[u] && some[u] != P::kAll))
        mine[u] = r.at.template load_piece<kWhole>(at.own + u * at.hop, some[u]);
    }
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      named[u] = static_cast<int>(entries[u]);
      // In place it is not known yet whether perm is right. Instead of a row outside of x the row
      // itself is read; it becomes NaN later.
      if (kInPlace && claims.in_range(entries[u]) < 0) named[u] = at.row + u * at.step;
      const T *other = row_of(r.at.from(a.x), a.x_row, named[u]);
      if (!Cover::kPartly || some[u]) theirs[u] = r.at.template load_piece<kWhole>(other, some[u]);
    }
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      if (Cover::kPartly && !some[u]) continue;
      Piece y = mixed<kUsual>(mine[u], theirs[u], at.row + u * at.step, named[u]);
      if (Cover::kPartly) y = P::blend(mine[u], y, some[u]);
      if constexpr (kInPlace) {
        store(at.slot + u * blockDim.x, y);
      } else {
        T *out = a.adjoint ? row_of(r.at.to(a.out), a.out_row, named[u]) : at.out + u * at.out_hop;
        r.at.store_piece(out, y, some[u]);
      }
    }
    at.skip(kRows);
  }
  template <bool kUsual>
  __device__ __forceinline__ void take_all(const Rows &r, Piece *slot) const {
    Cursor at(a, r, slot);
    int left = r.count;
    if constexpr (kUsual && !Cover::kPartly && !kVectors) {
#pragma unroll 1 // the body is
      for (; r.at.whole && left >= kAtOnce; left -= kAtOnce) take<kUsual, kAtOnce, true>(r, at);
    }
    constexpr int kRows = kUsual || kVectors ? kAtOnce : 1; // as registers allow
#pragma unroll 1
    for (; left >= kRows; left -= kRows) take<kUsual, kRows>(r, at);
#pragma unroll 1
    for (; left > 0; --left) take<kUsual, 1>(r, at);
  }
  // Out of place, where perm is no permutation: bad rows become NaN.
  __device__ __forceinline__ void write_checked(const Rows &r) const {
#pragma unroll 1
    for (int k = 0; k < r.count; ++k) {
      const T *x = r.at.from(a.x);
      T *out = r.at.to(a.out);
      const int row = r.at_row(k), named = claims.in_range(load(a.pairing.perm + row));
      const bool good = named >= 0 && !claims.contested(named);
      if (a.adjoint ? !claims.named(row) : !good)
        r.at.store_piece(row_of(out, a.out_row, row), P::nan(), r.at.mask);
      if (!good) continue;
      const Piece mine = r.at.template load_piece<false>(row_of(x, a.x_row, row), r.at.mask);
      const Piece theirs = r.at.template load_piece<false>(row_of(x, a.x_row, named), r.at.mask);
      r.at.store_piece(row_of(out, a.out_row, a.adjoint ? named : row),
                       mixed<false>(mine, theirs, row, named), r.at.mask);
    }
  }
  __device__ __forceinline__ void poison(const Rows &r, T *out, unsigned some) const {
    if constexpr (!kOnlyMoved<T>) {
      Piece y = P::nan();
      if (P::kBlends && some != P::kAll)
        y = P::blend(r.at.template load_piece<false>(out, some), y, some);
      r.at.store_piece(out, y, some);
    }
  }
  // In place, after all rows of the round are read.
  __device__ __forceinline__ void write_kept(const Rows &r, const Piece *slot, bool regular) const {
    T *out = row_of(r.at.to(a.out), a.out_row, r.row);
    const int64_t hop = r.team.step * a.out_row;
    if (usual && regular && (!Cover::kPartly || r.cover.same_for_all())) {
#pragma unroll kVectors ? 4 : 1
      for (int k = 0; k < r.count; ++k, slot += blockDim.x, out += hop)
        r.at.store_piece(out, load(slot), r.at.mask);
      return;
    }
#pragma unroll 1
    for (int k = 0; k < r.count; ++k, slot += blockDim.x, out += hop) {
      const int row = r.at_row(k);
      const unsigned some = mask(r, row);
      if (!some) continue;
      if (!regular && claims.partner(load(a.pairing.perm + row)) < 0) {
        if (r.cover.poisons()) poison(r, out, some);
      } else if (weights.lam(row) != 1) {
        r.at.store_piece(out, load(slot), some);
      }
    }
  }
  // kept: this thread's first place for a mixed piece; blockDim.x from one to the next.
  __device__ __forceinline__ void rounds(const Cover &cover, Piece *kept) const {
    bool regular = !kInPlace && claims.regular();
    for (int64_t round = 0; round * a.round < a.tiles; ++round) {
#pragma unroll 1 // both parts walk over the rows by the same code
      for (int writes = 0; writes < (kInPlace ? 2 : 1); ++writes) {
        if (writes) {
          MMIX_GRID_BARRIER(); // every row of the round is read; the claims are complete
          regular = claims.regular();
        } else if (weights.still()) {
          continue;
        }
        auto *slot = kept;
        for (Rows r(a, cover, round); r.find(); slot += r.count * blockDim.x) {
          if (!r.at.mask) continue;
          if (writes)
            write_kept(r, slot, regular);
          else if constexpr (kOnlyMoved<T>)
            take_all<true>(r, slot);
          else if (!kInPlace && !regular)
            write_checked(r);
          else if (usual)
            take_all<true>(r, slot);
          else
            take_all<false>(r, slot);
        }
      }
    }
  }
};

// A place in global memory for each thread of the grid, row after row. All blocks have as many
// rows, or fewer.
template <class Piece, class T>
__device__ __forceinline__ Piece *kept_outside(const MixArgs<T> &a) {
  const int64_t share = (a.round * a.batch + gridDim.x - 1) / gridDim.x;
  const int64_t rows = (share + blockDim.x / a.lanes - 1) / (blockDim.x / a.lanes);
  return static_cast<Piece *>(a.kept) + blockIdx.x * rows * blockDim.x + threadIdx.x;
}

// Shared memory: the claims, and in place as many pieces for each thread as it has in a round,
// unless they are in global memory.
template <class T, bool kVectors, bool kInPlace, class Cover>
__device__ __forceinline__ Claims gather_block(const MixArgs<T> &a, const Cover &cover) {
  using Piece = typename Pieces<T, kVectors, kInPlace>::Piece;
  unsigned *memory = dynamic_shared<unsigned>();
  const Claims claims = place_claims(a.pairing, memory);
  Piece *kept = reinterpret_cast<Piece *>(memory) + threadIdx.x;
  if (kInPlace && a.kept != nullptr) kept = kept_outside<Piece>(a);
  const Weights<T> weights(a); // λ is on its way while claims are marked
  if (a.pairing.claims == nullptr) {
    mark_claims(a.pairing, claims);
  } else {
    claims.clear(grid_share());
    MMIX_GRID_BARRIER(); // no bit is set before all are 0
    claims.mark(a.pairing.perm, grid_share(), nullptr);
    if (!kInPlace) MMIX_GRID_BARRIER(); // rows are asked for that others have marked
  }
  Gather<T, kVectors, kInPlace, Cover>(a, weights, claims).rounds(cover, kept);
  return claims;
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kGatherThreads, 1) mix_gather(const MixArgs<T> a) {
  gather_block<T, kVectors, false>(a, Everything{});
}
// With kTargets all blocks then write the mixed targets, in float32 arithmetic.
template <class T, bool kVectors, bool kTargets>
__global__ void __launch_bounds__(kGatherThreads, 1)
    mix_gather_in_place(const MixArgs<T> a, const TargetArgs t) {
  const Claims claims = gather_block<T, kVectors, true>(a, Everything{});
  if constexpr (kTargets) targets_block<float, true>(t, claims, blockIdx.x, gridDim.x);
}

} // namespace mmix
