// CUDA C++ on the CPU: g++ compiles csrc/cuda/kernels/*.cuh and csrc/cuda/*.cu unchanged against
// this.
//
// How it is used
//   shims/ comes first on the include path: <cuda_runtime.h>, <cuda_fp16.h> and <cuda_bf16.h> then
//   mean this header, and torch's DeviceGuard does nothing. No CUDA toolkit is needed.
//   emulation.py compiles every csrc/cuda/*.cu this way, as the op namespace
//   `mmix_fast_emulated` on CPU tensors, and offers
//     emulation.load()                  the module; torch.ops.mmix_fast_emulated.* exist after it
//     module.set_seed(n)                threads and blocks run in the random order of this seed
//     module.disable_barrier("mix.cuh", 42)  the barrier on that line does nothing; "", 0 ends it
//     module.barriers()                 {(file, line)} of every barrier that ran
//     module.kernels()                  the demangled name of every kernel instantiation that ran
//     module.launches()                 the kernels launched since it was last called, in order
//     module.count_traffic(True)        count from here on; traffic() -> {data_ptr: Traffic}
//     module.only_plan(True)            launches are noted, and not run, from here on
//     module.set_device(sms, shared)    what cudaDeviceGetAttribute tells the launch heuristics
//
// What kernels must do
//   Reach global memory only by the functions of csrc/cuda/kernels/memory.cuh. Kernels are given
//   fake pointers: a direct access is a segmentation fault. Each access is checked for bounds, for
//   alignment, for writing to a const tensor, and for races between blocks (the same element
//   touched by two blocks of one launch, one of them writing, without an atomic).
//   Dynamic shared memory comes from dynamic_shared<T>() of memory.cuh: it starts as NaN in every
//   block and a guard page lies behind it. Static __shared__ variables work too.
//   A launch is cudaLaunchKernelEx, with the real one's signature; <<<>>> is not C++.
//   Kernels live in a named namespace, so that dladdr finds their names.
//
// Engines
//   Fibers (the default): each CUDA thread is a fiber on one OS thread, and runs until its next
//   barrier or warp operation. A barrier that not all threads reach is an error naming the line.
//   OS threads (-DMMIX_EMULATE_THREADS -fsanitize=thread): each CUDA thread is one, so that
//   ThreadSanitizer sees a missing barrier. No traffic, no race check between blocks.
//   In both, blocks run one after another, except the blocks of a cluster (cluster.cuh) or of a
//   cooperative launch (grid.cuh), which run together.
//
// Add an intrinsic: a function or macro here, or in numeric.h if it is arithmetic.
#pragma once
#include "engine.h"
#include "numeric.h"
#include <cstring>
#include <type_traits>

#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static // blocks run one after another
#define __align__(n) alignas(n)

#define __syncthreads() emu::sync_block(__FILE__, __LINE__)
#define __syncwarp(...) emu::sync_warp(emu::mask_or_all(__VA_ARGS__), __FILE__, __LINE__)
#define __threadfence() __atomic_thread_fence(__ATOMIC_SEQ_CST)

// The hooks of csrc/cuda/kernels/memory.cuh and csrc/cuda/launch.h.
#define MMIX_GLOBAL_READ(p) emu::global((p), emu::Access::kRead)
#define MMIX_GLOBAL_WRITE(p) emu::global((p), emu::Access::kWrite)
#define MMIX_GLOBAL_SHARED(p) emu::global((p), emu::Access::kAtomic)
#define MMIX_DYNAMIC_SHARED(T) reinterpret_cast<T *>(emu::dynamic_shared())
#define MMIX_CLUSTER_BARRIER() emu::sync_cluster(__FILE__, __LINE__)
#define MMIX_GRID_BARRIER() emu::sync_cluster(__FILE__, __LINE__)
#define MMIX_CLUSTER_SHARED(T, p, rank) static_cast<T *>(emu::cluster_shared((p), (rank)))
#define MMIX_DEVICE_POINTER(p, bytes, writable) emu::device_pointer((p), (bytes), (writable))
#define MMIX_DEVICE_NUMBER(index) emu::device_number

