// Rows of classes held in registers: a group of lanes, from a warp to a block, owns a row, reads it
// once, and writes its gradient from what it holds. A row longer than the group's registers is read
// in segments, twice but for the last, which is still held when the sums are known.
#pragma once
#include "kernels/cross_entropy_sums.cuh"

namespace mmix {

constexpr int kRowThreads = 1024;
constexpr int kPacks = 8; // 16-byte packs a lane holds: 32 registers of data

// How a launch divides rows: `lanes` threads of a block to a row, a power of two of warps.
struct RowsPlan {
  int lanes, segments;
};

// What one lane holds of one segment of a row. Packed: 16-byte packs of neighbouring classes, from
// the first aligned address on; the few classes before and after go one to a lane, into `edge`.
// Not packed, for any stride or alignment: single classes, neighbours in neighbouring lanes.
template <class T, bool kPacked, bool kGeneral> struct RowSegment {
  using Real = Acc<T>;
  static constexpr int kWidth = 16 / sizeof(T);

  const LossProblem &a;
  const T *z;
  T *gradient;
  int lane, lanes, classes, head = 0, packs = 0, edge_class = -1;
  Vec<T> held[kPacks];
  T edge[1];

  MMIX_DEVICE RowSegment(const LossProblem &problem, int64_t r, int lane_, int lanes_)
      : a(problem), z(static_cast<const T *>(a.logits)), gradient(static_cast<T *>(a.gradient)),
        lane(lane_), lanes(lanes_), classes(r < a.rows ? a.classes : 0) {
    if (classes == 0) return; // the last block's spare rows
    z += a.logits_at.offset(r);
    if (gradient) gradient += a.gradient_at.offset(r);
    if constexpr (kPacked) {
      head = min(classes, elements_to_alignment(z));
      packs = (classes - head) / kWidth;
      const int tail = classes - head - packs * kWidth;
      if (lane < head + tail) {
        edge_class = lane < head ? lane : classes - tail + lane - head;
        edge[0] = load(z + edge_class);
      }
    }
  }

  // f(array of values, first class) for every pack of a segment that this lane has, and its edge.
  template <class F> MMIX_DEVICE void each(int segment, F f) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int at = (segment * kPacks + k) * lanes;
      if constexpr (kPacked) {
        if (at + lane < packs) f(held[k].at, head + (at + lane) * kWidth);
      } else {
        if (at * kWidth + lane < classes) f(held[k].at, at * kWidth + lane);
      }
    }
    if (kPacked && segment == 0 && edge_class >= 0) f(edge, edge_class);
  }

  // f(index, class) for the values of one pack.
  template <int N, class F> MMIX_DEVICE void each_class(const T (&)[N], int first, F f) const {
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const int c = first + e * (kPacked ? 1 : lanes);
      if (kPacked || c < classes) f(e, c);
    }
  }

  // f(index, coefficient) for the labels among the values of one pack.
  template <int N, class F>
  MMIX_DEVICE void each_label(const T (&v)[N], int first, const LossRow<Real> &row, F f) const {
    const auto find = [&](int y, Real hot) {
      // one comparison for a pack without the label
      if (kPacked ? static_cast<unsigned>(y - first) >= N : y < first) return;
      each_class(v, first, [&](int e, int c) {
        if (c == y) f(e, hot);
      });
    };
    find(row.y_own, row.hot_own);
    find(row.y_other, row.hot_other);
  }

  MMIX_DEVICE Real logit(T z) const {
    return kGeneral ? capped(widen(z), Real(a.softcap)) : widen(z);
  }

  MMIX_DEVICE void read(int segment) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int at = (segment * kPacks + k) * lanes;
      if constexpr (kPacked) {
        if (at + lane < packs)
          held[k] = load(reinterpret_cast<const Vec<T> *>(z + head) + at + lane);
      } else {
        each_class(held[k].at, at * kWidth + lane,
                   [&](int e, int c) { held[k].at[e] = load(z + c * a.logits_at.class_stride); });
      }
    }
  }

  MMIX_DEVICE RowSums<Real> sums(int segment, const LossRow<Real> &row) {
    RowSums<Real> s;
    each(segment, [&](auto &v, int first) {
      each_class(v, first, [&](int e, int) { s.max = max_of(s.max, logit(v[e])); });
    });
    const Real pivot = pivot_of(s.max);
    Real shifted = 0, count = 0;
    each(segment, [&](auto &v, int first) {
      each_class(v, first, [&](int e, int c) {
        const Real d = logit(v[e]) - pivot;
        s.exp_sum += exp_of(d);
        if (kGeneral) {
          s.add_term(spread(a, row, c), d);
        } else {
          shifted += d;
          count += 1;
        }
      });
      each_label(v, first, row, [&](int e, Real hot) { s.add_term(hot, logit(v[e]) - pivot); });
    });
    if (!kGeneral && row.base != 0) {
      s.mass += row.base * count;
      s.dot += row.base * shifted;
    }
    return s;
  }

  MMIX_DEVICE void write_gradient(int segment, const LossRow<Real> &row,
                                  const RowGradient<Real> &gradient_of) {
    each(segment, [&](auto &v, int first) {
      constexpr int N = sizeof(v) / sizeof(T);
      Real out[N];
      each_class(v, first, [&](int e, int c) {
        out[e] = gradient_of(logit(v[e]), kGeneral ? spread(a, row, c) : row.base);
      });
      each_label(v, first, row, [&](int e, Real hot) { out[e] -= hot; });
      each_class(v, first, [&](int e, int) {
        if (kGeneral) out[e] = through_cap(out[e], logit(v[e]), Real(a.softcap));
        if (!row.live) out[e] = 0;
      });
      if constexpr (kPacked && N == kWidth) {
        store(reinterpret_cast<Vec<T> *>(gradient + first), pack_of<T>(out));
      } else {
        each_class(v, first, [&](int e, int c) {
          store(gradient + c * a.gradient_at.class_stride, narrow<T>(out[e]));
        });
      }
    });
  }
};

