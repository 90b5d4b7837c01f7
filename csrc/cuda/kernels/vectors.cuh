// Arithmetic on 16-byte vectors, for rows that start on 16-byte boundaries. Half-precision elements
// are converted in pairs: one instruction for two.
#pragma once
#include "cuda/kernels/tile.cuh"

namespace mmix {

// The two elements of a 32-bit word, the lower half first.
template <class T> __device__ __forceinline__ float2 widen_pair(unsigned word);
template <> __device__ __forceinline__ float2 widen_pair<__nv_bfloat16>(unsigned word) {
  // One instruction for each; of __bfloat1622float2 nvcc makes two for the upper one.
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}
template <> __device__ __forceinline__ float2 widen_pair<__half>(unsigned word) {
  return __half22float2(reinterpret_cast<const __half2 &>(word));
}
template <class T> __device__ __forceinline__ unsigned narrow_pair(float low, float high);
template <> __device__ __forceinline__ unsigned narrow_pair<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const unsigned &>(pair);
}
template <> __device__ __forceinline__ unsigned narrow_pair<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const unsigned &>(pair);
}

template <class T>
__device__ __forceinline__ unsigned mix_pair(unsigned a, unsigned b, Coefficients<float> c) {
  const float2 x = widen_pair<T>(a), y = widen_pair<T>(b);
  return narrow_pair<T>(plus(times(c.own, x.x), times(c.other, y.x)),
                        plus(times(c.own, x.y), times(c.other, y.y)));
}

// c.both() of each element: only where neither coefficient is 0.
template <class T>
__device__ __forceinline__ Vec<T> mix_both(Vec<T> a, Vec<T> b, Coefficients<Acc<T>> c) {
  Vec<T> y;
  if constexpr (sizeof(T) == 2) {
    y.raw.x = mix_pair<T>(a.raw.x, b.raw.x, c);
    y.raw.y = mix_pair<T>(a.raw.y, b.raw.y, c);
    y.raw.z = mix_pair<T>(a.raw.z, b.raw.z, c);
    y.raw.w = mix_pair<T>(a.raw.w, b.raw.w, c);
  } else {
#pragma unroll
    for (int i = 0; i < Vec<T>::kCount; ++i) y.at[i] = c.both(a.at[i], b.at[i]);
  }
  return y;
}

// c() of each element.
template <class T>
__device__ __forceinline__ Vec<T> mix_any(Vec<T> a, Vec<T> b, Coefficients<Acc<T>> c) {
  if (c.own != 0 && c.other != 0) return mix_both(a, b, c);
  Vec<T> y;
  const Vec<T> left = c.other == 0 ? a : b;
  const Acc<T> factor = c.other == 0 ? c.own : c.other;
#pragma unroll
  for (int i = 0; i < Vec<T>::kCount; ++i)
    y.at[i] = Coefficients<Acc<T>>::alone(factor, left.at[i]);
  return y;
}

// The elements of v where the mask has a bit, else those of own.
template <class T>
__device__ __forceinline__ Vec<T> select_elements(Vec<T> own, Vec<T> v, unsigned mask) {
  if constexpr (sizeof(T) == 1) { // word by word: 4 elements
    const auto select = [mask](unsigned a, unsigned b, int word) {
      // Bit k of four goes to bit 8k, then to all bits of byte k.
      const unsigned bytes = ((mask >> 4 * word & 15) * 0x204081 & 0x1010101) * 255;
      return (b & bytes) | (a & ~bytes);
    };
    v.raw.x = select(own.raw.x, v.raw.x, 0);
    v.raw.y = select(own.raw.y, v.raw.y, 1);
    v.raw.z = select(own.raw.z, v.raw.z, 2);
    v.raw.w = select(own.raw.w, v.raw.w, 3);
  } else {
#pragma unroll
    for (int i = 0; i < Vec<T>::kCount; ++i)
      if (!(mask >> i & 1)) v.at[i] = own.at[i];
  }
  return v;
}

template <class T> __device__ __forceinline__ Vec<T> vector_of_nan() {
  Vec<T> v;
#pragma unroll
  for (int i = 0; i < Vec<T>::kCount; ++i) v.at[i] = not_a_number<T>();
  return v;
}

} // namespace mmix
