// The dtypes as CUDA's types.
#pragma once
#include "dtypes.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace mmix {

#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class F> MMIX_HOST_DEVICE decltype(auto) visit(DType type, const F &f) {
  return visit_dtype<__half, __nv_bfloat16>(type, f);
}

} // namespace mmix
