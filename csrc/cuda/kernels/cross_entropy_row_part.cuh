// What one thread of a kept row does with its part: reads it, sums it, writes its gradient. See
// cross_entropy_rows.cuh.
#pragma once
#include "cuda/kernels/cross_entropy_mean.cuh"
#include "cuda/kernels/cross_entropy_terms.cuh"

namespace mmix {

constexpr int kRowThreads = 1024; // with one such block on an SM, 64 registers for each thread

// How a launch divides rows. A row belongs to `lanes` threads of a block (a power of two, at least
// a warp) or, if cluster > 1, to all threads of `cluster` blocks. Each thread holds `depth` pieces
// of a segment. The terms of a row's spread take `terms` bytes of shared memory.
struct RowsPlan {
  int lanes, cluster, depth, segments, terms;
};

// What one thread of a row wrote to shared memory is visible to all `lanes` threads of the row
// after it. Every thread of the block must call it.
MMIX_DEVICE void sync_row(int lanes) {
  if (lanes == 32)
    __syncwarp(); // another lane has written
  else
    __syncthreads(); // another thread has written
}

// One lane's part of a row. Packed: a piece is 16 aligned bytes of consecutive classes. The few
// classes before the first and after the last piece go to `edge`, one for each lane. Not packed,
// for any stride or alignment: a piece is one class. Each block of a cluster has one run of pieces,
// in which neighbouring lanes have neighbouring pieces.
template <class T, bool kPacked, bool kGeneral> struct RowPart {
  using Real = Acc<T>;
  static constexpr int kWidth = kPacked ? Vec<T>::kCount : 1;
  // exp in float64 is long code for each class. So float64 has a loop that is not unrolled.
  static constexpr int kUnroll = sizeof(T) == 8 ? 1 : kWidth;
  static constexpr bool kInPlace = sizeof(T) == 8; // the gradient replaces the logits that are held
  static constexpr int kAtOnce = sizeof(T) == 4 && !kGeneral ? 2 : 1; // pieces, of 4 classes or 8
  struct alignas(kWidth * sizeof(T)) Piece {
    T at[kWidth];
  };

  const LossProblem &a;
  const RowsPlan &plan;
  const T *z;
  Piece *held;              // this lane's pieces, blockDim.x apart
  char *runs;               // the terms of this row's spread
  int lane, rank;           // in the block; of the block in its cluster
  int head = 0, pieces = 0; // this block's first class, and its pieces
  int edge_class = -1;
  Real edge, edge_spread;

  MMIX_DEVICE RowPart(const LossProblem &problem, const RowsPlan &plan_, int64_t r, Piece *shared,
                      bool reads_edge = true)
      : a(problem), plan(plan_), z(static_cast<const T *>(a.logits)), held(shared + threadIdx.x),
        runs(reinterpret_cast<char *>(shared + blockDim.x * plan.depth) +
             threadIdx.x / plan.lanes * plan.terms),
        lane(threadIdx.x % plan.lanes), rank(blockIdx.x % plan.cluster) {
    if (r >= a.rows) return; // the last block's spare rows
    z += a.logits_at.offset(r);
    pieces = a.classes;
    if constexpr (kPacked) {
      head = min(a.classes, (kWidth - misalignment(z)) % kWidth);
      pieces = (a.classes - head) / kWidth;
      const int tail = a.classes - head - pieces * kWidth;
      if (rank == 0 && lane < head + tail) {
        edge_class = lane < head ? lane : a.classes - tail + lane - head;
        if (reads_edge) edge = widen(load(z + edge_class));
      }
    }
    if (plan.cluster == 1) return;
    constexpr int kLine = 8; // pieces; of a packed row, a cache line
    const int share = (pieces + kLine * plan.cluster - 1) / (kLine * plan.cluster) * kLine;
    head += rank * share * kWidth;
    pieces = min(share, pieces - rank * share);
  }

  // The classes of a segment.
  MMIX_DEVICE int room() const { return plan.depth * plan.lanes * kWidth; }

  // Calls f(first class, slot) for this lane's pieces of a segment. next: another row, whose first
  // pieces are then read into the slots of these: only for the first segment.
  template <class F>
  MMIX_DEVICE void each_piece(int segment, F f, const RowPart *next = nullptr) const {
    int piece = segment * plan.depth * plan.lanes + lane;
    Piece *slot = held;
#pragma unroll kAtOnce
    for (int k = 0; k < plan.depth; ++k) {
      if (piece >= (next ? max(pieces, next->pieces) : pieces)) break;
      if (!next || piece < pieces) f(head + piece * kWidth, slot);
      if (next && piece < next->pieces) next->read_piece(next->head + piece * kWidth, slot);
      piece += plan.lanes;
      slot += blockDim.x;
    }
  }

  // Calls f(first class, values, spread) for each piece, and for the edge with the first segment.
  template <class F>
  MMIX_DEVICE void each(int segment, const LossRow<Real> &row, F f, const RowPart *next = nullptr) {
    each_piece(
        segment,
        [&](int first, Piece *slot) {
          Real t[kGeneral ? kWidth : 1];
          if (kGeneral && a.dense)
            spread_of(a, row, runs, room(), first - head - segment * room(), t);
          else if (kGeneral)
            for (Real &one : t) one = row.base;
          const auto spread = [&](int e) { return kGeneral ? t[e] : row.base; };
          if constexpr (kInPlace) {
            f(first, slot->at, spread);
          } else { // one access to shared memory for the piece
            const Piece piece = *slot;
            Real values[kWidth];
            widen_all(piece.at, values);
            f(first, values, spread);
          }
        },
        next);
    if (kPacked && segment == 0 && edge_class >= 0) {
      Real value[1] = {edge};
      f(edge_class, value, [&](int) { return edge_spread; });
    }
  }

  // Calls f(logit) if this lane holds the class y in this segment.
  template <class F> MMIX_DEVICE void held_class(int segment, int y, F f) const {
    if (y < 0) return;
    if (y == edge_class) {
      if (segment == 0) f(edge);
      return;
    }
    const int at = y - head, piece = at / kWidth;
    if (at < 0 || piece >= pieces || (piece & (plan.lanes - 1)) != lane) return;
    // lanes: a power of two
    const int k = (piece >> (31 - __clz(plan.lanes))) - segment * plan.depth;
    if (k < 0 || k >= plan.depth) return;
    f(static_cast<Real>(widen(held[k * blockDim.x].at[at % kWidth])));
  }

  MMIX_DEVICE Real logit(Real z) const { return kGeneral ? capped(a, z) : z; }

  MMIX_DEVICE void read_piece(int first, Piece *slot) const {
    if constexpr (kPacked)
      copy_vec(reinterpret_cast<uint4 *>(slot), z + first);
    else
      slot->at[0] = load(z + first * a.logits_at.class_stride);
  }
  MMIX_DEVICE void read(int segment) const {
    each_piece(segment, [&](int first, Piece *slot) { read_piece(first, slot); });
  }

  // Starts to load the terms of a segment's spread, with all lanes of the row. Every thread of the
  // block must call it. again: after another segment.
  MMIX_DEVICE void read_terms(int segment, LossRow<Real> &row, bool again) const {
    if (!kGeneral || !a.dense) return;
    if (again) sync_row(plan.lanes); // the readers of the segment before are done
    const int first = segment * room(), n = max(0, min(room(), pieces * kWidth - first));
    copy_terms(a, row, head + first, n, runs, room(), {lane, plan.lanes});
  }
  // Waits for what was read. Every thread of the block must call it.
  MMIX_DEVICE void wait() const {
    wait_copies();
    if (kGeneral && a.dense) sync_row(plan.lanes); // the other lanes' copies have arrived
  }
  // Loads the spread of the edge, once for the row. rows[] must be complete.
  MMIX_DEVICE void read_edge_spread(const LossRow<Real> &row) {
    edge_spread = row.base;
    if (kGeneral && a.dense && edge_class >= 0) edge_spread = mmix::spread(a, row, edge_class);
  }

  // The sums of a segment over the classes of this warp.
  MMIX_DEVICE RowSums<Real> sums(int segment, const LossRow<Real> &row) {
    RowSums<Real> s;
    each(segment, row, [&](int, auto &v, auto) {
#pragma unroll kUnroll
      for (const Real one : v) s.max = max_of(s.max, logit(one));
    });
    // With one pivot for the warp, its sums are merged by additions alone.
    for (int step = 16; step > 0; step /= 2) s.max = max_of(s.max, shuffle_xor(s.max, step));
    const Real pivot = pivot_of(s.max);
    Real shifted_sum = 0;
    int seen = 0;
    each(segment, row, [&](int first, auto &v, auto t) {
      constexpr int N = sizeof(v) / sizeof(Real); // kWidth, or 1 at the edge
#pragma unroll kUnroll
      for (int e = 0; e < N; ++e) {
        const Real shifted = logit(v[e]) - pivot;
        s.exp_sum += exp_of(shifted);
        if (kGeneral)
          s.add_term(t(e), shifted);
        else
          shifted_sum += shifted;
        if (kInPlace && first + e == row.y_own) s.add_term(row.hot_own, shifted);
        if (kInPlace && first + e == row.y_other) s.add_term(row.hot_other, shifted);
      }
      seen += N;
    });
    if (!kGeneral && row.base != 0) {
      s.mass += row.base * Real(seen);
      s.dot += row.base * shifted_sum;
    }
    const auto add = [&](Real hot) {
      return [&s, this, hot, pivot](Real z) { s.add_term(hot, logit(z) - pivot); };
    };
    if (!kInPlace) {
      held_class(segment, row.y_own, add(row.hot_own));
      held_class(segment, row.y_other, add(row.hot_other));
    }
    for (int step = 16; step > 0; step /= 2) {
      s.exp_sum += shuffle_xor(s.exp_sum, step);
      s.mass += shuffle_xor(s.mass, step);
      s.dot += shuffle_xor(s.dot, step);
    }
    return s;
  }

  // Computes the gradient of a segment from the logits held, and writes it to global memory.
  // `gradient` points to the first class of the row. next: see each_piece().
  MMIX_DEVICE void write_gradient(int segment, const LossRow<Real> &row,
                                  const RowGradient<Real> &of, T *gradient,
                                  const RowPart *next = nullptr) {
    constexpr bool kEach = kInPlace || kGeneral; // looks for the labels at each class
    const auto at = [&](Real z, Real g) { return kGeneral ? through_cap(a, g, z) : g; };
    each(
        segment, row,
        [&](int first, auto &v, auto t) {
          constexpr int N = sizeof(v) / sizeof(Real);
#pragma unroll kUnroll
          for (int e = 0; e < N; ++e) {
            const Real z = logit(v[e]);
            Real g = of(z, t(e));
            if (kEach && first + e == row.y_own) g -= row.hot_own;
            if (kEach && first + e == row.y_other) g -= row.hot_other;
            v[e] = row.live ? at(z, g) : Real(0);
          }
          if (!kEach && row.live && row.has_label_in(first, N)) {
#pragma unroll
            for (int e = 0; e < N; ++e) {
              if (first + e == row.y_own) v[e] -= row.hot_own;
              if (first + e == row.y_other) v[e] -= row.hot_other;
            }
          }
          if constexpr (N == Vec<T>::kCount)
            store_vec(gradient + first, narrow_all<T>(v));
          else
            store(gradient + first * a.gradient_at.class_stride, narrow<T>(v[0]));
        },
        next);
  }
};

} // namespace mmix
