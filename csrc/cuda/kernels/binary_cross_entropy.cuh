// The mixed binary cross-entropy, an element at a time: no row depends on a sum over it. A block
// takes tiles. Its threads first read logits, and meanwhile some of them find the labels and the
// partner of each row of the tile. A tile is divided into pieces, which are moved at once:
//   along classes   the tile is a run of elements, row after row; a piece is kWidth of them
//   across rows     the tile is some rows and classes; a piece is kWidth neighbouring rows, as the
//                   pixels of a segmentation are
#pragma once
#include "cuda/kernels/binary_cross_entropy_elements.cuh"
#include "cuda/kernels/cross_entropy_mean.cuh"

namespace mmix {

constexpr int kBinaryThreads = 256;

struct BinaryPlan {
  int64_t tiles;
  int rows;           // of a tile, at most
  int width;          // along classes: the elements of a tile; across rows: its classes
  int groups, chunks; // across rows: pieces of a class, a power of two; tiles of the same rows
};

template <class T, bool kAcross, int kWidth, bool kGeneral> struct BinaryTile {
  using Real = Acc<T>;
  using Piece = Pack<T, kWidth>;
  using Elements = BinaryElements<T, kAcross, kGeneral>;
  using Row = typename Elements::Row;
  static constexpr int kDepth = kGeneral ? 1 : 4; // pieces of a thread in flight

  const BinaryProblem &a;
  const BinaryPlan &plan;
  Row *rows;
  int64_t first_row;
  int first_class, count, pieces; // count: its rows
  int elements = 0;               // along classes

  MMIX_DEVICE BinaryTile(const BinaryProblem &problem, const BinaryPlan &plan_, int64_t index,
                         Row *shared)
      : a(problem), plan(plan_), rows(shared) {
    if constexpr (kAcross) {
      const int64_t of_rows = index / plan.chunks;
      first_row = of_rows * plan.rows;
      first_class = static_cast<int>(index - of_rows * plan.chunks) * plan.width;
      count = static_cast<int>(min(int64_t{plan.rows}, a.rows - first_row));
      pieces = plan.groups * min(plan.width, a.classes - first_class);
    } else {
      const int64_t begin = index * plan.width, all = a.rows * a.classes;
      first_row = a.by_classes.quotient(begin);
      first_class = static_cast<int>(begin - first_row * a.classes);
      elements = static_cast<int>(min(int64_t{plan.width}, all - begin));
      count = row_of(first_class + elements - 1) + 1;
      pieces = (elements + kWidth - 1) / kWidth;
    }
  }

  // Along classes: the row of the tile that has an element, counted from the start of its first row.
  MMIX_DEVICE int row_of(int element) const {
    const auto x = static_cast<unsigned>(element), n = static_cast<unsigned>(a.classes);
    // Exact, or one too small.
    const auto q = static_cast<unsigned>(uint64_t{x} * a.inverse_classes >> 32);
    return static_cast<int>(q + (x - q * n >= n));
  }

  // n: its elements; none: there is no such piece. whole: all its elements are there, and in one row
  // if they are along classes; always if there is a piece and kGeneral.
  struct Part {
    int row, c, n;
    bool whole;
  };
  MMIX_DEVICE Part part(int piece) const {
    if constexpr (kAcross) {
      const int row = (piece & (plan.groups - 1)) * kWidth;
      const int c = first_class + (piece >> (31 - __clz(plan.groups)));
      const bool there = piece < pieces && row < count;
      return {row, c, there ? kWidth : 0, there};
    } else {
      const int x = first_class + piece * kWidth, row = row_of(x);
      const int c = x - row * a.classes, n = max(0, min(kWidth, elements - piece * kWidth));
      return {row, c, n, n == kWidth && c + kWidth <= a.classes};
    }
  }
  MMIX_DEVICE void read(int piece, Piece (&z)[kDepth]) const {
    const T *logits = static_cast<const T *>(a.logits);
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      const Part p = part(piece + k * blockDim.x);
      if (p.n == 0) continue;
      const T *from =
          logits + a.logits_at.offset(first_row + p.row) + p.c * a.logits_at.class_stride;
      if (p.n == kWidth)
        load_pack(from, z[k]);
      else if constexpr (!kGeneral) // the last piece of all
#pragma unroll
        for (int i = 0; i < kWidth; ++i)
          if (i < p.n) z[k].at[i] = load(from + i);
    }
  }

