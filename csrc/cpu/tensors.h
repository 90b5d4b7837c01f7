// What the CPU ops share: dtype numbers, λ, fresh buffers.
#pragma once
#include "cpu/kernels.h"
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace mmix {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(ScalarType type) {
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
    STD_TORCH_CHECK(false, "expected float16, bfloat16, float32 or float64");
  }
}

inline int64_t element_size(DType type) { return type == kDouble ? 8 : type == kFloat ? 4 : 2; }

inline double read(const void *p, DType type, int64_t i) {
  switch (type) {
  case kHalf:
    return static_cast<float>(static_cast<const c10::Half *>(p)[i]);
  case kBFloat16:
    return static_cast<float>(static_cast<const c10::BFloat16 *>(p)[i]);
  case kFloat:
    return static_cast<const float *>(p)[i];
  default:
    return static_cast<const double *>(p)[i];
  }
}

inline void write(void *p, DType type, int64_t i, double v) {
  switch (type) {
  case kHalf:
    static_cast<c10::Half *>(p)[i] = static_cast<float>(v);
    break;
  case kBFloat16:
    static_cast<c10::BFloat16 *>(p)[i] = static_cast<float>(v);
    break;
  case kFloat:
    static_cast<float *>(p)[i] = static_cast<float>(v);
    break;
  default:
    static_cast<double *>(p)[i] = v;
  }
}

// λ of each row, 0-dim or (B,), and 1-λ rounded in the arithmetic's dtype as the formula says.
struct Lam {
  Lam(const Tensor &lam)
      : data(lam.const_data_ptr()), type(dtype_of(lam.scalar_type())), per_sample(lam.dim() == 1),
        stride(per_sample ? lam.stride(0) : 0) {}
  double own(int64_t i) const { return read(data, type, i * stride); }
  double other(int64_t i) const {
    const double l = own(i);
    return type == kDouble ? 1.0 - l : static_cast<double>(1.0f - static_cast<float>(l));
  }
  const void *data;
  DType type;
  bool per_sample;
  int64_t stride;
};

// Large blocks come straight from the kernel: asking for huge pages before the first write saves
// most of the page faults, which otherwise cost more than the arithmetic.
inline void expect_writes(void *p, int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kHuge = 2u << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(p) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(p) + bytes) / kHuge * kHuge;
  if (bytes >= static_cast<int64_t>(8 * kHuge) && end > begin)
    madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE); // a hint: may fail
#endif
}

inline Tensor fresh_like(const Tensor &x) {
  Tensor out = torch::stable::empty_like(x);
  expect_writes(out.mutable_data_ptr(), out.numel() * element_size(dtype_of(out.scalar_type())));
  return out;
}

} // namespace mmix
