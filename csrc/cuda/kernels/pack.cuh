// Some elements of any dtype that a thread moves at once: the other vectors have 16 bytes.
#pragma once
#include "cuda/kernels/vectors.cuh"
#include <type_traits>

namespace mmix {

// A number of elements that are moved at once, 16 bytes at a time if there are more.
template <class V, int N> union Pack {
  static constexpr int kBytes = N * sizeof(V), kAccess = kBytes < 16 ? kBytes : 16;
  using Raw = std::conditional_t<
      kAccess == 16, uint4,
      std::conditional_t<kAccess == 8, uint2,
                         std::conditional_t<kAccess == 4, unsigned,
                                            std::conditional_t<kAccess == 2, uint16_t, uint8_t>>>>;
  Raw raw[kBytes / kAccess];
  V at[N];
};
template <class V, int N> __device__ __forceinline__ void load_pack(const V *p, Pack<V, N> &v) {
#pragma unroll
  for (int i = 0; i < Pack<V, N>::kBytes / Pack<V, N>::kAccess; ++i)
    v.raw[i] = load(reinterpret_cast<const typename Pack<V, N>::Raw *>(p) + i);
}
template <class V, int N> __device__ __forceinline__ void store_pack(V *p, const Pack<V, N> &v) {
#pragma unroll
  for (int i = 0; i < Pack<V, N>::kBytes / Pack<V, N>::kAccess; ++i) {
    auto *to = reinterpret_cast<typename Pack<V, N>::Raw *>(p) + i;
    if constexpr (Pack<V, N>::kAccess >= 8)
      __stwb(MMIX_GLOBAL_WRITE(to), v.raw[i]); // see store_vec()
    else
      store(to, v.raw[i]);
  }
}

__device__ __forceinline__ float widen(uint8_t v) { return static_cast<float>(v); }
// Loads and widens elements of any dtype that a target may have.
template <class Real, class V, int N>
__device__ __forceinline__ void load_as(const V *p, Real (&v)[N]) {
  Pack<V, N> pack;
  load_pack(p, pack);
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = static_cast<Real>(widen(pack.at[i]));
}

// Half-precision elements are converted in pairs.
template <class T, int N>
__device__ __forceinline__ void narrow_all(const Acc<T> (&v)[N], Pack<T, N> &to) {
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    unsigned *words = reinterpret_cast<unsigned *>(to.at);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) words[i] = narrow_pair<T>(v[2 * i], v[2 * i + 1]);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to.at[i] = narrow<T>(v[i]);
  }
}

} // namespace mmix
