// The spread of t, t less its labels' own entries, of rows whose classes differ in it. It is
// brought into shared memory in the arithmetic's dtype: each float target, partner's target and
// class weight is read once, 16 bytes at a time, from wherever its own row is aligned, and its
// dtype is asked for once a row.
#pragma once
#include "cuda/kernels/cross_entropy_problem.cuh"
#include "cuda/kernels/tile.cuh"

namespace mmix {

// How a term enters the spread. A class weight of 0 makes its class absent.
template <class Real> struct TermStep {
  Real base, coef;
  bool first, weighs;
  MMIX_DEVICE TermStep(const LossProblem &a, const LossRow<Real> &row, int term)
      : base(row.base), coef(row.coef[term]), first(term == kTarget || a.labels != nullptr),
        weighs(term == kWeight) {}
  MMIX_DEVICE Real operator()(Real so_far, Real v) const {
    const Real t = first ? base : so_far;
    return !weighs ? t + coef * v : v == 0 ? Real(0) : v * t;
  }
};

// t[0..N) after one more term, 16 bytes of shared memory at a time where t is aligned: one by one,
// the lanes of a warp would meet in the same banks.
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

// Whether n values from p on are read by vectors: not where a warp has a lane for each, since the
// ends before and after the vectors would take one more access.
template <class V> MMIX_DEVICE bool wide(const V *p, int n) {
  return n > 32 || (misalignment(p) == 0 && n % Vec<V>::kCount == 0);
}

// One term of a row, for its n classes from `first` on: t[0..n) in shared memory.
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

// f(term) for each that there is, with barriers between: a term may reach t by other threads than
// the one before it. Every thread of the block calls it; t is complete after it.
template <class F> MMIX_DEVICE void each_term(const LossProblem &a, F f) {
#pragma unroll 1 // the code for every dtype once
  for (int term = 0; term < kTerms; ++term) {
    if (a.terms[term].data == nullptr) continue;
    __syncthreads(); // the terms before are in t, and who read t is done with it
    f(term);
  }
  __syncthreads(); // t is complete
}

// The spread of a single class.
template <class Real>
MMIX_DEVICE Real spread(const LossProblem &a, const LossRow<Real> &row, int c) {
  Real t = row.base;
#pragma unroll 1 // the code for every dtype once
  for (int term = 0; term < kTerms; ++term) {
    const Values &values = a.terms[term];
    const TermStep<Real> step(a, row, term);
    if (values.data != nullptr && step.coef != 0)
      t = step(t, values.template value<Real>(row.at[term] + c * values.at.class_stride));
  }
  return t;
}

} // namespace mmix
