// torch.empty_like with another dtype, which torch's stable C++ API does not offer. Shared by the
// CPU and CUDA ops.
#pragma once
#include <array>
#include <optional>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace mmix {

inline torch::stable::Tensor empty_like(const torch::stable::Tensor &like,
                                        torch::headeronly::ScalarType type) {
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(like),         from(std::optional(type)),
                                    from(std::nullopt), from(std::nullopt),
                                    from(std::nullopt), from(std::nullopt)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

} // namespace mmix
