// Blocks of a cluster (sm_90 and later) run at the same time. They can wait for each other and read
// each other's shared memory. On older architectures these functions do nothing: the host launches
// no cluster there.
#pragma once
#include <cuda_runtime.h>

#ifndef MMIX_EMULATED
#define MMIX_CLUSTER_BARRIER() ::mmix::cuda_cluster_barrier()
#define MMIX_CLUSTER_SHARED(T, p, rank) ::mmix::cuda_cluster_shared<T>(p, rank)

namespace mmix {

// Every thread of every block of the cluster must call it. Writes before it are visible after it.
__device__ __forceinline__ void cuda_cluster_barrier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\n\t"
               "barrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
#endif
}

template <class T> __device__ __forceinline__ T *cuda_cluster_shared(T *mine, unsigned rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  T *theirs;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(mine), "r"(rank));
  return theirs;
#else
  return mine;
#endif
}

} // namespace mmix
#endif
