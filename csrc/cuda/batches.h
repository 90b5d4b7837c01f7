// A batch's tensors as the kernels take them: columns, λ, alignment. Host code only.
#pragma once
#include "cuda/kernels/columns.cuh"
#include "cuda/kernels/pairing.cuh"
#include "cuda/launch.h"
#include "row_layout.h"
#include <vector>

namespace mmix {

inline LamRef lam_ref(const Tensor &lam) {
  const bool wide = lam.scalar_type() == ScalarType::Double;
  const void *data = wide ? static_cast<const void *>(input<double>(lam)) : input<float>(lam);
  return {data, wide, lam.dim() == 1 ? lam.stride(0) : 0};
}

// Whether Columns has room for the dimensions of a sample, the run counted as one.
inline bool fits(const SampleLayout &sample) {
  return sample.dims.size() + (sample.run != 1) <= kMaxDims;
}

// The columns of x, or of another tensor with a stride of its own, and of out.
inline Columns columns_of(const SampleLayout &sample, int64_t Dim::*stride = &Dim::stride) {
  Columns c{sample.run, sample.runs, 0, {}, {}, {}};
  for (const Dim &d : sample.dims) {
    c.size[c.dims] = d.size;
    c.x_stride[c.dims] = d.*stride;
    c.out_stride[c.dims++] = d.out_stride;
  }
  return c;
}

// The bits that are set in the address of any run, in bytes: 16 divides them all if it divides
// this.
inline uint64_t address_bits(const Tensor &t, const std::vector<Dim> &dims, int64_t Dim::*stride,
                             int64_t batch_dim) {
  const auto elem = static_cast<uint64_t>(t.element_size());
  uint64_t all = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  if (t.size(batch_dim) > 1) all |= static_cast<uint64_t>(t.stride(batch_dim)) * elem;
  for (const Dim &d : dims) all |= static_cast<uint64_t>(d.*stride) * elem;
  return all;
}

} // namespace mmix
