// The permutation as the kernels use it: next[i] is the row that row i is mixed with, or kBad. It
// is built on the device, from perm for the forward and from its inverse for the adjoint. A row is
// bad, and becomes NaN, if its entry is out of range or if another row has the same entry. The
// other rows form disjoint cycles and paths, so no walk along next can hang.
#pragma once
#include "cuda/kernels/memory.cuh"

namespace mmix {

__host__ __device__ constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }

constexpr int kUnclaimed = -1, kContested = -2, kBad = -1;

// The rows of one thread of `size` threads: rank, rank + size, ...
struct Share {
  int64_t rank, size;
};
__device__ __forceinline__ Share block_share() { return {threadIdx.x, blockDim.x}; }
__device__ __forceinline__ Share grid_share() {
  return {int64_t{blockIdx.x} * blockDim.x + threadIdx.x, int64_t{gridDim.x} * blockDim.x};
}

// Sets user[j] to the row whose perm entry is j, to kContested if there are several, and leaves it
// kUnclaimed if there is none. The result does not depend on the order of the threads. Sets next[i]
// to perm[i], or to kBad if that is out of range.
__device__ __forceinline__ void claim_rows(const int64_t *perm, int batch, int *user, int *next,
                                           Share t) {
  for (int64_t i = t.rank; i < batch; i += t.size) {
    const int64_t j = load(perm + i);
    const bool in_range = j >= 0 && j < batch;
    store(next + i, in_range ? static_cast<int>(j) : kBad);
    if (in_range && atomicCAS(user + j, kUnclaimed, static_cast<int>(i)) != kUnclaimed)
      atomicExch(user + j, kContested);
  }
}

// Sets next[i] to perm[i] or, in the adjoint, to the row whose perm entry is i; to kBad if no row
// or several rows have that entry.
__device__ __forceinline__ void link_rows(int batch, const int *user, int *next, bool adjoint,
                                          Share t) {
  for (int64_t i = t.rank; i < batch; i += t.size) {
    const int j = load(next + i), behind = load(user + i);
    const bool ahead = j >= 0 && load(user + j) == i;
    store(next + i, adjoint ? max(behind, kBad) : ahead ? j : kBad);
  }
}

// Walks begin at cut rows, so that warps share long cycles, and at the rows marked here: the first
// row of a path, and the smallest row of a cycle that has no cut row.
struct Cut { // cut rows: the multiples of mask + 1, a power of two
  int mask;
  __device__ bool operator()(int row) const { return (row & mask) == 0; }
  __host__ __device__ int step() const { return mask + 1; }
  __host__ __device__ int count(int batch) const { return batch / step() + ((batch & mask) != 0); }
};
__device__ __forceinline__ void mark_starts(const int64_t *perm, int batch, const int *next,
                                            int *user_then_start, bool adjoint, Cut cut, Share t) {
  for (int64_t i = t.rank; i < batch; i += t.size) {
    bool start = false;
    if (!cut(static_cast<int>(i))) {
      // Whether a row leads to i. In the forward that is user[i], in the adjoint perm[i].
      bool led = load(user_then_start + i) >= 0;
      if (adjoint) {
        const int64_t j = load(perm + i);
        led = j >= 0 && j < batch && load(next + j) == i;
      }
      start = !led;
      if (led) {
        int row = load(next + i);
        while (row > i && !cut(row)) row = load(next + row);
        start = row == i;
      }
    }
    store(user_then_start + i, start ? 1 : 0);
  }
}

// λ of each row, float32 or float64, 0-dim (stride 0) or one for each row.
struct LamRef {
  const void *data;
  bool wide;
  int64_t stride;
  template <class A> __device__ __forceinline__ A own(int64_t row) const {
    return wide ? static_cast<A>(load(static_cast<const double *>(data) + row * stride))
                : static_cast<A>(load(static_cast<const float *>(data) + row * stride));
  }
};

// Builds next of a block in shared memory. `user` is scratch that may be reused after the call.
__device__ __forceinline__ void build_next(const int64_t *perm, int batch, int *user, int *next,
                                           bool adjoint) {
  const Share t = block_share();
  for (int64_t i = t.rank; i < batch; i += t.size) user[i] = kUnclaimed;
  __syncthreads(); // user must be filled before rows are claimed
  claim_rows(perm, batch, user, next, t);
  __syncthreads(); // link_rows reads claims of other threads
  link_rows(batch, user, next, adjoint, t);
  __syncthreads(); // user is free, next is complete
}

} // namespace mmix
