// Rows kept in shared memory. A group of lanes, from a warp to a cluster of blocks, owns a row. It
// reads the row into shared memory once, and computes and writes the gradient from there. Each lane
// uses only the logits that it loaded itself, so no barrier is needed. A dense spread is loaded by
// all lanes together (see cross_entropy_spread.cuh). A row longer than the group's share of shared
// memory is read in segments. Each segment is read twice, except the last, which is still held when
// the sums are known.
#pragma once
#include "cuda/kernels/cross_entropy_mean.cuh"

namespace mmix {

constexpr int kRowThreads = 1024; // with one such block on an SM, 64 registers for each thread

// How a launch divides rows. A row belongs to `lanes` threads of a block (a power of two, at least
// a warp) or, if cluster > 1, to all threads of `cluster` blocks. Each thread holds `depth` pieces
// of a segment.
struct RowsPlan {
  int lanes, cluster, depth, segments;
};

// One lane's part of a row. Packed: a piece is 16 aligned bytes of consecutive classes. The few
// classes before the first and after the last piece go to `edge`, one for each lane. Not packed,
// for any stride or alignment: a piece is one class. Neighbouring lanes have neighbouring pieces.
template <class T, bool kPacked, bool kGeneral> struct RowPart {
  using Real = Acc<T>;
  static constexpr int kWidth = kPacked ? Vec<T>::kCount : 1;
  // exp in float64 is long code for each class. So float64 has a loop that is not unrolled.
  static constexpr int kUnroll = sizeof(T) == 8 ? 1 : kWidth;
  static constexpr bool kInPlace = sizeof(T) == 8; // the gradient replaces the logits that are held
  static constexpr int kAtOnce = sizeof(T) == 8 || kGeneral ? 1 : 2; // pieces
  struct alignas(kWidth * sizeof(T)) Piece {
    T at[kWidth];
  };
  struct alignas(kWidth == 1 ? sizeof(Real) : 16) Spread {
    Real at[kWidth];
  };

  const LossProblem &a;
  const RowsPlan &plan;
  const T *z;
  Piece *held;    // this lane's pieces, blockDim.x apart
  Spread *spread; // of this row's pieces in this block, in the order of their classes
  int lane, lanes, head = 0, pieces = 0, edge_class = -1;
  Real edge, edge_spread;

  MMIX_DEVICE RowPart(const LossProblem &problem, const RowsPlan &plan_, int64_t r, Piece *shared)
      : a(problem), plan(plan_), z(static_cast<const T *>(a.logits)), held(shared + threadIdx.x),
        spread(reinterpret_cast<Spread *>(shared + blockDim.x * plan.depth) +
               threadIdx.x / plan.lanes * plan.lanes * plan.depth),
        lane(blockIdx.x % plan.cluster * plan.lanes + threadIdx.x % plan.lanes),
        lanes(plan.lanes * plan.cluster) {
    if (r >= a.rows) return; // the last block's spare rows
    z += a.logits_at.offset(r);
    pieces = a.classes;
    if constexpr (kPacked) {
      head = min(a.classes, (kWidth - misalignment(z)) % kWidth);
      pieces = (a.classes - head) / kWidth;
      const int tail = a.classes - head - pieces * kWidth;
      if (lane < head + tail) {
        edge_class = lane < head ? lane : a.classes - tail + lane - head;
        edge = widen(load(z + edge_class));
      }
    }
  }

  // Calls f(first class, slot, spread) for this lane's pieces of a segment.
  template <class F> MMIX_DEVICE void each_piece(int segment, F f) const {
    int piece = segment * plan.depth * lanes + lane;
    Piece *slot = held;
    const Spread *t = spread + threadIdx.x % plan.lanes;
#pragma unroll kAtOnce
    for (int k = 0; k < plan.depth; ++k) {
      if (piece >= pieces) break;
      f(head + piece * kWidth, slot, t);
      piece += lanes;
      slot += blockDim.x;
      t += plan.lanes;
    }
  }

  // Calls f(first class, values, spread) for each piece, and for the edge with the first segment.
  template <class F> MMIX_DEVICE void each(int segment, const LossRow<Real> &row, F f) {
    each_piece(segment, [&](int first, Piece *slot, const Spread *t) {
      if constexpr (kInPlace) {
        f(first, slot->at, [&](int e) { return kGeneral && a.dense ? t->at[e] : row.base; });
      } else { // one access to shared memory for the piece
        const Piece piece = *slot;
        Spread some;
        if (kGeneral && a.dense)
          some = *t;
        else
          for (Real &one : some.at) one = row.base;
        Real values[kWidth];
        widen_all(piece.at, values);
        f(first, values, [&](int e) { return some.at[e]; });
      }
    });
    if (kPacked && segment == 0 && edge_class >= 0) {
      Real value[1] = {edge};
      f(edge_class, value, [&](int) { return edge_spread; });
    }
  }

  // Calls f(y, logit, spread) if this lane holds the class y in this segment.
  template <class F>
  MMIX_DEVICE void held_class(int segment, int y, const LossRow<Real> &row, F f) const {
    if (y < 0) return;
    if (y == edge_class) {
      if (segment == 0) f(y, edge, edge_spread);
      return;
    }
    const int at = y - head, piece = at / kWidth;
    if (at < 0 || piece >= pieces || (piece & (lanes - 1)) != lane) return;
    const int k = (piece >> (31 - __clz(lanes))) - segment * plan.depth; // lanes: a power of two
    if (k < 0 || k >= plan.depth) return;
    const int e = at % kWidth;
    const bool own = kGeneral && a.dense;
    f(y, static_cast<Real>(widen(held[k * blockDim.x].at[e])),
      own ? spread[k * plan.lanes + threadIdx.x % plan.lanes].at[e] : row.base);
  }

  MMIX_DEVICE Real logit(Real z) const { return kGeneral ? capped(a, z) : z; }

  MMIX_DEVICE void read(int segment) const {
    each_piece(segment, [&](int first, Piece *slot, const Spread *) {
      if constexpr (kPacked)
        copy_vec(reinterpret_cast<uint4 *>(slot), z + first);
      else
        slot->at[0] = load(z + first * a.logits_at.class_stride);
    });
  }

  // Loads the spread of a segment, with all lanes of the row. Every thread of the block must call
  // it.
  MMIX_DEVICE void read_spread(int segment, const LossRow<Real> &row) {
    if (!kGeneral || !a.dense) return;
    // If several blocks share the row, each has one run of pieces for each k < depth. Else the
    // block has the whole segment.
    const int runs = plan.cluster == 1 ? 1 : plan.depth;
    const int run_pieces = plan.cluster == 1 ? plan.depth * plan.lanes : plan.lanes;
    const ThreadGroup group{static_cast<int>(threadIdx.x % plan.lanes), plan.lanes};
    each_term(a, [&](int term) {
      for (int k = 0; k < runs; ++k) {
        const int piece = segment * plan.depth * lanes + k * lanes + lane - group.lane;
        spread_term(a, row, term, head + piece * kWidth, min(run_pieces, pieces - piece) * kWidth,
                    spread[k * run_pieces].at, group);
      }
    });
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
      return [&s, this, hot, pivot](int, Real z, Real) { s.add_term(hot, logit(z) - pivot); };
    };
    if (!kInPlace) {
      held_class(segment, row.y_own, row, add(row.hot_own));
      held_class(segment, row.y_other, row, add(row.hot_other));
    }
    for (int step = 16; step > 0; step /= 2) {
      s.exp_sum += shuffle_xor(s.exp_sum, step);
      s.mass += shuffle_xor(s.mass, step);
      s.dot += shuffle_xor(s.dot, step);
    }
    return s;
  }

