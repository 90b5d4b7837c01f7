// What a mean divides by, and the sum of all rows' losses. Both are summed on the device, in
// float64 and in a fixed order. Each block sums the divisors itself if there are few rows; else a
// launch before does (cross_entropy_divisors). The last block to finish sums the losses.
#pragma once
#include "cuda/kernels/cross_entropy_sums.cuh"
#include "mean_factors.h"

namespace mmix {

constexpr int kMeanThreads = 256;
constexpr int kMeanSums = 4; // numbers of a MeanSums, as an array in global memory

// Shared memory of every kernel of the loss.
struct alignas(16) LossScratch {
  double warps[kMeanSums][32]; // see block_sum
  double scales[MeanScales::kCount];
  int flag; // from thread 0 to all
};

// Gives thread 0's value to all threads of the block. Every thread must call it.
MMIX_DEVICE bool from_first(LossScratch &s, bool value) {
  if (threadIdx.x == 0) s.flag = value;
  __syncthreads(); // thread 0 has written
  return s.flag != 0;
}

template <class Real>
MMIX_DEVICE void add_row(MeanSums &sums, const LossProblem &a, int64_t r, const LabelPair &pair) {
  const Real own = lam_of<Real>(a, r), other = Real(1) - own;
  if (pair.own >= 0) {
    const double w = weight_of<Real>(a, pair.own);
    sums.own += w;
    if (own != 0) sums.joint += own * w, sums.joint_z += own;
  }
  if (pair.other >= 0) {
    const double w = weight_of<Real>(a, pair.other);
    sums.other += w;
    if (other != 0) sums.joint += other * w, sums.joint_z += other;
  }
}

// Sums over the rows first, first + step, ...
template <class Real>
MMIX_DEVICE MeanSums sum_rows(const LossProblem &a, int64_t first, int64_t step) {
  constexpr int kAtOnce = 4; // rows whose loads are in flight
  MeanSums sums;
#pragma unroll 1
  for (; first < a.rows; first += kAtOnce * step) {
    LabelPair pairs[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int64_t r = first + k * step;
      pairs[k] = label_pair(a, r < a.rows ? r : first);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k * step < a.rows) add_row<Real>(sums, a, first + k * step, pairs[k]);
  }
  return sums;
}

MMIX_DEVICE MeanSums block_sum(const MeanSums &v, LossScratch &s) {
  return {block_sum(v.own, s.warps[0]), block_sum(v.other, s.warps[1]),
          block_sum(v.joint, s.warps[2]), block_sum(v.joint_z, s.warps[3])};
}

// Whether all labels of the problem count. Every thread of the block must call it.
MMIX_DEVICE bool all_labels_count(const LossProblem &a, LossScratch &s) {
  constexpr int kAtOnce = 8; // loads in flight
  bool all = true;
  const auto check = [&](const int64_t *labels) {
#pragma unroll 1
    for (int64_t r = threadIdx.x; r < a.rows; r += kAtOnce * blockDim.x) {
      int64_t y[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int64_t at = r + k * blockDim.x;
        y[k] = at < a.rows ? load(labels + at) : 0; // 0 counts
      }
#pragma unroll
      for (const int64_t one : y) all &= one >= 0 && one < a.all_classes && one != a.ignore_index;
    }
  };
  check(a.labels);
  if (a.labels_b) check(a.labels_b);
  return from_first(s, block_sum(all ? 0 : 1, s.warps[0]) == 0);
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

// Not in float64, where this code would make kernels spill registers.
template <class Real> constexpr bool kCountsItself = sizeof(Real) < 8;

// Fills s.scales. Every thread of the block must call it.
template <class Real> MMIX_DEVICE void make_scales(const LossProblem &a, LossScratch &s) {
  if (kCountsItself<Real> && a.counts) {
    MeanSums sums;
    // One λ and no class weights: if all labels count, partners are not looked up.
    if (!a.lam_per_sample && !a.terms[kWeight].data && all_labels_count(a, s)) {
      const double rows = static_cast<double>(a.rows);
      const Real own = lam_of<Real>(a, 0), other = Real(1) - own;
      sums = {rows, rows, 0, rows * (double(own) + double(other))};
    } else {
      sums = block_sum(sum_rows<Real>(a, threadIdx.x, blockDim.x), s);
    }
    if (threadIdx.x == 0) write_scales<Real>(a, sums, s.scales);
  } else if (threadIdx.x < MeanScales::kCount) {
    const int i = threadIdx.x;
    s.scales[i] = a.scales ? load(a.scales + i) : i == MeanScales::kAdded ? 0 : a.constant_scale;
  }
  __syncthreads(); // s.scales is complete
}

// Adds up the losses of the block's threads for write_total(). Called before the gradient is
// written: the fence in it would wait for those stores. Every thread of the block must call it.
MMIX_DEVICE void post_loss(const LossProblem &a, double loss, LossScratch &s) {
  if (!a.partial) return;
  loss = block_sum(loss, s.warps[0]);
  if (threadIdx.x != 0) return;
  store_shared(a.partial + blockIdx.x, loss);
  s.flag = is_last_block(a.last);
}

// Adds up the losses of all blocks, after post_loss(). Every thread of the block must call it.
template <class Real> MMIX_DEVICE void write_total(const LossProblem &a, LossScratch &s) {
  if (!a.partial) return;
  __syncthreads(); // s.flag is set
  if (!s.flag) return;
  double total = 0;
#pragma unroll 4 // loads in flight
  for (unsigned b = threadIdx.x; b < gridDim.x; b += blockDim.x)
    total += load_shared(a.partial + b);
  total = block_sum(total, s.warps[1]);
  if (threadIdx.x == 0)
    store(static_cast<Real *>(a.loss), Real(total + s.scales[MeanScales::kAdded]));
}

// Writes the scales to `out`. Each block sums some rows, the last one to finish adds up the blocks'
// sums.
template <class Real>
__global__ void __launch_bounds__(kMeanThreads)
    cross_entropy_divisors(const __grid_constant__ LossProblem a, double *partial, double *out) {
  if (rescale_is_noop<Real>(a)) return;
  LossScratch &s = *dynamic_shared<LossScratch>();
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  MeanSums sums =
      sum_rows<Real>(a, static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, step);
  sums = block_sum(sums, s);
  bool last = false;
  if (threadIdx.x == 0) {
    double *mine = partial + static_cast<int64_t>(blockIdx.x) * kMeanSums;
    store_shared(mine, sums.own);
    store_shared(mine + 1, sums.other);
    store_shared(mine + 2, sums.joint);
    store_shared(mine + 3, sums.joint_z);
    last = is_last_block(a.last);
  }
  if (!from_first(s, last)) return;
  sums = {};
  for (unsigned b = threadIdx.x; b < gridDim.x; b += blockDim.x) {
    const double *one = partial + static_cast<int64_t>(b) * kMeanSums;
    sums.own += load_shared(one);
    sums.other += load_shared(one + 1);
    sums.joint += load_shared(one + 2);
    sums.joint_z += load_shared(one + 3);
  }
  sums = block_sum(sums, s);
  if (threadIdx.x == 0) write_scales<Real>(a, sums, out);
}

} // namespace mmix
