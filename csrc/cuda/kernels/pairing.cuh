// The permutation as the kernels use it: the partner of row i is the row that it is mixed with. A
// row is bad, and becomes NaN, if its entry of perm is out of range or if another row has the same
// entry.
#pragma once
#include "cuda/kernels/memory.cuh"

namespace mmix {

__host__ __device__ constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }

constexpr int kBad = -1;
// Tables in shared memory take whole lines of 128 bytes, so that what is behind them is aligned.
constexpr int kLineWords = 32;

// The rows of one thread of `size` threads: rank, rank + size, ... A batch has at most 2^30 rows.
struct Share {
  int rank, size;
};
__device__ __forceinline__ Share block_share() {
  return {static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)};
}
__device__ __forceinline__ Share grid_share() {
  return {static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x),
          static_cast<int>(gridDim.x * blockDim.x)};
}

// For each row two bits: whether an entry of perm names it, and whether several do. One word more
// tells whether perm is no permutation.
struct Claims {
  unsigned *once, *twice;
  int batch;
  static __host__ __device__ constexpr int words_of_bits(int batch) {
    return static_cast<int>((static_cast<unsigned>(batch) + 31) / 32);
  }
  static __host__ __device__ constexpr int words(int batch) {
    return round_up(2 * words_of_bits(batch) + 1, kLineWords);
  }
  static __host__ __device__ constexpr int64_t bytes(int batch) {
    return int64_t{4} * words(batch);
  }
  __device__ __forceinline__ Claims(unsigned *memory, int batch_)
      : once(memory), twice(memory + words_of_bits(batch_)), batch(batch_) {}
  __device__ __forceinline__ unsigned *irregular() const { return twice + words_of_bits(batch); }
  // Whether every row is the partner of one row. Then nothing else needs to be asked.
  __device__ __forceinline__ bool regular() const { return load(irregular()) == 0; }

  static __device__ __forceinline__ bool has(const unsigned *bits, int row) {
    const auto at = static_cast<unsigned>(row); // divisions by shifts
    return load(bits + at / 32) >> (at % 32) & 1;
  }
  // An entry of perm as a row, or kBad.
  __device__ __forceinline__ int in_range(int64_t entry) const {
    // Unsigned, so that the upper half is only compared with 0.
    return static_cast<uint64_t>(entry) < static_cast<unsigned>(batch) ? static_cast<int>(entry)
                                                                       : kBad;
  }
  __device__ __forceinline__ bool contested(int row) const { return has(twice, row); }
  // Whether row is the partner of exactly one row.
  __device__ __forceinline__ bool named(int row) const { return has(once, row) && !contested(row); }
  // The partner that an entry of perm gives, or kBad.
  __device__ __forceinline__ int partner(int64_t entry) const {
    const int row = in_range(entry);
    return row >= 0 && !contested(row) ? row : kBad;
  }
  __device__ __forceinline__ void clear(Share t) const {
#pragma unroll 1
    for (int i = t.rank; i < words(batch); i += t.size) store(once + i, 0u);
  }
  // All bits must be 0 before. The result does not depend on the order of the threads. Unless it is
  // null, entries[i] becomes perm[i], or kBad.
  __device__ __forceinline__ void mark(const int64_t *perm, Share t, int *entries) const {
    constexpr int kAtOnce = 4; // loads in flight
#pragma unroll 1
    for (int i = t.rank; i < batch; i += kAtOnce * t.size) {
      int named[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int row = i + u * t.size;
        named[u] = row < batch ? in_range(load(perm + row)) : kBad;
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int row = i + u * t.size;
        if (entries && row < batch) entries[row] = named[u];
        if (row >= batch) continue;
        const auto at = static_cast<unsigned>(named[u]);
        const unsigned bit = 1u << (at % 32);
        if (named[u] >= 0 && !(atomicOr(once + at / 32, bit) & bit)) continue;
        if (named[u] >= 0) atomicOr(twice + at / 32, bit);
        atomicOr(irregular(), 1u);
      }
    }
  }
};

// perm as a kernel gets it. The claims are in shared memory, of each block, or in global memory for
// a large batch.
struct Pairing {
  const int64_t *perm;
  int batch;
  unsigned *claims; // or null
};

// Where the claims are: in global memory, or at the start of `memory`, which moves on.
__device__ __forceinline__ Claims place_claims(const Pairing &p, unsigned *&memory) {
  if (p.claims != nullptr) return {p.claims, p.batch};
  const Claims claims(memory, p.batch);
  memory += Claims::words(p.batch);
  return claims;
}
// All threads of a block must call it before any of them asks.
__device__ __forceinline__ void mark_claims(const Pairing &p, const Claims &claims,
                                            int *entries = nullptr) {
  if (p.claims != nullptr) return; // an earlier launch has marked them
  claims.clear(block_share());
  __syncthreads(); // no bit is set before all are 0
  claims.mark(p.perm, block_share(), entries);
  __syncthreads(); // every thread asks for rows that others have marked
}
__device__ __forceinline__ Claims claim_rows(const Pairing &p, unsigned *&memory) {
  const Claims claims = place_claims(p, memory);
  mark_claims(p, claims);
  return claims;
}

// Marks the claims in shared memory, and sets next[i] to the partner of row i, of the forward or of
// the adjoint, where perm is inverted. The caller needs a barrier before a thread reads what others
// have set.
__device__ __forceinline__ void link_rows(const Pairing &p, const Claims &claims, bool adjoint,
                                          int *next) {
  const Share t = block_share();
  if (!adjoint) {
    mark_claims(p, claims, next);
    if (claims.regular()) return;
#pragma unroll 1
    for (int i = t.rank; i < p.batch; i += t.size) // what this thread has read of perm
      if (next[i] >= 0 && claims.contested(next[i])) next[i] = kBad;
    return;
  }
  mark_claims(p, claims);
#pragma unroll 1
  for (int i = t.rank; i < p.batch; i += t.size) // others are written below
    if (!claims.named(i)) next[i] = kBad;
#pragma unroll 1
  for (int i = t.rank; i < p.batch; i += t.size) {
    const int own = claims.partner(load(p.perm + i));
    if (own >= 0) next[own] = i;
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

} // namespace mmix
