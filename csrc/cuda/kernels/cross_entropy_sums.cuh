// The sums of one row of classes, in any order and any pieces, and what follows from them.
#pragma once
#include "cuda/kernels/cluster.cuh"
#include "cuda/kernels/cross_entropy_spread.cuh"

namespace mmix {

constexpr double kLog2E = 1.4426950408889634;

// One instruction on a GPU: off by at most 2 units in the last place, and 0 below 2^-126.
MMIX_DEVICE float exp2_of(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}
MMIX_DEVICE double exp2_of(double x) { return exp2(x); }
MMIX_DEVICE float log_of(float x) { return logf(x); }
MMIX_DEVICE double log_of(double x) { return log(x); }
MMIX_DEVICE float tanh_of(float x) { return tanhf(x); }
MMIX_DEVICE double tanh_of(double x) { return tanh(x); }
MMIX_DEVICE float max_of(float x, float y) { return fmaxf(x, y); } // a NaN is passed over
MMIX_DEVICE double max_of(double x, double y) { return fmax(x, y); }

// Sums over some of a row's classes, relative to their own maximum, as online softmax keeps them.
template <class Real> struct RowSums {
  Real max = -Real(INFINITY), exp_sum = 0; // sum exp(z - max)
  Real mass = 0, dot = 0;                  // sum t, sum t*(z - max)
  MMIX_DEVICE void add_term(Real t, Real shifted) {
    mass += t;
    if (t != 0) dot += t * shifted; // z may be -inf where t is 0
  }
};

// Symmetric to the bit, so that after a butterfly of shuffles all lanes agree.
template <class Real>
MMIX_DEVICE RowSums<Real> merge(const RowSums<Real> &x, const RowSums<Real> &y) {
  const bool first = x.max >= y.max;
  RowSums<Real> high = first ? x : y;
  const RowSums<Real> low = first ? y : x;
  // Where the low side saw no finite logit, its sums are 0, NaN or infinite as they are.
  const Real shift = low.max == -Real(INFINITY) ? Real(0) : low.max - high.max;
  high.exp_sum += low.exp_sum * exp2_of(shift * Real(kLog2E));
  high.dot += low.dot + (low.mass != 0 ? low.mass * shift : Real(0));
  high.mass += low.mass;
  return high;
}

// Merged over groups of `lanes` neighbours, at most a warp; the result is in all of them.
template <class V> MMIX_DEVICE V shuffle_xor(V v, int step) {
  return __shfl_xor_sync(0xffffffffu, v, step);
}
template <class Real> MMIX_DEVICE RowSums<Real> merge_lanes(RowSums<Real> sums, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2)
    sums = merge(sums, {shuffle_xor(sums.max, step), shuffle_xor(sums.exp_sum, step),
                        shuffle_xor(sums.mass, step), shuffle_xor(sums.dot, step)});
  return sums;
}

// z as the loss sees it: a masked class (-inf) stays masked, tanh would make it finite.
template <class Real> MMIX_DEVICE Real capped(const LossProblem &a, Real z) {
  if (a.softcap == 0 || z == -Real(INFINITY)) return z;
  return Real(a.softcap) * tanh_of(z * Real(a.inverse_softcap));
}

// The pivot of a piece's sums: its maximum, or 0 where it saw -inf and NaN alone (-inf - -inf).
template <class Real> MMIX_DEVICE Real pivot_of(Real max) {
  return max == -Real(INFINITY) ? Real(0) : max;
}

template <class Real> MMIX_DEVICE Real exp_of(Real x) { return exp2_of(x * Real(kLog2E)); }

// Merged over groups of `lanes` threads, a power of two from a warp to the block; all lanes have
// the result. Every thread of the block calls it.
template <class Real>
MMIX_DEVICE RowSums<Real> merge_warps(RowSums<Real> sums, int lanes, RowSums<Real> *warps) {
  sums = merge_lanes(sums, 32);
  if (lanes == 32) return sums;
  const int warp = threadIdx.x / 32, warps_a_row = lanes / 32,
            first = warp / warps_a_row * warps_a_row;
  if (threadIdx.x % 32 == 0) warps[warp] = sums;
  __syncthreads(); // the other warps' sums are there
  return merge_lanes(warps[first + threadIdx.x % warps_a_row], warps_a_row);
}

