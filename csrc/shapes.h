// The shapes of targets, logits and results. Shared by the CPU and CUDA ops.
#pragma once
#include <cstdint>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <vector>

namespace mmix {

// Targets are int64 labels (B, d1, ...) or probabilities (B, C, d1, ...).
inline bool are_labels(const torch::stable::Tensor &target) {
  return target.scalar_type() == torch::headeronly::ScalarType::Long;
}

// The shape (B, C, d1, ...) of soft targets.
inline std::vector<int64_t> soft_target_shape(const torch::stable::Tensor &target,
                                              int64_t classes) {
  std::vector<int64_t> shape{target.size(0), classes};
  for (int64_t d = are_labels(target) ? 1 : 2; d < target.dim(); ++d)
    shape.push_back(target.size(d));
  return shape;
}

// The shape (B, d1, ...) of losses, one for each row of logits (B, C, d1, ...).
inline std::vector<int64_t> row_shape(const torch::stable::Tensor &logits) {
  std::vector<int64_t> shape{logits.size(0)};
  for (int64_t d = 2; d < logits.dim(); ++d) shape.push_back(logits.size(d));
  return shape;
}

// d1*d2*..., the positions of a sample of a (B, C, d1, ...) tensor.
inline int64_t positions(const torch::stable::Tensor &t) {
  int64_t count = 1;
  for (int64_t d = 2; d < t.dim(); ++d) count *= t.size(d);
  return count;
}

// Whether all elements of t are one element in memory, as in the gradient of a sum.
inline bool is_expanded(const torch::stable::Tensor &t) {
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) > 1 && t.stride(d) != 0) return false;
  return t.numel() > 0;
}

} // namespace mmix
