// A tile: some columns of a row, in shared memory. A group of threads moves it in 16-byte vectors
// at the alignment of the row. The elements before the first and after the last 16-byte boundary
// are moved one by one. The copy in shared memory has the misalignment of the row.
#pragma once
#include "cuda/kernels/memory.cuh"

namespace mmix {

struct ThreadGroup { // threads that work on the same row; this one is `lane` of `lanes`
  int lane, lanes;
};

// Splits the n elements from p on into 16-byte vectors and the single elements at both ends.
template <class T> struct Split {
  static constexpr int kCount = Vec<T>::kCount;
  int head, vectors, n;
  __device__ __forceinline__ Split(const T *p, int n_)
      : head(min(n_, (kCount - misalignment(p)) % kCount)), vectors((n_ - head) / kCount), n(n_) {}
  __device__ __forceinline__ int edges() const { return n - vectors * kCount; }
  // The index of the e-th element that belongs to no vector.
  __device__ __forceinline__ int edge(int e) const { return e < head ? e : e + vectors * kCount; }
};

// The elements of shared memory for n elements of a row. If rows are not aligned, it includes room
// for the shift that keeps their misalignment.
template <class T> constexpr int tile_pitch(int n, bool aligned) {
  constexpr int kCount = Vec<T>::kCount;
  return (n + kCount - 1) / kCount * kCount + (aligned ? 0 : kCount);
}

template <class T> struct Tile {
  T *shared;   // tile_pitch() elements, 16-byte aligned
  const T *at; // the row in global memory
  int n;

  __device__ __forceinline__ T *begin() const { return shared + misalignment(at); }

  // Loads the vector that a lane copies. Returns false if it has none. A group has a lane for each
  // vector.
  __device__ __forceinline__ bool fetch(ThreadGroup t, Vec<T> &v) const {
    const Split<T> s(at, n);
    if (t.lane < s.vectors) v = load_vec(at + s.head + t.lane * Vec<T>::kCount);
    return t.lane < s.vectors;
  }
  __device__ __forceinline__ void keep(ThreadGroup t, Vec<T> v) const {
    const Split<T> s(at, n);
    *reinterpret_cast<uint4 *>(begin() + s.head + t.lane * Vec<T>::kCount) = v.raw;
  }
  __device__ __forceinline__ void copy_edges(ThreadGroup t) const {
    const Split<T> s(at, n);
#pragma unroll 1 // a few elements at most
    for (int e = t.lane; e < s.edges(); e += t.lanes) begin()[s.edge(e)] = load(at + s.edge(e));
  }
};

// Reads Vec<T>::kCount elements of shared memory from p on, at any alignment.
template <class T> __device__ __forceinline__ Vec<T> gather(const T *p) {
  Vec<T> v;
  if (misalignment(p) == 0) {
    v.raw = *reinterpret_cast<const uint4 *>(p);
  } else {
#pragma unroll
    for (int i = 0; i < Vec<T>::kCount; ++i) v.at[i] = p[i];
  }
  return v;
}

__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double times(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float plus(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double plus(double a, double b) { return __dadd_rn(a, b); }

// fl(fl(own*a) + fl(other*b)), never fused, so that every backend gives the same bits. A term with
// a coefficient of exactly 0 is absent, so that 0 * inf does not give NaN.
template <class A> struct Coefficients {
  A own, other;
  // Whether every a stays as it is.
  __device__ __forceinline__ bool keep() const { return own == 1 && other == 0; }
  // In the adjoint, own + other need not be 1. If one term is absent, the other still has its
  // coefficient.
  template <class T> __device__ __forceinline__ T operator()(T a, T b) const {
    if (other == 0) return alone(own, a);
    if (own == 0) return alone(other, b);
    return both(a, b);
  }
  // Only for other = 1 - own. Takes fewer registers.
  template <class T> __device__ __forceinline__ T forward(T a, T b) const {
    if (other == 0) return a;
    if (own == 0) return b;
    return both(a, b);
  }
  template <class T> __device__ __forceinline__ T both(T a, T b) const {
    return narrow<T>(plus(times(own, widen(a)), times(other, widen(b))));
  }
  template <class T> static __device__ __forceinline__ T alone(A c, T v) { // c=1 keeps NaN bits
    return c == 1 ? v : narrow<T>(c == 0 ? A(0) : times(c, widen(v)));
  }
};

// out[0..n) = c(own, other), both in shared memory at any alignment.
template <class T>
__device__ __forceinline__ void mix_tile(T *out, const T *own, const T *other, int n,
                                         Coefficients<Acc<T>> c, ThreadGroup t) {
  const Split<T> s(out, n);
#pragma unroll 1 // a group has a lane for each vector
  for (int k = t.lane; k < s.vectors; k += t.lanes) {
    const int at = s.head + k * Vec<T>::kCount;
    const Vec<T> a = gather(own + at), b = gather(other + at);
    Vec<T> y;
#pragma unroll
    for (int i = 0; i < Vec<T>::kCount; ++i) y.at[i] = c(a.at[i], b.at[i]);
    store_vec(out + at, y);
  }
#pragma unroll 1 // a few elements at most
  for (int e = t.lane; e < s.edges(); e += t.lanes)
    store(out + s.edge(e), c(own[s.edge(e)], other[s.edge(e)]));
}

template <class T> __device__ __forceinline__ void poison_tile(T *out, int n, ThreadGroup t) {
#pragma unroll 1 // rare
  for (int i = t.lane; i < n; i += t.lanes) store(out + i, not_a_number<T>());
}

} // namespace mmix