template <class T, bool kPacked, bool kGeneral>
__global__ void __launch_bounds__(kRowThreads)
    cross_entropy_rows(const __grid_constant__ LossProblem a, const RowsPlan plan) {
  using Real = Acc<T>;
  __shared__ LossRow<Real> rows[kRowThreads / 32];
  __shared__ RowSums<Real> warps[kRowThreads / 32];
  if (nothing_to_rescale<Real>(a)) return;
  const int group = threadIdx.x / plan.lanes, groups = blockDim.x / plan.lanes;
  const int lane = threadIdx.x % plan.lanes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * groups, r = first + group;
  RowSegment<T, kPacked, kGeneral> segment(a, r, lane, plan.lanes);
  segment.read(0); // in flight while the labels are looked up
  if (threadIdx.x < groups) rows[threadIdx.x] = loss_row<Real>(a, first + threadIdx.x);
  __syncthreads(); // rows[] is complete
  const LossRow<Real> row = rows[group];

  int held = 0;
  RowSums<Real> sums;
  if (kGeneral || !a.from_stats) { // the general mass is a sum over the classes
    sums = segment.sums(0, row);
    while (++held < plan.segments) {
      segment.read(held);
      sums = merge(sums, segment.sums(held, row));
    }
    --held;
    sums = merge_group(sums, plan.lanes, warps);
  }
  const RowResult<Real> result = a.from_stats ? read_result(a, r, sums) : RowResult<Real>(sums);
  const Real loss = lane == 0 && !a.from_stats ? write_result(a, r, row, result) : Real(0);
  if (a.gradient && !row.keep) {
    const RowGradient<Real> gradient_of(row, result, kGeneral ? result.mass : row.mass(a.classes));
    for (int n = 0; n < plan.segments; ++n) { // from the segment held, backwards
      if (n > 0) segment.read(held = (held == 0 ? plan.segments : held) - 1);
      segment.write_gradient(held, row, gradient_of);
    }
  }
  if (a.partial) write_partial(a, loss);
}

} // namespace mmix
