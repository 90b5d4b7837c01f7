// Mixing with the samples of a second batch, and the gradients of both batches. No row that is
// written is read as a partner, so both are streams: a thread moves pieces of rows, several at a
// time, without shared memory. With kVectors, rows are made of aligned 16-byte vectors; else of
// single elements, anywhere.
#pragma once
#include "cuda/kernels/pieces.cuh"

namespace mmix {

constexpr int kStreamThreads = 256;

// How a grid shares the pieces of all rows. A unit is a tile of `rows` neighbouring rows; tiles are
// as in Pieces. Neighbouring blocks have neighbouring tiles.
struct Units {
  int batch, rows, lanes; // lanes: threads for each row, a power of two
  int64_t tiles;
  __device__ __forceinline__ int64_t count() const { return (batch + rows - 1) / rows * tiles; }
  __device__ __forceinline__ int64_t tile(int64_t unit) const { return unit % tiles; }
  __device__ __forceinline__ int first(int64_t unit) const {
    return static_cast<int>(unit / tiles) * rows;
  }
};

// out[i] = lam[i]*x[i] + (1-lam[i])*other[perm[i]]
template <class T> struct OtherArgs {
  const T *x, *other;
  T *out;              // may be x, but not other
  const int64_t *perm; // null: the partner of row i is row i
  int others;          // samples of other
  int64_t x_row, other_row, out_row;
  Columns columns, partners; // of x and of other, each as x; of out
  LamRef lam;
  Units units;
};

template <class T, bool kVectors> struct OtherRows {
  using P = Pieces<T, kVectors>;
  using Piece = typename P::Piece;
  using A = Acc<T>;
  static constexpr int kAtOnce = kVectors && sizeof(T) < 8 ? 4 : 2; // as registers allow
  const OtherArgs<T> &a;
  const Team team;
  const A lam0;
  P at, theirs_at;

  __device__ __forceinline__ explicit OtherRows(const OtherArgs<T> &a_)
      : a(a_), team(a_.units.lanes), lam0(a_.lam.template own<A>(0)) {}

  // Row `row` and the next ones of this thread: in passes, so that no load waits for one that it
  // does not need. kUsual: one λ for all rows that leaves both terms.
  template <bool kUsual, int kRows> __device__ __forceinline__ void take(int row) const {
    int named[kRows];
    Piece mine[kRows], theirs[kRows];
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      const int own = row + u * team.step;
      const int64_t entry = a.perm ? load(a.perm + own) : own;
      const bool inside = static_cast<uint64_t>(entry) < static_cast<unsigned>(a.others);
      named[u] = inside ? static_cast<int>(entry) : kBad;
      mine[u] = at.template load_piece<false>(row_of(at.from(a.x), a.x_row, own), at.mask);
    }
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      const int of = max(named[u], 0); // a row that exists: what it holds becomes NaN below
      theirs[u] = theirs_at.template load_piece<false>(
          row_of(theirs_at.from(a.other), a.other_row, of), at.mask);
    }
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      const int own = row + u * team.step;
      const A lam = kUsual || a.lam.stride == 0 ? lam0 : a.lam.template own<A>(own);
      Coefficients<A> c{lam, plus(A(1), -lam)};
      if (named[u] < 0) // makes every element NaN
        c.own = widen(not_a_number<A>());
      else if (!kUsual && c.keep() && a.x == a.out)
        continue;
      const Piece y = kUsual ? P::both(mine[u], theirs[u], c) : P::mixed(mine[u], theirs[u], c);
      at.store_piece(row_of(at.to(a.out), a.out_row, own), y, at.mask);
    }
  }
  template <bool kUsual> __device__ __forceinline__ void take_all(int row, int end) const {
#pragma unroll 1 // the body is
    for (; row + (kAtOnce - 1) * team.step < end; row += kAtOnce * team.step)
      take<kUsual, kAtOnce>(row);
#pragma unroll 1
    for (; row < end; row += team.step) take<kUsual, 1>(row);
  }
  __device__ __forceinline__ void run() {
    Everything all;
    const bool usual = a.lam.stride == 0 && lam0 != 0 && lam0 != 1;
    for (int64_t unit = blockIdx.x; unit < a.units.count(); unit += gridDim.x) {
      const int64_t tile = a.units.tile(unit);
      at.find(a.columns, a.units.lanes, tile, team.lane, all);
      theirs_at.find(a.partners, a.units.lanes, tile, team.lane, all);
      const int first = a.units.first(unit), end = min(first + a.units.rows, a.units.batch);
      if (!at.mask) continue;
      if (usual)
        take_all<true>(first + team.first, end);
      else
        take_all<false>(first + team.first, end);
    }
  }
};

// So few threads that no register spills: 768 of vectors keep 96 KB of an SM in flight. Of single
// elements a thread has more, for each of its columns three offsets and two rows.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kStreamThreads, kVectors ? 3 : 2)
    mix_other(const OtherArgs<T> a) {
  OtherRows<T, kVectors>(a).run();
}

// out[k] = the sum of weight[i]*x[i] over i in order[begin[k]:begin[k+1]]
template <class T> struct SumArgs {
  const T *x;
  T *out;
  const int64_t *order, *begin; // null: row k alone
  int64_t x_row, out_row;
  Columns columns;
  LamRef weight;
  Units units;
};

template <class T, bool kVectors>
__global__ void __launch_bounds__(kStreamThreads, 4) sum_rows(const SumArgs<T> a) {
  using P = Pieces<T, kVectors>;
  using A = Acc<T>;
  const Team team(a.units.lanes);
  Everything all;
  for (int64_t unit = blockIdx.x; unit < a.units.count(); unit += gridDim.x) {
    P at;
    at.find(a.columns, a.units.lanes, a.units.tile(unit), team.lane, all);
    const int first = a.units.first(unit), end = min(first + a.units.rows, a.units.batch);
    if (!at.mask) continue;
#pragma unroll 1
    for (int k = first + team.first; k < end; k += team.step) {
      const int64_t from = a.begin ? load(a.begin + k) : k;
      const int64_t to = a.begin ? load(a.begin + k + 1) : k + 1;
      A total[P::kCount];
#pragma unroll
      for (int e = 0; e < P::kCount; ++e) total[e] = A(-0.0); // adding to it keeps all bits
      bool some = false;
#pragma unroll 1 // usually there is one
      for (int64_t t = from; t < to; ++t) {
        const int row = a.order ? static_cast<int>(load(a.order + t)) : k;
        const A c = a.weight.template own<A>(row);
        if (c == 0) continue;
        some = true;
        const auto v = at.template load_piece<false>(row_of(at.from(a.x), a.x_row, row), at.mask);
#pragma unroll
        for (int e = 0; e < P::kCount; ++e) total[e] = plus(total[e], times(c, widen(v.at[e])));
      }
      typename P::Piece y;
#pragma unroll
      for (int e = 0; e < P::kCount; ++e) y.at[e] = narrow<T>(some ? total[e] : A(0));
      at.store_piece(row_of(at.to(a.out), a.out_row, k), y, at.mask);
    }
  }
}

} // namespace mmix