  // Computes the gradient of a segment from the logits held, and writes it to global memory.
  // `gradient` points to the first class of the row.
  MMIX_DEVICE void write_gradient(int segment, const LossRow<Real> &row,
                                  const RowGradient<Real> &of, T *gradient) {
    constexpr bool kEach = kInPlace || kGeneral; // looks for the labels at each class
    const auto at = [&](Real z, Real g) { return kGeneral ? through_cap(a, g, z) : g; };
    each(segment, row, [&](int first, auto &v, auto t) {
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
    });
  }
};

// Shared memory: the scratch, two LossRows for each row of the block, RowSums of its warps and its
// cluster, then the pieces of each lane and their spread.
template <class Real> __host__ MMIX_DEVICE size_t rows_overhead(int threads, int lanes) {
  static_assert(sizeof(LossRow<Real>) * 2 % 16 == 0 && sizeof(RowSums<Real>) % 16 == 0);
  return sizeof(LossScratch) + sizeof(LossRow<Real>) * 2 * (threads / lanes) +
         sizeof(RowSums<Real>) * (threads / 32 + 1);
}
inline size_t piece_bytes(size_t element, bool packed, bool dense) {
  const size_t classes = packed ? 16 / element : 1, real = element == 8 ? 8 : 4;
  return classes * (element + (dense ? real : 0));
}