namespace emu {

inline unsigned mask_or_all(unsigned mask = 0xffffffffu) { return mask; }

template <class T> uint64_t to_bits(T v) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof(T));
  return bits;
}
template <class T> T from_bits(uint64_t bits) {
  T v;
  std::memcpy(&v, &bits, sizeof(T));
  return v;
}
template <class T> T shuffle(unsigned mask, T v, int lane, int width) {
  const int base = int(lane_id()) / width * width;
  return from_bits<T>(exchange(mask, to_bits(v), base + (lane & (width - 1))));
}
template <class T, class Op> T reduce(unsigned mask, T v, Op op) {
  for (int step = 1; step < 32; step *= 2) { // a lane outside the mask gives no value
    const unsigned other = lane_id() ^ step;
    const T w = from_bits<T>(exchange(mask, to_bits(v), (mask >> other & 1) ? other : lane_id()));
    if (mask >> other & 1) v = op(v, w);
  }
  return v;
}

} // namespace emu

template <class T> T __shfl_sync(unsigned mask, T v, int lane, int width = 32) {
  return emu::shuffle(mask, v, lane, width);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int m, int width = 32) {
  const int lane = int(emu::lane_id()), target = lane ^ m;
  return emu::shuffle(mask, v, target / width > lane / width ? lane : target, width);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned d, int width = 32) {
  const int lane = int(emu::lane_id());
  return emu::shuffle(mask, v, lane % width + int(d) < width ? lane + int(d) : lane, width);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned d, int width = 32) {
  const int lane = int(emu::lane_id());
  return emu::shuffle(mask, v, lane % width >= int(d) ? lane - int(d) : lane, width);
}
inline unsigned __ballot_sync(unsigned mask, int vote) { return emu::ballot(mask, vote != 0); }
inline int __any_sync(unsigned mask, int vote) { return emu::ballot(mask, vote != 0) != 0; }
inline int __all_sync(unsigned mask, int vote) { return emu::ballot(mask, vote == 0) == 0; }

#define __syncthreads_or(vote) emu::vote_block((vote), __FILE__, __LINE__, 0)
#define __syncthreads_and(vote) emu::vote_block((vote), __FILE__, __LINE__, 1)
#define __syncthreads_count(vote) emu::vote_block((vote), __FILE__, __LINE__, 2)

