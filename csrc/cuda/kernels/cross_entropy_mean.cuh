// The launches before and after the rows of a reduced loss: what a mean divides by, and the sum of
// the blocks' losses. Both sum on the device, in float64 and in a fixed order.
#pragma once
#include "cuda/kernels/cross_entropy_sums.cuh"
#include "mean_factors.h"

namespace mmix {

constexpr int kMeanThreads = 256;
constexpr int kMeanSums = 4; // numbers of a MeanSums, as an array in global memory

template <class Real> MMIX_DEVICE void add_row(MeanSums &sums, const LossProblem &a, int64_t r) {
  const LabelPair pair = label_pair(a, r);
  const Real own = lam_of<Real>(a, r), other = Real(1) - own;
  if (pair.own_counts) {
    const double w = weight_of<Real>(a, pair.own);
    sums.own += w;
    if (own != 0) sums.joint += own * w, sums.joint_z += own;
  }
  if (pair.other_counts) {
    const double w = weight_of<Real>(a, pair.other);
    sums.other += w;
    if (other != 0) sums.joint += other * w, sums.joint_z += other;
  }
}

MMIX_DEVICE MeanSums block_sum(const MeanSums &v) {
  __shared__ double warps[4][32];
  return {block_sum(v.own, warps[0]), block_sum(v.other, warps[1]), block_sum(v.joint, warps[2]),
          block_sum(v.joint_z, warps[3])};
}

template <class Real>
MMIX_DEVICE void write_scales(const LossProblem &a, const MeanSums &sums, double *scales) {
  bool has_own = false, has_other = false;
  if (!a.lam_per_sample) { // a λ for each sample may be an empty tensor
    const Real lam = lam_of<Real>(a, 0);
    has_own = lam != 0;
    has_other = Real(1) - lam != 0;
  }
  const MeanFactors means = mean_factors(sums, a.lam_per_sample, a.rows == 0, has_own, has_other);
  store(scales + MeanScales::kOwn, means.own);
  store(scales + MeanScales::kOther, means.other);
  store(scales + MeanScales::kZLoss, means.z_loss);
  store(scales + MeanScales::kAdded, means.undefined ? static_cast<double>(NAN) : 0.0);
}

// If there is one block, it writes the scales. Several blocks write their sums, for
// cross_entropy_scales.
template <class Real>
__global__ void __launch_bounds__(kMeanThreads)
    cross_entropy_divisors(const __grid_constant__ LossProblem a, double *out) {
  if (rescale_is_noop<Real>(a)) return;
  MeanSums sums;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; r < a.rows;
       r += step)
    add_row<Real>(sums, a, r);
  sums = block_sum(sums);
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1) return write_scales<Real>(a, sums, out);
  double *mine = out + static_cast<int64_t>(blockIdx.x) * kMeanSums;
  store(mine, sums.own);
  store(mine + 1, sums.other);
  store(mine + 2, sums.joint);
  store(mine + 3, sums.joint_z);
}

template <class Real>
__global__ void __launch_bounds__(kMeanThreads)
    cross_entropy_scales(const __grid_constant__ LossProblem a, const double *in, int blocks,
                         double *scales) {
  MeanSums sums;
  for (int b = threadIdx.x; b < blocks; b += blockDim.x) {
    const double *one = in + static_cast<int64_t>(b) * kMeanSums;
    sums.own += load(one);
    sums.other += load(one + 1);
    sums.joint += load(one + 2);
    sums.joint_z += load(one + 3);
  }
  sums = block_sum(sums);
  if (threadIdx.x == 0) write_scales<Real>(a, sums, scales);
}

// scales: those of the mean, or null.
template <class Real>
__global__ void __launch_bounds__(kMeanThreads)
    cross_entropy_total(const double *partial, int64_t count, const double *scales, Real *loss) {
  __shared__ double warps[32];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += load(partial + i);
  sum = block_sum(sum, warps);
  if (threadIdx.x == 0) store(loss, Real(scales ? sum + load(scales + MeanScales::kAdded) : sum));
}

} // namespace mmix
