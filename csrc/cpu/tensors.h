// Shared by the CPU ops: dtypes, λ, new tensors, and the least work of a thread.
#pragma once
#include "cpu/kernels.h"
#include "scalar_types.h"
#include <algorithm>
#include <cstdint>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <type_traits>
#include <vector>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace mmix {

using torch::stable::Tensor;

// Calls f with a null pointer of the C++ type that `type` names.
template <class F> decltype(auto) visit(DType type, const F &f) {
  return visit_dtype<c10::Half, c10::BFloat16>(type, f);
}

template <class F> decltype(auto) visit_target(DType type, const F &f) {
  return type == kByte ? f(static_cast<uint8_t *>(nullptr)) : visit(type, f);
}

inline double read(const void *p, DType type, int64_t i) {
  return visit(type, [&](auto *t) {
    return static_cast<double>(static_cast<const std::remove_pointer_t<decltype(t)> *>(p)[i]);
  });
}

inline void write(void *p, DType type, int64_t i, double v) {
  visit(type, [&](auto *t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if constexpr (sizeof(T) == 2)
      static_cast<T *>(p)[i] = static_cast<float>(v);
    else
      static_cast<T *>(p)[i] = static_cast<T>(v);
  });
}

// λ and 1-λ of each row, from a 0-dim or (B,) tensor. λ is rounded to the dtype of the arithmetic
// first, and 1-λ is computed in that dtype.
struct Lam {
  Lam(const Tensor &lam, bool is_wide)
      : data(lam.const_data_ptr()), type(dtype_of(lam.scalar_type())), wide(is_wide),
        per_sample(lam.dim() == 1), stride(per_sample ? lam.stride(0) : 0) {
    if (!per_sample) {
      shared = rounded(0);
      shared_other = complement(shared);
    }
  }
  double own(int64_t i) const { return per_sample ? rounded(i * stride) : shared; }
  double other(int64_t i) const { return per_sample ? complement(own(i)) : shared_other; }
  double rounded(int64_t at) const {
    const double l = read(data, type, at);
    return wide ? l : static_cast<float>(l);
  }
  double complement(double l) const {
    return wide ? 1.0 - l : static_cast<double>(1.0f - static_cast<float>(l));
  }
  const void *data;
  DType type;
  bool wide, per_sample;
  int64_t stride;
  double shared = 0, shared_other = 0; // computed once: in short rows the cost matters
};

// lam*a + (1-lam)*b, computed in A. A term with a coefficient of 0 is absent.
template <class A> struct Blend {
  A own, other;
  A operator()(A a, A b) const {
    if (other == 0) return a;
    if (own == 0) return b;
    return own * a + other * b;
  }
};

// The allocator takes large blocks directly from the operating system. Asking for huge pages before
// the first write avoids most page faults, which would cost more than the arithmetic.
inline void expect_writes(void *p, int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kHuge = 2u << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(p) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(p) + bytes) / kHuge * kHuge;
  if (end > begin)
    madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE); // a hint: may fail
#endif
}

// A result of at least this size leaves the caches before it is read again. Storing it past the
// caches saves reading the cache lines that it overwrites.
constexpr int64_t kStreamBytes = 16 << 20;

inline bool streams(const Tensor &out) {
  return out.numel() * element_size(dtype_of(out.scalar_type())) >= kStreamBytes;
}

// An uninitialised contiguous CPU tensor, made without the dispatcher, which costs a microsecond.
// That matters for small losses.
inline Tensor fresh(const std::vector<int64_t> &sizes, ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size());
  int64_t numel = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = numel;
    numel *= std::max<int64_t>(sizes[d], 1);
  }
  AtenTensorHandle handle;
  const auto type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  const AOTITorchError error =
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               type, aoti_torch_device_type_cpu(), 0, &handle);
  STD_TORCH_CHECK(error == 0, "no memory for a tensor of ", numel, " elements");
  return Tensor(handle);
}

inline Tensor fresh_like(const Tensor &x) {
  const auto sizes = x.sizes();
  Tensor out = x.is_contiguous()
                   ? fresh(std::vector<int64_t>(sizes.begin(), sizes.end()), x.scalar_type())
                   : torch::stable::empty_like(x);
  expect_writes(out.mutable_data_ptr(), out.numel() * element_size(dtype_of(out.scalar_type())));
  return out;
}

// If fewer bytes than this are moved for each thread, a second thread costs more than it saves.
constexpr int64_t kBytesPerThread = 32768;
// In place, two threads read and write scattered rows of one tensor, and so share its cache lines.
// Below the size of an L2 cache, one thread is faster, because it finds all of them in its cache.
constexpr int64_t kInPlaceBytesPerThread = 512 << 10;

// Defined in mix.cpp. mix_batch_ uses it too.
void mix_(Tensor x, Tensor perm, Tensor lam, int64_t dim);

} // namespace mmix
