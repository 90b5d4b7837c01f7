// The sums of one row, merged from any pieces in any order, and the loss and gradient from them.
#pragma once
#include "cuda/kernels/cluster.cuh"
#include "cuda/kernels/cross_entropy_spread.cuh"
#include "cuda/kernels/vectors.cuh"

namespace mmix {

constexpr double kLog2E = 1.4426950408889634;

// One instruction on a GPU. The error is at most 2 ulp. Results below 2^-126 become 0.
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
MMIX_DEVICE float max_of(float x, float y) { return fmaxf(x, y); } // ignores a NaN
MMIX_DEVICE double max_of(double x, double y) { return fmax(x, y); }

// The numbers of a vector, and the vector of numbers. Half-precision elements are converted in
// pairs: one instruction for two.
template <class T, int N> MMIX_DEVICE void widen_all(const T (&v)[N], Acc<T> (&to)[N]) {
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    const unsigned *words = reinterpret_cast<const unsigned *>(v);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const float2 pair = widen_pair<T>(words[i]);
      to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = widen(v[i]);
  }
}
template <class T, int N> MMIX_DEVICE Vec<T> narrow_all(const Acc<T> (&v)[N]) {
  static_assert(N == Vec<T>::kCount);
  Vec<T> to;
  if constexpr (sizeof(T) == 2) {
    to.raw = make_uint4(narrow_pair<T>(v[0], v[1]), narrow_pair<T>(v[2], v[3]),
                        narrow_pair<T>(v[4], v[5]), narrow_pair<T>(v[6], v[7]));
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to.at[i] = v[i];
  }
  return to;
}

// Sums over some of a row's classes, relative to the maximum of these, as in online softmax.
template <class Real> struct RowSums {
  Real max = -Real(INFINITY), exp_sum = 0; // sum exp(z - max)
  Real mass = 0, dot = 0;                  // sum t, sum t*(z - max)
  MMIX_DEVICE void add_term(Real t, Real shifted) {
    mass += t;
    if (t != 0) dot += t * shifted; // z may be -inf if t is 0
  }
};

// Gives the same bits with x and y swapped, so that all lanes agree after a butterfly of shuffles.
template <class Real>
MMIX_DEVICE RowSums<Real> merge(const RowSums<Real> &x, const RowSums<Real> &y) {
  const bool first = x.max >= y.max;
  RowSums<Real> high = first ? x : y;
  const RowSums<Real> low = first ? y : x;
  // If the low side has no finite logit, its sums are 0, NaN or infinite, and need no shift.
  const Real shift = low.max == -Real(INFINITY) ? Real(0) : low.max - high.max;
  high.exp_sum += low.exp_sum * exp2_of(shift * Real(kLog2E));
  high.dot += low.dot + (low.mass != 0 ? low.mass * shift : Real(0));
  high.mass += low.mass;
  return high;
}

template <class V> MMIX_DEVICE V shuffle_xor(V v, int step) {
  return __shfl_xor_sync(0xffffffffu, v, step);
}
// Merges the sums of groups of `lanes` neighbouring lanes, at most a warp. All get the result.
template <class Real> MMIX_DEVICE RowSums<Real> merge_lanes(RowSums<Real> sums, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2)
    sums = merge(sums, {shuffle_xor(sums.max, step), shuffle_xor(sums.exp_sum, step),
                        shuffle_xor(sums.mass, step), shuffle_xor(sums.dot, step)});
  return sums;
}

// The logit after the softcap. A masked class (-inf) stays -inf; tanh would make it finite.
template <class Real> MMIX_DEVICE Real capped(const LossProblem &a, Real z) {
  if (a.softcap == 0 || z == -Real(INFINITY)) return z;
  return Real(a.softcap) * tanh_of(z * Real(a.inverse_softcap));
}

// The pivot of a piece's sums: its maximum, or 0 if it has only -inf and NaN (-inf - -inf is NaN).
template <class Real> MMIX_DEVICE Real pivot_of(Real max) {
  return max == -Real(INFINITY) ? Real(0) : max;
}

template <class Real> MMIX_DEVICE Real exp_of(Real x) { return exp2_of(x * Real(kLog2E)); }

// Merges the sums of the warps of each group of `lanes` threads, a power of two from a warp to the
// block. All threads get the result. Every thread of the block must call it.
template <class Real>
MMIX_DEVICE RowSums<Real> merge_warps(RowSums<Real> sums, int lanes, RowSums<Real> *warps) {
  if (lanes == 32) return sums;
  const int warp = threadIdx.x / 32, warps_a_row = lanes / 32,
            first = warp / warps_a_row * warps_a_row;
  if (threadIdx.x % 32 == 0) warps[warp] = sums;
  __syncthreads(); // the other warps' sums are written
  return merge_lanes(warps[first + threadIdx.x % warps_a_row], warps_a_row);
}

// Merges the sums of the blocks of a cluster that share a row. shared: a place that was not used
// before.
template <class Real>
MMIX_DEVICE RowSums<Real> merge_blocks(RowSums<Real> sums, int blocks, RowSums<Real> *shared) {
  if (blocks == 1) return sums;
  if (threadIdx.x == 0) *shared = sums;
  MMIX_CLUSTER_BARRIER(); // the other blocks' sums are written
  sums = *MMIX_CLUSTER_SHARED(RowSums<Real>, shared, threadIdx.x % blocks);
  MMIX_CLUSTER_BARRIER(); // when a block exits, its shared memory is gone
  return merge_lanes(sums, blocks);
}

