// sample_mix: λ and the pairing of a batch, drawn from one key. Each thread computes its own
// results from the key, so the blocks need nothing from each other, and the grid changes no value.
#pragma once
#include "cuda/kernels/memory.cuh"
#include "cuda/kernels/shuffle.cuh"

namespace mmix {

constexpr int kSampleThreads = 256;
enum class Partners { kRandom, kFlip, kRoll, kDerangement };

struct SampleArgs {
  const int64_t *key; // two words
  int64_t *perm;
  float *lam;
  int batch, lams;
  Partners partners;
  double alpha;
  const double *alpha_tensor; // instead of alpha; null where alpha holds
  unsigned lam_blocks;        // the first blocks of the grid; the others write perm
  bool ranked;                // perm by pair_by_rank
  Grid grid;                  // else perm by Shuffle
};

// log(G) - log(d) for G ~ Gamma(alpha + 1), where d is the same for both samples of a λ. Marsaglia
// and Tsang, A simple method for generating gamma variables (2000). In float the difference of two
// such logs keeps λ's last bits, since log(d), which is larger, is not in them.
__device__ __forceinline__ float log_gamma(const Philox &draw, unsigned row, Stream stream,
                                           float alpha) {
  constexpr int kTurns = 64;      // one in 20 is rejected; a limit, so that a NaN alpha ends too
  constexpr float kNormal = 1e4f; // from this shape on, one in a million is rejected: none is here
  const float d = alpha + 2.0f / 3, c = 1 / (3 * sqrtf(d));
  float log_v = 0;
#pragma unroll 1
  for (unsigned turn = 0; turn < kTurns; ++turn) {
    const uint4 bits = draw(make_uint4(row, stream, turn, 0));
    const float x = sqrtf(-2 * logf(uniform(bits.x))) * cospif(2 * uniform(bits.y));
    const float t = c * x; // v = (1 + t)^3
    if (t <= -1) continue;
    log_v = 3 * log1pf(t);
    const float v_less_1 = t * (3 + t * (3 + t));
    if (d > kNormal || logf(uniform(bits.z)) < 0.5f * x * x + d * (log_v - v_less_1)) break;
  }
  return log_v;
}

// λ = G1 / (G1 + G2), with G ~ Gamma(alpha) in log space, since at a tiny alpha both underflow.
// Gamma(alpha) is Gamma(alpha + 1) * U^(1 / alpha).
__device__ __forceinline__ float sample_lam(const Philox &draw, unsigned row, double wide_alpha) {
  if (wide_alpha == 0) return 1;
  constexpr float kLeast = 0x1p-126f; // 0 would give NaN
  const float alpha = wide_alpha < kLeast ? kLeast : static_cast<float>(wide_alpha);
  const uint4 bits = draw(make_uint4(row, kExponentials, 0, 0));
  const float exponent = (logf(uniform(bits.y)) - logf(uniform(bits.x))) / alpha;
  const float first = log_gamma(draw, row, kFirstGamma, alpha);
  const float second = log_gamma(draw, row, kSecondGamma, alpha);
  return 1 / (1 + expf(exponent + second - first));
}

// Up to this size the pairing is the order of random keys. Each block makes all keys and ranks its
// rows among them. That is work for batch^2 comparisons, but they are spread over the GPU, and take
// less time than a sort in one block would.
constexpr int kMostRanked = 4096;
constexpr int kRankLanes = 8; // threads that share the comparisons of a row
constexpr int kRankedRows = kSampleThreads / kRankLanes; // of a block

// 52 random bits, then the row, which makes keys different and tells whose they are.
__device__ __forceinline__ uint64_t sort_key(unsigned high, unsigned low, unsigned row) {
  const uint64_t bits = uint64_t{high} << 32 | low;
  return bits / kMostRanked * kMostRanked + row;
}

// perm[row] is the rank of the row's key: a random permutation. With kCycle it is the row whose key
// comes before, and the last row for the first: a random cycle.
template <bool kCycle>
__device__ __forceinline__ void pair_by_rank(const SampleArgs &a, const Philox &draw, int block) {
  uint64_t *keys = dynamic_shared<uint64_t>(); // an even number of them
  for (int i = threadIdx.x; 2 * i < a.batch; i += blockDim.x) {
    const uint4 bits = draw(make_uint4(i, kSortKeys, 0, 0));
    keys[2 * i] = sort_key(bits.x, bits.y, 2 * i);
    keys[2 * i + 1] = sort_key(bits.z, bits.w, 2 * i + 1); // past an odd batch: not read
  }
  __syncthreads(); // each thread compares with the keys of all
  const int row = block * kRankedRows + static_cast<int>(threadIdx.x) / kRankLanes;
  const uint64_t own = keys[min(row, a.batch - 1)];
  // The rank. With kCycle, the largest difference to another key, modulo 2^64. It belongs to the
  // key just before: differences to smaller keys wrap around, and so exceed those to larger keys.
  uint64_t found = 0;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x) % kRankLanes; i < a.batch; i += kRankLanes) {
    if constexpr (kCycle)
      found = max(found, keys[i] - own);
    else
      found += keys[i] < own;
  }
#pragma unroll
  for (int step = 1; step < kRankLanes; step *= 2) {
    const uint64_t other = __shfl_xor_sync(0xffffffffu, found, step);
    found = kCycle ? max(found, other) : found + other;
  }
  if (row < a.batch && threadIdx.x % kRankLanes == 0)
    store(a.perm + row, static_cast<int64_t>(kCycle ? (own + found) % kMostRanked : found));
}

__device__ __forceinline__ int partner_by_row(const SampleArgs &a, const Philox &draw, int row) {
  const int before = (row > 0 ? row : a.batch) - 1;
  if (a.partners == Partners::kFlip) return a.batch - 1 - row;
  if (a.partners == Partners::kRoll) return before;
  const Shuffle shuffle(a.grid, draw);
  if (a.partners == Partners::kRandom) return shuffle(row);
  const unsigned place = shuffle.inverse(row); // in a cycle through all rows
  return shuffle((place > 0 ? place : a.batch) - 1);
}

__global__ void __launch_bounds__(kSampleThreads) sample_mix(const SampleArgs a) {
  const Philox draw(static_cast<unsigned>(load(a.key)), static_cast<unsigned>(load(a.key + 1)));
  if (blockIdx.x < a.lam_blocks) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    const double alpha = a.alpha_tensor ? load(a.alpha_tensor) : a.alpha;
    if (row < a.lams) store(a.lam + row, sample_lam(draw, row, alpha));
    return;
  }
  const int block = blockIdx.x - a.lam_blocks;
  if (a.ranked) {
    if (a.partners == Partners::kDerangement)
      pair_by_rank<true>(a, draw, block);
    else
      pair_by_rank<false>(a, draw, block);
    return;
  }
  const int row = block * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  if (row < a.batch) store(a.perm + row, int64_t{partner_by_row(a, draw, row)});
}

} // namespace mmix