// Merged over the blocks of a cluster that share a row. shared: a place that nobody uses before.
template <class Real>
MMIX_DEVICE RowSums<Real> merge_blocks(RowSums<Real> sums, int blocks, RowSums<Real> *shared) {
  if (blocks == 1) return sums;
  if (threadIdx.x == 0) *shared = sums;
  MMIX_CLUSTER_BARRIER(); // the other blocks' sums are there
  sums = *MMIX_CLUSTER_SHARED(RowSums<Real>, shared, threadIdx.x % blocks);
  MMIX_CLUSTER_BARRIER(); // a block that leaves takes its shared memory away
  return merge_lanes(sums, blocks);
}

// A row when all of it has been seen.
template <class Real> struct RowResult {
  Real max, log_sum, mass, dot;
  MMIX_DEVICE explicit RowResult(const RowSums<Real> &s)
      : max(s.max), log_sum(s.max == -Real(INFINITY) ? Real(NAN) : log_of(s.exp_sum)), mass(s.mass),
        dot(s.dot) {}
  MMIX_DEVICE Real lse() const { return max + log_sum; }
};

template <class Real>
MMIX_DEVICE Real loss_of(const LossRow<Real> &row, const RowResult<Real> &of) {
  if (!row.live) return 0;
  // A NaN or all -inf row that counts is NaN even where its own label's logit is finite.
  const Real loss = of.mass * of.log_sum - of.dot;
  return row.z_coef != 0 ? loss + row.z_coef * of.lse() * of.lse() : loss;
}

template <class Real> struct alignas(2 * sizeof(Real)) RowStats {
  Real max, log_sum;
};

// A forward keeps the row's statistics, a backward reads them. The loss of the row, 0 in a
// backward; one lane of the row keeps.
template <class Real>
MMIX_DEVICE Real finish_row(const LossProblem &a, int64_t r, bool keeps, const LossRow<Real> &row,
                            RowResult<Real> &of) {
  if (r >= a.rows) return 0; // the last block's spare rows
  RowStats<Real> *stats = static_cast<RowStats<Real> *>(a.stats) + r;
  if (a.from_stats) {
    const RowStats<Real> kept = load(stats);
    of.max = kept.max;
    of.log_sum = kept.log_sum;
    return 0;
  }
  if (!keeps) return 0;
  // A row that counts for nothing has none, whatever its logits hold.
  store(stats, row.live ? RowStats<Real>{of.max, of.log_sum} : RowStats<Real>{0, 0});
  const Real loss = loss_of(row, of);
  if (a.loss) store(static_cast<Real *>(a.loss) + r, loss);
  return loss;
}

// In one order for a given launch. The sum is in thread 0; every thread of the block calls it.
// warps: room for 32 numbers in shared memory, which nobody uses before.
MMIX_DEVICE double block_sum(double v, double *warps) {
  for (int step = 16; step > 0; step /= 2) v += shuffle_xor(v, step);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
  __syncthreads(); // all warps' sums are there
  double sum = 0;
  for (int w = 0; threadIdx.x == 0 && w < static_cast<int>(blockDim.x / 32); ++w) sum += warps[w];
  return sum;
}

MMIX_DEVICE void write_block_loss(const LossProblem &a, double loss, double *warps) {
  if (!a.partial) return;
  const double sum = block_sum(loss, warps);
  if (threadIdx.x == 0) store(a.partial + blockIdx.x, sum);
}

// A gradient made for an upstream of 1 is right already where upstream is 1.
template <class Real> MMIX_DEVICE bool rescale_is_noop(const LossProblem &a) {
  return a.rescale && !a.upstream_per_row && upstream_of<Real>(a, 0) == 1;
}

// d(loss)/d(logit): p*softmax - t.
template <class Real> struct RowGradient {
  Real p, max, log2_sum;
  MMIX_DEVICE RowGradient(Real p_, Real max_, Real log2_sum_)
      : p(p_), max(max_), log2_sum(log2_sum_) {}
  MMIX_DEVICE RowGradient(const LossRow<Real> &row, const RowResult<Real> &of, Real mass)
      : p(row.z_coef != 0 ? mass + 2 * row.z_coef * of.lse() : mass), max(of.max),
        log2_sum(of.log_sum * Real(kLog2E)) {}
  MMIX_DEVICE Real operator()(Real z, Real t) const {
    // (z - max) first: folding max into the constant would lose what large logits differ by.
    return p * exp2_of((z - max) * Real(kLog2E) - log2_sum) - t;
  }
};

// The derivative of the cap, at the capped logit.
template <class Real> MMIX_DEVICE Real through_cap(const LossProblem &a, Real gradient, Real z) {
  if (a.softcap == 0) return gradient;
  const Real u = z * Real(a.inverse_softcap);
  return u == -Real(INFINITY) ? gradient : gradient * (1 - u * u); // uncapped, see capped()
}

} // namespace mmix