// The result of a row, from the sums over all its classes. of_shard: there may be more classes.
template <class Real> struct RowResult {
  Real max, log_sum, mass, dot;
  MMIX_DEVICE explicit RowResult(const RowSums<Real> &s, bool of_shard = false)
      : max(s.max), log_sum(s.max == -Real(INFINITY) && !of_shard ? Real(NAN) : log_of(s.exp_sum)),
        mass(s.mass), dot(s.dot) {}
  MMIX_DEVICE Real lse() const { return max + log_sum; }
};

template <class Real>
MMIX_DEVICE Real loss_of(const LossRow<Real> &row, const RowResult<Real> &of) {
  if (!row.live) return 0;
  // log_sum is NaN if the row has a NaN logit or only -inf. Then the loss is NaN, even if the
  // logits of its labels are finite.
  const Real loss = of.mass * of.log_sum - of.dot;
  return row.z_coef != 0 ? loss + row.z_coef * of.lse() * of.lse() : loss;
}

template <class Real> struct alignas(2 * sizeof(Real)) RowStats {
  Real max, log_sum;
};

// A row that is not live gets zeros, whatever its logits hold.
template <class Real>
MMIX_DEVICE RowStats<Real> stats_of(const LossRow<Real> &row, const RowResult<Real> &of) {
  return row.live ? RowStats<Real>{of.max, of.log_sum} : RowStats<Real>{0, 0};
}

// What a shard adds to a row, as two pairs. Zeros if the row is not live. The targets of a bad row
// are NaN, as its z_coef is.
template <class Real>
MMIX_DEVICE void store_part(RowStats<Real> *to, const LossRow<Real> &row,
                            const RowResult<Real> &of) {
  const Real bad = row.z_coef == row.z_coef ? Real(0) : Real(NAN);
  store(to, row.live ? RowStats<Real>{pivot_of(of.max), of.log_sum} : RowStats<Real>{0, 0});
  store(to + 1, row.live ? RowStats<Real>{of.dot + bad, of.mass + bad} : RowStats<Real>{0, 0});
}

// A forward writes the row's statistics, a backward reads them. The lane with `keeps`, one for each
// row, writes and returns the loss. The other lanes, and a backward, return 0.
template <class Real>
MMIX_DEVICE Real finish_row(const LossProblem &a, int64_t r, bool keeps, const LossRow<Real> &row,
                            RowResult<Real> &of) {
  if (r >= a.rows) return 0; // the last block's spare rows
  RowStats<Real> *stats = static_cast<RowStats<Real> *>(a.stats) + r;
  if (a.of_shard) {
    if (a.from_stats) {
      const Real *kept = static_cast<const Real *>(a.stats) + 3 * r;
      of.max = load(kept);
      of.log_sum = load(kept + 1);
      of.mass = upstream_of<Real>(a, r) * load(kept + 2);
    } else if (keeps) {
      store_part(stats + r, row, of);
    }
    return 0;
  }
  if (a.from_stats) {
    const RowStats<Real> kept = load(stats);
    of.max = kept.max;
    of.log_sum = kept.log_sum;
    return 0;
  }
  if (!keeps) return 0;
  store(stats, stats_of(row, of));
  const Real loss = loss_of(row, of);
  if (a.loss && !a.partial) store(static_cast<Real *>(a.loss) + r, loss);
  return loss;
}

// The sum of a row's targets, which of a shard is read in finish_row(). dense: `of` has it.
template <class Real>
MMIX_DEVICE Real mass_of(const LossProblem &a, const LossRow<Real> &row, const RowResult<Real> &of,
                         bool dense) {
  return dense || a.of_shard ? of.mass : row.mass(a.classes);
}

// Sums v over the block, in a fixed order for a given launch. Thread 0 gets the sum. Every thread
// of the block must call it. warps: shared memory for 32 numbers, not used before.
MMIX_DEVICE double block_sum(double v, double *warps) {
  for (int step = 16; step > 0; step /= 2) v += shuffle_xor(v, step);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
  __syncthreads(); // all warps' sums are written
  if (threadIdx.x >= 32) return 0;
  double sum = threadIdx.x < blockDim.x / 32 ? warps[threadIdx.x] : 0;
  for (int step = 16; step > 0; step /= 2) sum += shuffle_xor(sum, step);
  return sum;
}

// The gradient was written for an upstream gradient of 1. If all rows have that, it is right.
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
    // (z - max) first: with max folded into the constant, small differences of large logits would
    // be lost.
    return p * exp2_of((z - max) * Real(kLog2E) - log2_sum) - t;
  }
};

// Multiplies the gradient by the derivative of the softcap, taken at the capped logit z.
template <class Real> MMIX_DEVICE Real through_cap(const LossProblem &a, Real gradient, Real z) {
  if (a.softcap == 0) return gradient;
  const Real u = z * Real(a.inverse_softcap);
  return u == -Real(INFINITY) ? gradient : gradient * (1 - u * u); // -inf: see capped()
}

} // namespace mmix
