// Maps: logits whose neighbouring rows are next to each other in memory and whose classes are far
// apart, as those of the pixels of a segmentation. Some lanes of a warp own kPixels neighbouring
// rows; each of them takes every lanes-th class of all kPixels at once. A lane uses only the logits
// that it loaded itself into shared memory, so no barrier is needed. While it writes the gradient,
// it loads its next logits into the same places: the memory always has work.
#pragma once
#include "cuda/kernels/cross_entropy_mean.cuh"

namespace mmix {

constexpr int kMapThreads = 128;
constexpr int kPixels = 4;

struct MapsPlan {
  int lanes; // of the same rows; a power of two, at most a warp
};

// Elements of neighbouring rows, moved at once: 16 bytes at most.
template <class V> struct alignas(kPixels * sizeof(V)) Pixels {
  V at[kPixels];
};
template <class V> struct alignas(2 * sizeof(V)) Pair {
  V at[2];
};
// Numbers of 8 bytes of kPixels rows.
template <class V> MMIX_DEVICE void load_pixels(const V *from, V (&v)[kPixels]) {
  const Pair<V> *p = reinterpret_cast<const Pair<V> *>(from);
  const Pair<V> low = load(p), high = load(p + 1);
  v[0] = low.at[0], v[1] = low.at[1], v[2] = high.at[0], v[3] = high.at[1];
}

inline size_t map_bytes(int classes, const MapsPlan &plan, int64_t element) { // shared memory
  const int64_t of_lane = (classes + plan.lanes - 1) / plan.lanes;
  return sizeof(LossScratch) + static_cast<size_t>(of_lane * kMapThreads * kPixels * element);
}

// The coefficients of kPixels rows of one sample. Without labels where there are no such rows.
template <class Real>
MMIX_DEVICE void map_rows(const LossProblem &a, int64_t r, const double *scales,
                          LossRow<Real> (&rows)[kPixels]) {
  LabelPair pairs[kPixels];
  Real lam = 0;
  if (r < a.rows) {
    bool bad = false;
    const int64_t partner = partner_row(a, r, bad);
    int64_t own[kPixels], other[kPixels];
    load_pixels(a.labels + r, own);
    load_pixels((a.labels_b ? a.labels_b : a.labels) + partner, other);
    lam = lam_of<Real>(a, r);
#pragma unroll
    for (int i = 0; i < kPixels; ++i) pairs[i] = label_pair(a, own[i], other[i], bad);
  }
#pragma unroll
  for (int i = 0; i < kPixels; ++i) rows[i] = loss_row<Real>(a, r + i, pairs[i], lam, scales);
}

// A block takes every gridDim-th group of rows.
template <class T>
__global__ void __launch_bounds__(kMapThreads, 5)
    cross_entropy_maps(const __grid_constant__ LossProblem a, const MapsPlan plan) {
  using Real = Acc<T>;
  using Slot = Pixels<T>;
  if (rescale_is_noop<Real>(a)) return;
  LossScratch &scratch = *dynamic_shared<LossScratch>();
  Slot *slots = reinterpret_cast<Slot *>(&scratch + 1) + threadIdx.x; // kMapThreads apart
  // Neighbouring lanes have neighbouring rows.
  const int groups = 32 / plan.lanes, lane = threadIdx.x % 32 / groups;
  const int group = threadIdx.x / 32 * groups + threadIdx.x % groups;
  const int64_t step = int64_t{gridDim.x} * (kMapThreads / plan.lanes * kPixels);
  const int64_t begin = step / gridDim.x * blockIdx.x;
  // Calls f(slot) for each class of this lane.
  const auto each_slot = [&](auto f) {
    Slot *slot = slots;
#pragma unroll 2
    for (int c = lane; c < a.classes; c += plan.lanes, slot += kMapThreads) f(slot);
  };
  // Calls f(row, logit) for each logit of this lane.
  const auto each_logit = [&](auto f) {
    each_slot([&](const Slot *slot) {
      const Slot held = *slot;
      Real z[kPixels];
      widen_all(held.at, z);
#pragma unroll
      for (int i = 0; i < kPixels; ++i) f(i, z[i]);
    });
  };
  const auto merged = [&](Real v, auto merge) { // over the lanes of the same rows
    for (int to = 16; to >= groups; to /= 2) v = merge(v, shuffle_xor(v, to));
    return v;
  };
  const auto sum = [&](Real v) { return merged(v, [](Real x, Real y) { return x + y; }); };
  const auto slot_of = [&](int y) { // of a class of this lane, else null
    const bool held = y >= 0 && (y & (plan.lanes - 1)) == lane;
    return held ? slots + (y >> (31 - __clz(plan.lanes))) * kMapThreads : nullptr;
  };
  // This lane's first class of row r, and the step to its next one.
  const auto place = [&](auto *p, const RowLayout &at, int64_t r) {
    return p + at.offset(r) + lane * at.class_stride;
  };
  const auto next_class = [&](const RowLayout &at) { return plan.lanes * at.class_stride; };
  const T *z = static_cast<const T *>(a.logits);
  T *g = static_cast<T *>(a.gradient);

  int64_t r = begin + group * kPixels;
  if (r < a.rows) // in flight while the scales are made
    each_slot([&, from = place(z, a.logits_at, r)](Slot *slot) mutable {
      copy_one(slot, reinterpret_cast<const Slot *>(from));
      from += next_class(a.logits_at);
    });
  make_scales<Real>(a, scratch);
  double loss = 0;
#pragma unroll 1
  for (int64_t first = begin; first < a.rows; first += step, r += step) {
    LossRow<Real> rows[kPixels];
    map_rows(a, r, scratch.scales, rows);
    wait_copies();

    RowSums<Real> sums[kPixels];
    Real shifted_sum[kPixels] = {};
    each_logit([&](int i, Real z) { sums[i].max = max_of(sums[i].max, z); });
#pragma unroll
    for (RowSums<Real> &s : sums)
      s.max = merged(s.max, [](Real x, Real y) { return max_of(x, y); });
    each_logit([&](int i, Real z) {
      const Real shifted = z - pivot_of(sums[i].max);
      sums[i].exp_sum += exp_of(shifted);
      shifted_sum[i] += shifted;
    });
    RowStats<Real> stats[kPixels];
    if (a.from_stats && r < a.rows)
      load_pixels(static_cast<const RowStats<Real> *>(a.stats) + r, stats);
    // Of each row: its gradient, and the entries of its labels.
    Real p[kPixels], max[kPixels], log2_sum[kPixels], entry_own[kPixels], entry_other[kPixels];
    Vec<Real> losses;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const LossRow<Real> &row = rows[i];
      RowSums<Real> &s = sums[i];
      if (row.base != 0) {
        s.mass = row.base * Real((a.classes - lane + plan.lanes - 1) / plan.lanes);
        s.dot = row.base * shifted_sum[i];
      }
      const Real pivot = pivot_of(s.max);
      const Slot *own = slot_of(row.y_own), *other = slot_of(row.y_other);
      const Real z_own = own ? widen(own->at[i]) : Real(0);
      const Real z_other = other ? widen(other->at[i]) : Real(0);
      if (own) s.add_term(row.hot_own, z_own - pivot);
      if (other) s.add_term(row.hot_other, z_other - pivot);
      s.exp_sum = sum(s.exp_sum), s.mass = sum(s.mass), s.dot = sum(s.dot);
      RowResult<Real> result(s);
      if (a.from_stats)
        result.max = stats[i].max, result.log_sum = stats[i].log_sum;
      else
        stats[i] = stats_of(row, result);
      losses.at[i] = loss_of(row, result);
      if (lane == 0 && r < a.rows && !a.from_stats) loss += losses.at[i];
      const RowGradient<Real> of(row, result, row.mass(a.classes));
      p[i] = of.p, max[i] = of.max, log2_sum[i] = of.log2_sum;
      const bool same = row.y_own == row.y_other;
      entry_own[i] = of(z_own, row.base) - row.hot_own;
      if (same) entry_own[i] -= row.hot_other;
      entry_other[i] = same ? entry_own[i] : of(z_other, row.base) - row.hot_other;
    }
    if (lane == 0 && r < a.rows && !a.from_stats) {
      Real *to = static_cast<Real *>(a.stats) + 2 * r;
      store_vec(to, {.at = {stats[0].max, stats[0].log_sum, stats[1].max, stats[1].log_sum}});
      store_vec(to + 4, {.at = {stats[2].max, stats[2].log_sum, stats[3].max, stats[3].log_sum}});
      if (a.loss && !a.partial) store_vec(static_cast<Real *>(a.loss) + r, losses);
    }
    if (first + step >= a.rows) post_loss(a, loss, scratch);

    if (a.gradient) {
      each_slot([&](Slot *slot) {
        Slot held = *slot;
        Real z[kPixels];
        widen_all(held.at, z);
#pragma unroll
        for (int i = 0; i < kPixels; ++i) {
          const Real g = RowGradient<Real>(p[i], max[i], log2_sum[i])(z[i], rows[i].base);
          held.at[i] = narrow<T>(rows[i].live ? g : Real(0));
        }
        *slot = held;
      });
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        if (Slot *slot = slot_of(rows[i].y_own)) slot->at[i] = narrow<T>(entry_own[i]);
        if (Slot *slot = slot_of(rows[i].y_other)) slot->at[i] = narrow<T>(entry_other[i]);
      }
    }
    const bool writes = a.gradient && r < a.rows, reads = r + step < a.rows;
    T *to = writes ? place(g, a.gradient_at, r) : nullptr;
    const T *from = reads ? place(z, a.logits_at, r + step) : nullptr;
    each_slot([&](Slot *slot) {
      if (writes) store(reinterpret_cast<Slot *>(to), *slot);
      if (reads) copy_one(slot, reinterpret_cast<const Slot *>(from));
      to += next_class(a.gradient_at);
      from += next_class(a.logits_at);
    });
  }
  write_total<Real>(a, scratch);
}

} // namespace mmix
