// torch's dtypes as the kernels see them. Shared by the CPU and CUDA ops.
#pragma once
#include "dtypes.h"
#include <optional>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace mmix {

using torch::headeronly::ScalarType;

// nullopt: not a dtype that can be mixed.
inline std::optional<DType> find_dtype(ScalarType type) {
  switch (type) {
  case ScalarType::Half:
    return kHalf;
  case ScalarType::BFloat16:
    return kBFloat16;
  case ScalarType::Float:
    return kFloat;
  case ScalarType::Double:
    return kDouble;
  default:
    return std::nullopt;
  }
}

inline DType dtype_of(ScalarType type) {
  const std::optional<DType> found = find_dtype(type);
  STD_TORCH_CHECK(found.has_value(), "expected float16, bfloat16, float32 or float64");
  return *found;
}

// Of targets of the logits' shape.
inline DType target_dtype_of(ScalarType type) {
  return type == ScalarType::Byte ? kByte : dtype_of(type);
}

// The dtype of the arithmetic on operands of these dtypes.
template <class... Types> ScalarType arithmetic_of(Types... types) {
  return ((types == ScalarType::Double) || ...) ? ScalarType::Double : ScalarType::Float;
}

} // namespace mmix