// Atomics on global (false) or shared pointers.
template <class T> T atomicAdd(T *p, T v) {
  static_assert(std::is_integral_v<T>, "atomics on floats are not deterministic");
  return __atomic_fetch_add(emu::global(p, emu::Access::kAtomic), v, __ATOMIC_RELAXED);
}
template <class T> T atomicOr(T *p, T v) {
  return __atomic_fetch_or(emu::global(p, emu::Access::kAtomic), v, __ATOMIC_RELAXED);
}
template <class T> T atomicExch(T *p, T v) {
  return __atomic_exchange_n(emu::global(p, emu::Access::kAtomic), v, __ATOMIC_RELAXED);
}
template <class T> T atomicCAS(T *p, T expected, T v) {
  __atomic_compare_exchange_n(emu::global(p, emu::Access::kAtomic), &expected, v, false,
                              __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
template <class T, class Better> T emulate_pick(T *p, T v, Better better) {
  T *q = emu::global(p, emu::Access::kAtomic), old = __atomic_load_n(q, __ATOMIC_RELAXED);
  while (better(v, old) &&
         !__atomic_compare_exchange_n(q, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
template <class T> T atomicMin(T *p, T v) {
  return emulate_pick(p, v, [](T a, T b) { return a < b; });
}
template <class T> T atomicMax(T *p, T v) {
  return emulate_pick(p, v, [](T a, T b) { return a > b; });
}
inline unsigned atomicInc(unsigned *p, unsigned limit) {
  unsigned *q = emu::global(p, emu::Access::kAtomic), old = __atomic_load_n(q, __ATOMIC_ACQUIRE);
  while (!__atomic_compare_exchange_n(q, &old, old >= limit ? 0 : old + 1, false, __ATOMIC_ACQ_REL,
                                      __ATOMIC_ACQUIRE)) {
  }
  return old;
}

// The part of the runtime that csrc/cuda uses.
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
typedef struct CUstream_st *cudaStream_t;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxRegistersPerMultiprocessor = 82,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrMaxBlocksPerMultiprocessor = 106,
  cudaDevAttrReservedSharedMemoryPerBlock = 111,
  cudaDevAttrClusterLaunch = 120
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaLaunchAttributeID {
  cudaLaunchAttributeCooperative = 2,
  cudaLaunchAttributeClusterDimension = 4
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
    int cooperative;
  } val;
};
struct cudaFuncAttributes {
  int ptxVersion, numRegs;
  size_t sharedSizeBytes;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute *attrs;
  unsigned numAttrs;
};
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char *cudaGetErrorString(cudaError_t e) { return e ? "invalid value" : "no error"; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
  const bool turing = emu::device_shared <= 64 * 1024; // T4; the others as an H100
  switch (attribute) {
  case cudaDevAttrMultiProcessorCount:
    return *value = emu::device_sms, cudaSuccess;
  case cudaDevAttrMaxSharedMemoryPerBlockOptin:
    return *value = emu::device_shared, cudaSuccess;
  case cudaDevAttrReservedSharedMemoryPerBlock:
    return *value = turing ? 0 : 1024, cudaSuccess;
  case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
    return *value = emu::device_shared + (turing ? 0 : 1024), cudaSuccess;
  case cudaDevAttrMaxRegistersPerMultiprocessor:
    return *value = 65536, cudaSuccess;
  case cudaDevAttrMaxThreadsPerMultiProcessor:
    return *value = turing ? 1024 : 2048, cudaSuccess;
  case cudaDevAttrMaxBlocksPerMultiprocessor:
    return *value = turing ? 16 : 32, cudaSuccess;
  case cudaDevAttrClusterLaunch:
    return *value = emu::device_clusters, cudaSuccess;
  }
  return cudaErrorInvalidValue;
}
// Kernels have as many registers as a block of 1024 threads may have.
template <class K> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, K *) {
  return *attributes = {90, 64, 0}, cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute, int bytes) {
  emu::allow_shared(kernel, bytes);
  return cudaSuccess;
}
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0 };
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus *status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
// After a launch that failed, another stream: a failed launch leaves its counters as they are.
inline cudaError_t cudaStreamGetId(cudaStream_t, unsigned long long *id) {
  return *id = emu::failed_launches, cudaSuccess;
}
namespace emu {
// Blocks that run at the same time: those of a cluster, or of a cooperative launch.
inline unsigned blocks_at_once(const cudaLaunchConfig_t &c) {
  if (c.numAttrs == 0) return 1;
  if (c.attrs[0].id == cudaLaunchAttributeCooperative) return c.gridDim.x;
  return c.attrs[0].val.clusterDim.x;
}
} // namespace emu
// The parameters of a kernel, laid out as a GPU gets them.
template <class... P> std::string parameter_block(const P &...p) {
  std::string block;
  const auto append = [&](const auto &v) {
    block.resize((block.size() + alignof(decltype(v)) - 1) / alignof(decltype(v)) *
                 alignof(decltype(v)));
    block.append(reinterpret_cast<const char *>(&v), sizeof(v));
  };
  (append(p), ...);
  return block;
}
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *c, void (*kernel)(P...), A &&...args) {
  emu::launch({reinterpret_cast<const void *>(kernel),
               {c->gridDim.x, c->gridDim.y, c->gridDim.z},
               {c->blockDim.x, c->blockDim.y, c->blockDim.z},
               emu::blocks_at_once(*c),
               c->dynamicSmemBytes,
               parameter_block<P...>(args...)},
              [&] { kernel(args...); });
  return cudaSuccess;
}
