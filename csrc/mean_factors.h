// What reduction "mean" multiplies the terms of a loss with labels by. Shared by the CPU and CUDA
// ops.
#pragma once
#include "dtypes.h"
#include <cmath>

namespace mmix {

// Sums over all rows. A row counts where its label does.
struct MeanSums {
  double own = 0, other = 0;     // of the class weights, for the own label and for the partner's
  double joint = 0, joint_z = 0; // also times λ or 1-λ, both labels; joint_z without class weights
};

// The inverse divisors of the two terms and of the z-loss. A term's is NaN if its divisor is 0:
// multiply by it only where the term is present, as its gradient there is NaN, and 0 elsewhere.
struct MeanFactors {
  double own = 1, other = 1, z_loss = 1;
  bool undefined = false; // a mean over nothing: the loss is NaN
};

// has_own, has_other: whether a shared λ, or 1-λ, is not 0. A term with a zero coefficient is
// absent, and so is its divisor.
MMIX_HOST_DEVICE MeanFactors mean_factors(const MeanSums &sums, bool per_sample, bool no_rows,
                                          bool has_own, bool has_other) {
  const double own = per_sample ? sums.joint : sums.own;
  const double other = per_sample ? sums.joint : sums.other;
  const auto inverse = [](double d, double of_zero) { return d == 0 ? of_zero : 1 / d; };
  const double nan = static_cast<double>(NAN);
  const bool undefined = per_sample ? own == 0 : (own == 0 && has_own) || (other == 0 && has_other);
  return {inverse(own, nan), inverse(other, nan), inverse(sums.joint_z, 0), no_rows || undefined};
}

} // namespace mmix
