// The memory accesses of all kernels, and the element types. Includes no torch header: nvcc
// compiles the kernels for a GPU, g++ for the emulator of tests/cuda_emulation. The emulator checks
// and counts every access that goes through load() and store(). Kernels access global memory only
// through these, except for atomics.
#pragma once
#include "dtypes.h"
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>

#ifndef MMIX_EMULATED
#define MMIX_GLOBAL_READ(p) (p)
#define MMIX_GLOBAL_WRITE(p) (p)
#define MMIX_GLOBAL_SHARED(p) (p)
#define MMIX_DYNAMIC_SHARED(T) ::mmix::cuda_shared<T>()
#endif

namespace mmix {

#ifndef MMIX_EMULATED
template <class T> __device__ __forceinline__ T *cuda_shared() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T *>(bytes);
}
#endif

// All dynamic shared memory of the block, 16-byte aligned.
template <class T> __device__ __forceinline__ T *dynamic_shared() { return MMIX_DYNAMIC_SHARED(T); }

template <class T> __device__ __forceinline__ T load(const T *p) { return *MMIX_GLOBAL_READ(p); }
template <class T> __device__ __forceinline__ void store(T *p, T v) { *MMIX_GLOBAL_WRITE(p) = v; }

// Accesses to what the blocks of one launch tell each other. They go to the L2 cache, which all
// blocks share. Fences order them (see last_block.cuh).
__device__ __forceinline__ double load_shared(const double *p) {
  return __ldcg(MMIX_GLOBAL_SHARED(p));
}
__device__ __forceinline__ void store_shared(double *p, double v) {
  __stcg(MMIX_GLOBAL_SHARED(p), v);
}

__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }

// Rounds to nearest even, once.
template <class T> __device__ __forceinline__ T narrow(Acc<T> v);
template <> __device__ __forceinline__ __half narrow<__half>(float v) { return __float2half_rn(v); }
template <> __device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}
template <> __device__ __forceinline__ float narrow<float>(float v) { return v; }
template <> __device__ __forceinline__ double narrow<double>(double v) { return v; }

template <class T> __device__ __forceinline__ T not_a_number() {
  return narrow<T>(static_cast<Acc<T>>(__int_as_float(0x7fc00000)));
}

// Elements of a kernel that moves them, but does no arithmetic.
template <class T> constexpr bool kOnlyMoved = sizeof(T) == 1;

// 16 bytes of elements: the widest access of a thread. The address must be a multiple of 16.
template <class T> union Vec {
  static constexpr int kCount = 16 / sizeof(T);
  uint4 raw;
  T at[kCount];
};
template <class T> __device__ __forceinline__ Vec<T> load_vec(const T *p) {
  Vec<T> v;
  v.raw = load(reinterpret_cast<const uint4 *>(p));
  return v;
}
// An intrinsic, because nvcc splits the store of a vector whose elements come from different
// branches.
template <class T> __device__ __forceinline__ void store_vec(T *p, Vec<T> v) {
  __stwb(MMIX_GLOBAL_WRITE(reinterpret_cast<uint4 *>(p)), v.raw);
}
__device__ __forceinline__ void store_vec(float *p,
                                          Vec<float> v) { // without a move for each element
  __stwb(MMIX_GLOBAL_WRITE(reinterpret_cast<float4 *>(p)),
         make_float4(v.at[0], v.at[1], v.at[2], v.at[3]));
}
// Starts the copy of a vector into shared memory; wait_copies() waits for all copies of the thread.
// No register holds it on the way, and the L1 cache does not keep what is read once. Before sm_80
// it is a load and a store.
template <class T> __device__ __forceinline__ void copy_vec(uint4 *shared, const T *p) {
  __pipeline_memcpy_async(shared, MMIX_GLOBAL_READ(reinterpret_cast<const uint4 *>(p)),
                          sizeof(uint4));
}
// The same for one element; its own load and store if it has fewer than 4 bytes.
template <class T> __device__ __forceinline__ void copy_one(T *shared, const T *p) {
  if constexpr (sizeof(T) >= 4)
    __pipeline_memcpy_async(shared, MMIX_GLOBAL_READ(p), sizeof(T));
  else
    *shared = load(p);
}
__device__ __forceinline__ void wait_copies() {
  __pipeline_commit();
  __pipeline_wait_prior(0);
}

// Elements between p and the 16-byte boundary below it.
template <class T> __device__ __forceinline__ int misalignment(const T *p) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(p) % 16 / sizeof(T));
}

} // namespace mmix
