// Rows of classes kept on chip: a group of lanes, from a warp to a cluster of blocks, owns a row,
// reads it once into shared memory, and writes its gradient from there. Each lane comes back to
// what it brought itself, so that no barrier stands between. A row longer than the group's share of
// shared memory is read in segments, twice but for the last, which is still held when the sums are
// known.
#pragma once
#include "kernels/cross_entropy_sums.cuh"

namespace mmix {

constexpr int kRowThreads = 1024; // one block of them to an SM may take 64 registers a thread

// How a launch divides rows: `lanes` threads of a block to a row, a power of two of warps, or all
// threads of `cluster` blocks; each holds `depth` pieces of each of the row's segments.
struct RowsPlan {
  int lanes, cluster, depth, segments;
};

// One lane's part of a row. Packed: pieces are 16 bytes of neighbouring classes, from the first
// aligned address on; the few classes before and after go one to a lane, into `edge`. Not packed,
// for any stride or alignment: a piece is one class. Neighbouring lanes have neighbouring pieces.
template <class T, bool kPacked, bool kGeneral> struct RowPart {
  using Real = Acc<T>;
  static constexpr int kWidth = kPacked ? Vec<T>::kCount : 1;
  // Per-class targets, and exp in float64, make long code of a class: there, a loop.
  static constexpr int kUnroll = kGeneral || sizeof(T) == 8 ? 1 : kWidth;
  struct alignas(kWidth * sizeof(T)) Piece {
    T at[kWidth];
  };

  const LossProblem &a;
  const RowsPlan &plan;
  const T *z;
  T *gradient;
  Piece *held; // this lane's pieces, blockDim.x apart
  int lane, lanes, head = 0, pieces = 0, edge_class = -1;
  T edge[1];

  MMIX_DEVICE RowPart(const LossProblem &problem, const RowsPlan &plan_, int64_t r, Piece *shared)
      : a(problem), plan(plan_), z(static_cast<const T *>(a.logits)),
        gradient(static_cast<T *>(a.gradient)), held(shared + threadIdx.x),
        lane(blockIdx.x % plan.cluster * plan.lanes + threadIdx.x % plan.lanes),
        lanes(plan.lanes * plan.cluster) {
    if (r >= a.rows) return; // the last block's spare rows
    z += a.logits_at.offset(r);
    if (gradient) gradient += a.gradient_at.offset(r);
    pieces = a.classes;
    if constexpr (kPacked) {
      head = min(a.classes, (kWidth - misalignment(z)) % kWidth);
      pieces = (a.classes - head) / kWidth;
      const int tail = a.classes - head - pieces * kWidth;
      if (lane < head + tail) {
        edge_class = lane < head ? lane : a.classes - tail + lane - head;
        edge[0] = load(z + edge_class);
      }
    }
  }

  // f(its first class, slot) for this lane's pieces of a segment
  template <class F> MMIX_DEVICE void each_piece(int segment, F f) const {
    int piece = segment * plan.depth * lanes + lane;
    Piece *slot = held;
    for (int k = 0; k < plan.depth && piece < pieces; ++k) {
      f(head + piece * kWidth, slot);
      piece += lanes;
      slot += blockDim.x;
    }
  }

  // f(first class, values) for the pieces, and the edge with the first segment
  template <class F> MMIX_DEVICE void each(int segment, F f) {
    each_piece(segment, [&](int first, Piece *slot) {
      if constexpr (kUnroll == 1) {
        f(first, slot->at);
      } else { // one access to shared memory for all
        Piece piece = *slot;
        f(first, piece.at);
      }
    });
    if (kPacked && segment == 0 && edge_class >= 0) f(edge_class, edge);
  }

  MMIX_DEVICE Real logit(T z) const { return kGeneral ? capped(a, widen(z)) : widen(z); }

  MMIX_DEVICE void read(int segment) const {
    each_piece(segment, [&](int first, Piece *slot) {
      if constexpr (kPacked)
        load_async(slot->at, z + first);
      else
        slot->at[0] = load(z + first * a.logits_at.class_stride);
    });
  }

  MMIX_DEVICE RowSums<Real> sums(int segment, const LossRow<Real> &row) {
    RowSums<Real> s;
    each(segment, [&](int, auto &v) {
#pragma unroll kUnroll
      for (const T &one : v) s.max = max_of(s.max, logit(one));
    });
    const Real pivot = pivot_of(s.max);
    Real shifted_sum = 0;
    int seen = 0;
    each(segment, [&](int first, auto &v) {
      constexpr int N = sizeof(v) / sizeof(T); // kWidth, or 1 at the edge
#pragma unroll kUnroll
      for (int e = 0; e < N; ++e) {
        const Real shifted = logit(v[e]) - pivot;
        s.exp_sum += exp_of(shifted);
        if (kGeneral)
          s.add_term(spread(a, row, first + e), shifted);
        else
          shifted_sum += shifted;
      }
      seen += N;
      if (!row.has_label_in(first, N)) return;
#pragma unroll kUnroll
      for (int e = 0; e < N; ++e) {
        if (first + e == row.y_own) s.add_term(row.hot_own, logit(v[e]) - pivot);
        if (first + e == row.y_other) s.add_term(row.hot_other, logit(v[e]) - pivot);
      }
    });
    if (!kGeneral && row.base != 0) {
      s.mass += row.base * Real(seen);
      s.dot += row.base * shifted_sum;
    }
    return s;
  }

  template <bool kLabelled, int N>
  MMIX_DEVICE void differentiate(int first, T (&v)[N], const LossRow<Real> &row,
                                 const RowGradient<Real> &gradient_of) const {
#pragma unroll kUnroll
    for (int e = 0; e < N; ++e) {
      const Real at = logit(v[e]);
      Real g = gradient_of(at, kGeneral ? spread(a, row, first + e) : row.base);
      if (kLabelled && first + e == row.y_own) g -= row.hot_own;
      if (kLabelled && first + e == row.y_other) g -= row.hot_other;
      if (kGeneral) g = through_cap(a, g, at);
      v[e] = narrow<T>(g);
    }
  }

  // The gradient takes the logits' place on chip, then goes out.
  MMIX_DEVICE void write_gradient(int segment, const LossRow<Real> &row,
                                  const RowGradient<Real> &gradient_of) {
    each(segment, [&](int first, auto &v) {
      constexpr int N = sizeof(v) / sizeof(T);
      if (!row.live) {
        for (T &one : v) one = narrow<T>(0);
      } else if (kUnroll == 1 || row.has_label_in(first, N)) {
        differentiate<true>(first, v, row, gradient_of);
      } else {
        differentiate<false>(first, v, row, gradient_of);
      }
      if constexpr (N == Vec<T>::kCount)
        store_vec(gradient + first, reinterpret_cast<const Vec<T> &>(v));
      else
        store(gradient + first * a.gradient_at.class_stride, v[0]);
    });
  }
};

template <class T> constexpr size_t rows_shared_bytes(int threads, int depth, bool packed) {
  return sizeof(double) * 32 + sizeof(LossRow<Acc<T>>) * 32 + sizeof(RowSums<Acc<T>>) * 33 +
         static_cast<size_t>(threads) * depth * (packed ? 16 : sizeof(T));
}

template <class T, bool kPacked, bool kGeneral>
__global__ void __launch_bounds__(kRowThreads, 1)
    cross_entropy_rows(const __grid_constant__ LossProblem a, const RowsPlan plan) {
  using Real = Acc<T>;
  using Part = RowPart<T, kPacked, kGeneral>;
  if (nothing_to_rescale<Real>(a)) return;
  static_assert(sizeof(LossRow<Real>) * 32 % 16 == 0 && sizeof(RowSums<Real>) % 16 == 0);
  double *losses = dynamic_shared<double>();
  LossRow<Real> *rows = reinterpret_cast<LossRow<Real> *>(losses + 32);
  RowSums<Real> *warps = reinterpret_cast<RowSums<Real> *>(rows + 32);
  const int group = threadIdx.x / plan.lanes, groups = blockDim.x / plan.lanes;
  const int64_t first = static_cast<int64_t>(blockIdx.x / plan.cluster) * groups, r = first + group;
  Part part(a, plan, r, reinterpret_cast<typename Part::Piece *>(warps + 33));
  part.read(0); // in flight while the labels are looked up
  for (int i = threadIdx.x; i < groups; i += blockDim.x) rows[i] = loss_row<Real>(a, first + i);
  __syncthreads(); // rows[] is complete
  const LossRow<Real> &row = rows[group];
  wait_for_loads();

  int held = 0;
  RowSums<Real> sums;
  if (kGeneral || !a.from_stats) { // the general mass is a sum over the classes
    sums = part.sums(0, row);
    while (++held < plan.segments) {
      part.read(held);
      wait_for_loads();
      sums = merge(sums, part.sums(held, row));
    }
    --held;
    sums = merge_warps(sums, plan.lanes, warps);
    sums = merge_blocks(sums, plan.cluster, warps + 32);
  }
  RowResult<Real> result(sums);
  const Real loss = finish_row(a, r, part.lane == 0, row, result);
  if (a.gradient && !row.keep) {
    const RowGradient<Real> gradient_of(row, result, kGeneral ? sums.mass : row.mass(a.classes));
    for (int n = 0; n < plan.segments; ++n) { // from the segment held, backwards
      if (n > 0) {
        part.read(held = (held == 0 ? plan.segments : held) - 1);
        wait_for_loads();
      }
      part.write_gradient(held, row, gradient_of);
    }
  }
  write_block_loss(a, loss, losses);
}

} // namespace mmix
