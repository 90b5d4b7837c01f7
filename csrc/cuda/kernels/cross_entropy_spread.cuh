// The spread (t without the labels' own entries) of rows in which it differs from class to class.
// It is computed in shared memory, in the arithmetic's dtype. Each float target, partner's target
// and class weight is read once for each row, in 16-byte vectors if possible, at the alignment of
// its own row. The switch on its dtype runs once for each row.
#pragma once
#include "cuda/kernels/cross_entropy_problem.cuh"
#include "cuda/kernels/tile.cuh"

namespace mmix {

// Adds one term to the spread. A class weight of 0 makes the spread of its class 0.
template <class Real> struct TermStep {
  Real base, coef;
  bool first, weighs;
  MMIX_DEVICE TermStep(const LossProblem &a, const LossRow<Real> &row, int term)
      : base(row.base), coef(row.coef[term]), first(term == kTarget || a.labels != nullptr),
        weighs(term == kWeight) {}
  MMIX_DEVICE Real add(Real t, Real v) const {
    return !weighs ? t + coef * v : v == 0 ? Real(0) : v * t;
  }
  // The first step takes nothing from so_far.
  MMIX_DEVICE Real operator()(Real so_far, Real v) const { return add(first ? base : so_far, v); }
};

// Adds one term to t[0..N), 16 bytes of shared memory at a time if t is aligned. With single
// elements, the lanes of a warp would have bank conflicts.
template <class Real, class V, int N>
MMIX_DEVICE void take(Real *t, const V (&v)[N], const TermStep<Real> &step) {
  constexpr int kWidth = Vec<Real>::kCount;
  if constexpr (N % kWidth == 0)
    if (misalignment(t) == 0) {
#pragma unroll
      for (int i = 0; i < N; i += kWidth) {
        Vec<Real> some = *reinterpret_cast<const Vec<Real> *>(t + i);
#pragma unroll
        for (int e = 0; e < kWidth; ++e)
          some.at[e] = step(some.at[e], static_cast<Real>(widen(v[i + e])));
        *reinterpret_cast<Vec<Real> *>(t + i) = some;
      }
      return;
    }
#pragma unroll
  for (int i = 0; i < N; ++i) t[i] = step(t[i], static_cast<Real>(widen(v[i])));
}

// Whether n values from p on are read in vectors. Not if a warp has a lane for each value, unless
// whole vectors cover them: the elements before and after the vectors would take one more access.
template <class V> MMIX_DEVICE bool wide(const V *p, int n) {
  return n > 32 || (misalignment(p) == 0 && n % Vec<V>::kCount == 0);
}

// Adds one term of a row to t[0..n) in shared memory, for the n classes from `first` on.
template <class Real>
MMIX_DEVICE void spread_term(const LossProblem &a, const LossRow<Real> &row, int term, int first,
                             int n, Real *t, ThreadGroup group) {
  const TermStep<Real> step(a, row, term);
  if (step.coef == 0) { // absent
    for (int c = group.lane; c < n && step.first; c += group.lanes) t[c] = step.base;
    return;
  }
  const Values &values = a.terms[term];
  values.typed([&](const auto *p) {
    using V = std::remove_cvref_t<decltype(*p)>;
    const int64_t stride = values.at.class_stride;
    p += row.at[term] + first * stride;
    if (stride == 1 && wide(p, n)) {
      const Split<V> s(p, n);
#pragma unroll 2 // loads in flight
      for (int k = group.lane; k < s.vectors; k += group.lanes) {
        const int c = s.head + k * Vec<V>::kCount;
        take(t + c, load_vec(p + c).at, step);
      }
#pragma unroll 1 // a few elements at most
      for (int e = group.lane; e < s.edges(); e += group.lanes)
        t[s.edge(e)] = step(t[s.edge(e)], static_cast<Real>(widen(load(p + s.edge(e)))));
    } else {
#pragma unroll 1
      for (int c = group.lane; c < n; c += group.lanes)
        t[c] = step(t[c], static_cast<Real>(widen(load(p + c * stride))));
    }
  });
}

// Calls f(term) for each term that exists, with barriers between: another thread may have written
// an element of t for the term before. Every thread of the block must call it. Afterwards t is
// complete.
template <class F> MMIX_DEVICE void each_term(const LossProblem &a, F f) {
#pragma unroll 1 // keeps one copy of the code for every dtype
  for (int term = 0; term < kTerms; ++term) {
    if (a.terms[term].data == nullptr) continue;
    __syncthreads(); // t has the terms before, and its earlier readers are done
    f(term);
  }
  __syncthreads(); // t is complete
}

} // namespace mmix
