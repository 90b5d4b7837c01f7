// The terms of a dense spread in shared memory, as they are in global memory. The copies of a row's
// float target, of its partner's and of the class weights are all in flight at the same time, and
// no register holds them. The spread is computed when a class is used. Each term has a run of
// shared memory with room for `room` classes, at the alignment of its own row, so that all but its
// ends are copied 16 bytes at a time.
#pragma once
#include "cuda/kernels/cross_entropy_spread.cuh"

namespace mmix {

// Beside the values of each term, for the shift to the alignment of its row.
constexpr int kRunShift = 16; // bytes

// Starts to copy the terms of a row for the n classes from `first` on. The first lane notes the
// shifts in `row`. A term with coefficient 0 is not read.
template <class Real>
MMIX_DEVICE void copy_terms(const LossProblem &a, LossRow<Real> &row, int first, int n, char *runs,
                            int room, ThreadGroup group) {
#pragma unroll 1 // keeps one copy of the code for every dtype
  for (int term = 0; term < kTerms; ++term) {
    const Values &values = a.terms[term];
    if (values.data == nullptr) continue;
    values.typed([&](const auto *p) {
      using V = std::remove_cvref_t<decltype(*p)>;
      const int64_t stride = values.at.class_stride;
      p += row.at[term] + first * stride;
      const int shift = misalignment(p);
      V *run = reinterpret_cast<V *>(runs) + shift;
      runs += room * sizeof(V) + kRunShift;
      if (row.coef[term] == 0) return;
      if (group.lane == 0) row.shift[term] = static_cast<unsigned char>(shift);
      if (stride == 1 && wide(p, n)) {
        const Split<V> s(p, n);
#pragma unroll 4
        for (int k = group.lane; k < s.vectors; k += group.lanes) {
          const int c = s.head + k * Vec<V>::kCount;
          copy_vec(reinterpret_cast<uint4 *>(run + c), p + c);
        }
#pragma unroll 1 // a few elements at most
        for (int e = group.lane; e < s.edges(); e += group.lanes)
          copy_one(run + s.edge(e), p + s.edge(e));
      } else {
#pragma unroll 1
        for (int c = group.lane; c < n; c += group.lanes) copy_one(run + c, p + c * stride);
      }
    });
  }
}

// Up to 16 bytes of shared memory, read at once if they are aligned.
template <class V, int N> struct alignas(N * sizeof(V)) Word {
  V at[N];
  MMIX_DEVICE explicit Word(const V *p) {
    if (N > 1 && reinterpret_cast<uintptr_t>(p) % sizeof(Word) == 0) {
      *this = *reinterpret_cast<const Word *>(p);
    } else {
#pragma unroll
      for (int e = 0; e < N; ++e) at[e] = p[e];
    }
  }
};

// The spread of the N classes that begin `at` classes after the first one copied.
template <class Real, int N>
MMIX_DEVICE void spread_of(const LossProblem &a, const LossRow<Real> &row, const char *runs,
                           int room, int at, Real (&t)[N]) {
#pragma unroll
  for (Real &one : t) one = row.base;
#pragma unroll 1 // keeps one copy of the code for every dtype
  for (int term = 0; term < kTerms; ++term) {
    if (a.terms[term].data == nullptr) continue;
    const TermStep<Real> step(a, row, term);
    visit(a.terms[term].type, [&]<class V>(V *) {
      const V *run = reinterpret_cast<const V *>(runs) + row.shift[term] % Vec<V>::kCount;
      runs += room * sizeof(V) + kRunShift;
      if (step.coef == 0) return;
      constexpr int kCount = N < Vec<V>::kCount ? N : Vec<V>::kCount;
#pragma unroll
      for (int i = 0; i < N; i += kCount) {
        const Word<V, kCount> v(run + at + i);
#pragma unroll
        for (int e = 0; e < kCount; ++e)
          t[i + e] = step.add(t[i + e], static_cast<Real>(widen(v.at[e])));
      }
    });
  }
}

// The spread of a single class, from global memory.
template <class Real>
MMIX_DEVICE Real spread(const LossProblem &a, const LossRow<Real> &row, int c) {
  Real t = row.base;
#pragma unroll 1 // keeps one copy of the code for every dtype
  for (int term = 0; term < kTerms; ++term) {
    const Values &values = a.terms[term];
    const TermStep<Real> step(a, row, term);
    if (values.data != nullptr && step.coef != 0)
      t = step.add(t, values.template value<Real>(row.at[term] + c * values.at.class_stride));
  }
  return t;
}

} // namespace mmix
