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
  // Pieces of a thread in flight, and the step from one to the next.
  static constexpr int kDepth = kGeneral ? 1 : 4, kStep = kBinaryThreads;

  const BinaryProblem &a;
  const BinaryPlan &plan;
  Row *rows;
  int64_t first_row, begin = 0;   // begin: its first element, along classes
  int first_class, count, pieces; // count: its rows
  int tail = 0;                   // elements behind the last piece, where the tensor ends

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
      begin = index * plan.width;
      first_row = a.by_classes.quotient(begin);
      first_class = static_cast<int>(begin - first_row * a.classes);
      const int elements = static_cast<int>(min(int64_t{plan.width}, a.rows * a.classes - begin));
      count = row_of(first_class + elements - 1) + 1;
      pieces = elements / kWidth;
      tail = elements % kWidth;
    }
  }

  // Along classes: the tile's row of an element, counted from the start of the first row.
  MMIX_DEVICE int row_of(int element) const {
    const auto x = static_cast<unsigned>(element), n = static_cast<unsigned>(a.classes);
    // Exact, or one too small.
    const auto q = static_cast<unsigned>(uint64_t{x} * a.inverse_classes >> 32);
    return static_cast<int>(q + (x - q * n >= n));
  }

  struct Part { // the row and class of an element, or of a piece's first one
    int row, c;
  };
  MMIX_DEVICE Part part_of(int element) const { // along classes
    const int x = first_class + element, row = row_of(x);
    return {row, x - row * a.classes};
  }
  MMIX_DEVICE Part part(int piece) const {
    if constexpr (kAcross)
      return {(piece & (plan.groups - 1)) * kWidth,
              first_class + (piece >> (31 - __clz(plan.groups)))};
    else
      return part_of(piece * kWidth);
  }
  // Across rows, the last tile may have fewer.
  MMIX_DEVICE bool exists(int piece) const {
    return piece < pieces && (!kAcross || (piece & (plan.groups - 1)) * kWidth < count);
  }

  // first: before the rows are known.
  MMIX_DEVICE void read(int piece, Piece (&z)[kDepth], bool first) const {
    const T *logits = static_cast<const T *>(a.logits);
    if constexpr (kGeneral) {
      if (!exists(piece)) return;
      const Part p = part(piece);
      const int64_t row = first ? a.logits_at.offset(first_row + p.row) : rows[p.row].at[kLogits];
      load_pack(logits + row + p.c * a.logits_at.class_stride, z[0]);
    } else {
      const T *from = logits + begin + piece * kWidth;
#pragma unroll
      for (int k = 0; k < kDepth; ++k)
        if (piece + k * kStep < pieces) load_pack(from + k * kStep * kWidth, z[k]);
    }
  }

  MMIX_DEVICE void find_rows() const {
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += kBinaryThreads) find_row(a, first_row + i, rows[i]);
  }

  // Computes the gradient of a thread's pieces from the logits z, and writes it.
  MMIX_DEVICE void write(int piece, const Piece (&z)[kDepth], Elements &of) const {
    T *gradient = static_cast<T *>(a.gradient);
    if constexpr (kGeneral) {
      if (!exists(piece)) return;
      const Part p = part(piece);
      Piece g;
      any_piece(p, z[0], g, of);
      if (!gradient) return;
      store_pack(gradient + rows[p.row].at[kGradient] + p.c * a.gradient_at.class_stride, g);
    } else {
#pragma unroll
      for (int k = 0; k < kDepth; ++k) {
        const int at = piece + k * kStep;
        if (at >= pieces) break;
        Piece g;
        const Part p = part(at);
        if (p.c + kWidth <= a.classes)
          piece_of_row(p, z[k], g, of);
        else
          piece_of_rows(p, z[k], g, of);
        if (gradient) store_pack(gradient + begin + at * kWidth, g);
      }
    }
  }

  // Without gaps between rows: the elements behind the last piece.
  MMIX_DEVICE void write_tail(Elements &of) const {
    if (threadIdx.x >= tail) return;
    const int at = pieces * kWidth + threadIdx.x;
    const Part p = part_of(at);
    const Real z[1] = {widen(load(static_cast<const T *>(a.logits) + begin + at))};
    const Real t[1] = {rows[p.row].target(p.c)};
    Real g[1];
    of(p.row, p.c, t, z, g);
    if (a.gradient) store(static_cast<T *>(a.gradient) + begin + at, narrow<T>(g[0]));
  }

private:
  MMIX_DEVICE void any_piece(const Part &p, const Piece &piece, Piece &to, Elements &of) const {
    Real z[kWidth], t[kWidth], g[kWidth];
    widen_all(piece.at, z);
    if (a.labels) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i)
        t[i] = kAcross ? rows[p.row + i].target(p.c) : rows[p.row].target(p.c + i);
    } else {
      of.float_targets(p.row, p.c, t);
    }
    of(p.row, p.c, t, z, g);
    narrow_all(g, to);
  }
  MMIX_DEVICE void piece_of_row(const Part &p, const Piece &piece, Piece &to, Elements &of) const {
    Real z[kWidth], t[kWidth], g[kWidth];
    widen_all(piece.at, z);
    const auto each = [&](auto target) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) t[i] = target(i);
      of(p.row, p.c, t, z, g);
    };
    const Row &row = rows[p.row];
    // Asks for the classes of the whole warp, so that its lanes take the same way.
    if (row.has_label_in(p.c - threadIdx.x % 32 * kWidth, 32 * kWidth))
      each([&](int i) { return row.target(p.c + i); });
    else
      each([&](int) { return row.rest; });
    narrow_all(g, to);
  }
  // Of a piece that goes on into the next rows.
  MMIX_DEVICE void piece_of_rows(Part p, const Piece &piece, Piece &to, Elements &of) const {
#pragma unroll 1
    for (int i = 0; i < kWidth; ++i, ++p.c) {
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
    tile.read(threadIdx.x, z, true); // in flight while labels are read
    tile.find_rows();
    __syncthreads(); // rows[] is complete
    const int step = Tile::kDepth * Tile::kStep;
#pragma unroll 1
    for (int piece = threadIdx.x; piece < tile.pieces; piece += step) {
      typename Tile::Elements of{a, tile.rows, scale};
      if constexpr (kGeneral) { // the next piece is in flight meanwhile
        const typename Tile::Piece now[] = {z[0]};
        tile.read(piece + step, z, false);
        tile.write(piece, now, of);
      } else {
        tile.write(piece, z, of);
        tile.read(piece + step, z, false);
      }
      loss += of.sums.total(scale);
    }
    if (!kGeneral && tile.tail != 0) {
      typename Tile::Elements of{a, tile.rows, scale};
      tile.write_tail(of);
      loss += of.sums.total(scale);
    }
  }
  post_loss(a, loss, scratch);
  write_total<Real>(a, scratch);
}

} // namespace mmix
