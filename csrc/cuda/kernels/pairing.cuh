// The permutation as the kernels use it: the partner of row i is the row that it is mixed with. A
// row is bad, and becomes NaN, if its entry of perm is out of range or if another row has the same
// entry. The other rows form disjoint cycles and paths, so no walk along partners can hang.
#pragma once
#include "cuda/kernels/memory.cuh"

namespace mmix {

__host__ __device__ constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }

constexpr int kBad = -1, kNoRow = -2147483647 - 1;

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

// For each row two bits: whether an entry of perm names it, and whether several do.
struct Claims {
  unsigned *once, *twice;
  int batch;
  static __host__ __device__ constexpr int words(int batch) { // keeps 16-byte alignment
    return static_cast<int>((static_cast<unsigned>(batch) + 127) / 128 * 4);
  }
  static __host__ __device__ constexpr int64_t bytes(int batch) {
    return int64_t{8} * words(batch);
  }
  __device__ __forceinline__ Claims(unsigned *memory, int batch_)
      : once(memory), twice(memory + words(batch_)), batch(batch_) {}

  static __device__ __forceinline__ bool has(const unsigned *bits, int row) {
    const auto at = static_cast<unsigned>(row); // divisions by shifts
    return load(bits + at / 32) >> (at % 32) & 1;
  }
  // An entry of perm as a row, or kBad.
  __device__ __forceinline__ int in_range(int64_t entry) const {
    return static_cast<uint64_t>(entry) < static_cast<uint64_t>(batch) ? static_cast<int>(entry)
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
  // All bits must be 0 before. The result does not depend on the order of the threads. Unless it is
  // null, entries[i] becomes ~perm[i], or kNoRow: negative, as if bad, until link_forward() has
  // looked at the claims, so that no walk hangs on it.
  __device__ __forceinline__ void mark(const int64_t *perm, Share t, int *entries) const {
#pragma unroll 1
    for (int i = t.rank; i < batch; i += t.size) {
      const int j = in_range(load(perm + i));
      if (entries) entries[i] = j < 0 ? kNoRow : ~j;
      if (j < 0) continue;
      const auto at = static_cast<unsigned>(j);
      const unsigned bit = 1u << (at % 32);
      if (atomicOr(once + at / 32, bit) & bit) atomicOr(twice + at / 32, bit);
    }
  }
};

// perm as a kernel gets it. The claims are in global memory, marked by a launch before, if the
// bits of that many rows do not fit in shared memory.
struct Pairing {
  const int64_t *perm;
  int batch;
  unsigned *claims; // or null
};

// Where the claims are: in global memory, or at the start of `memory`, which moves on.
__device__ __forceinline__ Claims place_claims(const Pairing &p, unsigned *&memory) {
  if (p.claims != nullptr) return {p.claims, p.batch};
  const Claims claims(memory, p.batch);
  memory += 2 * Claims::words(p.batch);
  return claims;
}
// All threads of a block must call it before any of them asks.
__device__ __forceinline__ void mark_claims(const Pairing &p, const Claims &claims,
                                            int *entries = nullptr) {
  if (p.claims != nullptr) return; // an earlier launch has marked them
  const int words = 2 * Claims::words(p.batch);
#pragma unroll 1
  for (int i = threadIdx.x; i < words; i += blockDim.x) claims.once[i] = 0;
  __syncthreads(); // no bit is set before all are 0
  claims.mark(p.perm, block_share(), entries);
  __syncthreads(); // every thread asks for rows that others have marked
}
__device__ __forceinline__ Claims claim_rows(const Pairing &p, unsigned *&memory) {
  const Claims claims = place_claims(p, memory);
  mark_claims(p, claims);
  return claims;
}

// Marks the claims, and sets next[i] to the partner of row i.
__device__ __forceinline__ void link_forward(const Pairing &p, const Claims &claims, int *next) {
  mark_claims(p, claims, next);
  const Share t = block_share();
#pragma unroll 1
  for (int i = t.rank; i < p.batch; i += t.size) { // what this thread has read of perm
    const int j = p.claims == nullptr ? ~next[i] : claims.in_range(load(p.perm + i));
    next[i] = j >= 0 && j < p.batch && !claims.contested(j) ? j : kBad; // ~kNoRow is no row
  }
  __syncthreads(); // next is complete
}

// The same for rows first, first + 1, ... of the forward, or of the adjoint, where perm is
// inverted. The caller needs a barrier before a thread reads what others have set.
__device__ __forceinline__ void link_rows(const Pairing &p, const Claims &claims, int first,
                                          int rows, bool adjoint, int *next) {
  if (!adjoint && rows == p.batch) return link_forward(p, claims, next);
  mark_claims(p, claims);
  const Share t = block_share();
  if (!adjoint) {
#pragma unroll 1
    for (int i = t.rank; i < rows; i += t.size) next[i] = claims.partner(load(p.perm + first + i));
  } else {
#pragma unroll 1
    for (int i = t.rank; i < rows; i += t.size) // others are written below
      if (!claims.named(first + i)) next[i] = kBad;
#pragma unroll 1
    for (int i = t.rank; i < p.batch; i += t.size) {
      const int own = claims.partner(load(p.perm + i)) - first;
      if (own >= 0 && own < rows) next[own] = i;
    }
  }
}

// Walks begin at cut rows, so that many of them share a long cycle, and at the rows that start()
// gives: the first row of a path, and the smallest row of a cycle that has no cut row.
struct Cut { // cut rows: the multiples of mask + 1, a power of two
  int mask;
  __device__ bool operator()(int row) const { return (row & mask) == 0; }
  __host__ __device__ int step() const { return mask + 1; }
  __host__ __device__ int count(int batch) const { return batch / step() + ((batch & mask) != 0); }
};

// The partners of the forward, as walks follow them: from a table, or from perm where that does not
// fit in shared memory.
struct Links {
  const int64_t *perm;
  Claims claims;
  const int *table; // or null
  __device__ __forceinline__ int operator()(int row) const {
    return table ? table[row] : claims.partner(load(perm + row));
  }
  __device__ __forceinline__ bool starts(int row, Cut cut) const {
    if (cut(row)) return false;
    if (!claims.named(row)) return true;
    int next = (*this)(row);
    while (next > row && !cut(next)) next = (*this)(next);
    return next == row;
  }
};

// Takes the links from the start of `memory`, and moves that on.
__device__ __forceinline__ Links link_all(const Pairing &p, bool table, unsigned *&memory) {
  const Claims claims = place_claims(p, memory);
  int *next = table ? reinterpret_cast<int *>(memory) : nullptr;
  if (table) {
    link_forward(p, claims, next);
    memory += round_up(p.batch, 4);
  } else {
    mark_claims(p, claims);
  }
  return {p.perm, claims, next};
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
