// The dtypes that the kernels serve: the only list of them. No torch header, because the vector
// code of the CPU and the device code include it too. scalar_types.h has torch's names.
#pragma once
#include <cstdint>

namespace mmix {

// kDTypes floating-point dtypes, and kByte, which only multi-hot targets may have.
enum DType { kHalf, kBFloat16, kFloat, kDouble, kDTypes, kByte = kDTypes, kTargetDTypes };

constexpr int64_t element_size(DType type) {
  return type == kDouble ? 8 : type == kFloat ? 4 : type == kByte ? 1 : 2;
}

// The type of the arithmetic for elements T: double for double, else float.
template <class T> struct AccOf {
  using type = float;
};
template <> struct AccOf<double> {
  using type = double;
};
template <class T> using Acc = typename AccOf<T>::type;

#ifdef __CUDACC__
#define MMIX_HOST_DEVICE __host__ __device__ __forceinline__
#pragma nv_exec_check_disable // visit_dtype may get a function of the device
#else
#define MMIX_HOST_DEVICE inline
#endif
// Calls f with a null pointer of the C++ type that `type` names. torch and CUDA have types of their
// own for the two 16-bit dtypes.
template <class Half, class BFloat16, class F>
MMIX_HOST_DEVICE decltype(auto) visit_dtype(DType type, const F &f) {
  switch (type) {
  case kHalf:
    return f(static_cast<Half *>(nullptr));
  case kBFloat16:
    return f(static_cast<BFloat16 *>(nullptr));
  case kFloat:
    return f(static_cast<float *>(nullptr));
  default:
    return f(static_cast<double *>(nullptr));
  }
}

} // namespace mmix