// What one thread of a row wrote to shared memory is visible to all `lanes` threads of the row
// after it. Every thread of the block must call it.
MMIX_DEVICE void sync_row(int lanes) {
  if (lanes == 32)
    __syncwarp(); // the row's first lane has written
  else
    __syncthreads(); // the row's first lane has written
}

// Whether a block, or a cluster of them, takes every gridDim-th group of rows. The other kernels
// would spill registers: they take one group each.
template <class T, bool kGeneral> constexpr bool kTakesTurns = sizeof(T) < 8 && !kGeneral;

template <class T, bool kPacked, bool kGeneral>
__global__ void __launch_bounds__(kRowThreads, 1)
    cross_entropy_rows(const __grid_constant__ LossProblem a, const RowsPlan plan) {
  using Real = Acc<T>;
  using Part = RowPart<T, kPacked, kGeneral>;
  if (rescale_is_noop<Real>(a)) return;
  const int group = threadIdx.x / plan.lanes, groups = blockDim.x / plan.lanes;
  LossScratch &scratch = *dynamic_shared<LossScratch>();
  LossRow<Real> *rows = reinterpret_cast<LossRow<Real> *>(&scratch + 1);
  RowSums<Real> *warps = reinterpret_cast<RowSums<Real> *>(rows + 2 * groups);
  auto *pieces = reinterpret_cast<typename Part::Piece *>(warps + blockDim.x / 32 + 1);
  const bool dense = kGeneral && a.dense;
  double *loss = scratch.warps[2] + group; // of the row's first lane; it saves registers
  const int64_t begin = int64_t{blockIdx.x / plan.cluster} * groups;
  constexpr bool kTurns = kTakesTurns<T, kGeneral>;
  if (kTurns) Part(a, plan, begin + group, pieces).read(0); // in flight while labels are read
  make_scales<Real>(a, scratch);
  const bool leads = threadIdx.x % plan.lanes == 0;
  if (kTurns && leads) *loss = 0;
  int turn = 0;
  const unsigned step = gridDim.x / plan.cluster * groups;
#pragma unroll 1
  for (int64_t first = begin; first < a.rows; first += step) {
    Part part(a, plan, first + group, pieces);
    if (!kTurns || turn != 0) part.read(0);
    // Two places take turns: other threads may still use the coefficients of the row before.
    LossRow<Real> &row = rows[turn++ % 2 * groups + group];
    if (leads)
      row = loss_row<Real>(a, first + group, pair_of_row(a, first + group), scratch.scales);
    sync_row(plan.lanes);
    part.read_edge_spread(row);

    // First all segments for the sums, then all for the gradient, from the held one backwards. Both
    // are one loop, so that the long code that loads a segment exists once. With a dense spread, a
    // backward needs the sums too: the mass is a sum over the classes.
    int held = 0;
    RowSums<Real> sums; // later, in the same registers: max, log2_sum and p of RowGradient
    T *gradient = static_cast<T *>(a.gradient);
#pragma unroll 1
    for (bool summing = dense || !a.from_stats;; summing = false) {
      if (!summing) {
        RowResult<Real> result(sums);
        const Real one = finish_row(a, row.number, part.lane == 0, row, result);
        if (!kTurns) {
          post_loss(a, one, scratch);
        } else {
          if (leads) *loss += one;
          if (first + step >= a.rows) post_loss(a, leads ? *loss : 0, scratch);
        }
        if (!gradient) break;
        const RowGradient<Real> of(row, result, dense ? sums.mass : row.mass(a.classes));
        sums = {of.max, of.log2_sum, of.p, 0};
        if (row.number < a.rows) gradient += a.gradient_at.offset(row.number);
      }
#pragma unroll 1
      for (int n = 0; n < plan.segments; ++n) {
        if (n > 0) part.read(held = summing ? n : (held == 0 ? plan.segments : held) - 1);
        if (n > 0 || summing) part.read_spread(held, row);
        wait_copies();
        if (summing)
          sums = merge(sums, part.sums(held, row));
        else if (!row.keep)
          part.write_gradient(held, row, {sums.mass, sums.max, sums.exp_sum}, gradient);
      }
      if (!summing) break;
      sums = merge_warps(sums, plan.lanes, warps);
      sums = merge_blocks(sums, plan.cluster, warps + blockDim.x / 32);
    }
    if (!kTurns) break;
  }
  write_total<Real>(a, scratch);
}

} // namespace mmix
