// The launches before and after the rows of a reduced loss: what a mean divides by, and the sum of
// the blocks' losses. Both sum on the device, in float64 and in a fixed order.
#pragma once
#include "cuda/kernels/cross_entropy_sums.cuh"

namespace mmix {

constexpr int kMeanThreads = 256;

// Sums over rows, which give all divisors.
struct MeanSums {
  double own = 0, other = 0;       // sums of the class weights of the labels that count
  double joint = 0, joint_z = 0;   // also times λ or 1-λ; joint_z without class weights
  static constexpr int kCount = 4; // as an array in global memory
};

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
  const bool per_sample = a.lam_per_sample;
  const double own = per_sample ? sums.joint : sums.own, other = per_sample ? own : sums.other;
  const auto inverse = [](double d) { return d == 0 ? 0 : 1 / d; };
  // A term with a zero coefficient is absent, and so is its divisor.
  bool nothing = a.rows == 0;
  if (!nothing && per_sample)
    nothing = own == 0;
  else if (!nothing) {
    const Real lam = lam_of<Real>(a, 0);
    nothing = (own == 0 && lam != 0) || (other == 0 && Real(1) - lam != 0);
  }
  store(scales + MeanScales::kOwn, inverse(own));
  store(scales + MeanScales::kOther, inverse(other));
  store(scales + MeanScales::kZLoss, inverse(sums.joint_z));
  store(scales + MeanScales::kAdded, nothing ? static_cast<double>(NAN) : 0.0);
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
  double *mine = out + static_cast<int64_t>(blockIdx.x) * MeanSums::kCount;
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
    const double *one = in + static_cast<int64_t>(b) * MeanSums::kCount;
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