  MMIX_DEVICE void find_rows() const {
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += blockDim.x)
      find_row(a, first_row + i, rows[i]);
  }

  // Computes the gradient of a thread's pieces from the logits z, and writes it.
  MMIX_DEVICE void write(int piece, const Piece (&z)[kDepth], Elements &of) const {
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      const Part p = part(piece + k * blockDim.x);
      if (p.n == 0) continue;
      Piece g;
      if (p.whole)
        whole_piece(p, z[k], g, of);
      else if constexpr (!kGeneral)
        one_by_one(p, z[k], g, of);
      if (!a.gradient) continue;
      T *to = static_cast<T *>(a.gradient) + rows[p.row].at[kGradient] +
              p.c * a.gradient_at.class_stride;
      if (p.n == kWidth)
        store_pack(to, g);
      else if constexpr (!kGeneral)
#pragma unroll
        for (int i = 0; i < kWidth; ++i)
          if (i < p.n) store(to + i, g.at[i]);
    }
  }

private:
  MMIX_DEVICE void whole_piece(const Part &p, const Piece &piece, Piece &to, Elements &of) const {
    Real z[kWidth], t[kWidth], g[kWidth];
    widen_all(piece.at, z);
    const auto each = [&](auto target) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) t[i] = target(i);
      of(p.row, p.c, t, z, g);
    };
    const Row &row = rows[p.row];
    if constexpr (kGeneral) {
      if (a.labels) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i)
          t[i] = kAcross ? rows[p.row + i].target(p.c) : row.target(p.c + i);
      } else {
        of.float_targets(p.row, p.c, t);
      }
      of(p.row, p.c, t, z, g);
    } else if (row.has_label_in(p.c, kWidth)) {
      each([&](int i) { return row.target(p.c + i); });
    } else {
      each([&](int) { return row.rest; });
    }
    narrow_all(g, to);
  }
  // Of a piece that goes on into the next rows, or ends before its last element.
  MMIX_DEVICE void one_by_one(Part p, const Piece &piece, Piece &to, Elements &of) const {
    const int n = p.n;
#pragma unroll 1
    for (int i = 0; i < n; ++i, ++p.c) {
      if (p.c == a.classes) ++p.row, p.c = 0;
      T own = piece.at[0];
#pragma unroll
      for (int e = 1; e < kWidth; ++e)
        if (e == i) own = piece.at[e];
      const Real z[1] = {widen(own)}, t[1] = {rows[p.row].target(p.c)};
      Real g[1];
      of(p.row, p.c, t, z, g);
#pragma unroll
      for (int e = 0; e < kWidth; ++e)
        if (e == i) to.at[e] = narrow<T>(g[0]);
    }
  }
};

// A block takes every gridDim-th tile.
template <class T, bool kAcross, int kWidth, bool kGeneral>
__global__ void __launch_bounds__(kBinaryThreads, 4)
    binary_cross_entropy_tiles(const __grid_constant__ BinaryProblem a, const BinaryPlan plan) {
  using Real = Acc<T>;
  using Tile = BinaryTile<T, kAcross, kWidth, kGeneral>;
  if (rescale_is_noop<Real>(a)) return;
  LossScratch &scratch = *dynamic_shared<LossScratch>();
  auto *rows = reinterpret_cast<typename Tile::Row *>(&scratch + 1);
  if (threadIdx.x == 0) scratch.scales[MeanScales::kAdded] = 0; // see write_total()
  const Real scale = Real(a.constant_scale) * (a.per_element ? Real(1) : upstream_of<Real>(a, 0));
  double loss = 0;
  int turn = 0;
#pragma unroll 1
  for (int64_t index = blockIdx.x; index < plan.tiles; index += gridDim.x) {
    // Two places take turns: other threads may still use the rows of the tile before.
    const Tile tile(a, plan, index, rows + turn * plan.rows);
    turn ^= 1;
    typename Tile::Piece z[Tile::kDepth];
    tile.read(threadIdx.x, z); // in flight while labels are read
    tile.find_rows();
    __syncthreads(); // rows[] is complete
    const int step = Tile::kDepth * blockDim.x;
#pragma unroll 1
    for (int piece = threadIdx.x; piece < tile.pieces; piece += step) {
      typename Tile::Elements of{a, tile.rows, scale};
      tile.write(piece, z, of);
      loss += of.sums.total(scale);
      tile.read(piece + step, z);
    }
  }
  post_loss(a, loss, scratch);
  write_total<Real>(a, scratch);
}

} // namespace mmix
