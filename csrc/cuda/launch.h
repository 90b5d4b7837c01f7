// Shared by the .cu files: device, stream, pointers, dtype switch, checked launches. The block and
// grid heuristics are in the *_plan.h files of this folder, one for each kernel family.
#pragma once
// This function is in libtorch_cuda.so, which a CPU build of torch does not have. It is weak, so
// that the extension loads there too.
#pragma weak aoti_torch_get_current_cuda_stream
#include "cuda/kernels/dtypes.cuh"
#include "scalar_types.h"
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

// torch declares it only if USE_CUDA is defined, which it is not in a CPU build.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void **stream);

#ifndef MMIX_NAMESPACE
#define MMIX_NAMESPACE mmix_fast
#endif
#ifndef MMIX_DEVICE_KEY
#define MMIX_DEVICE_KEY CUDA
#endif
#ifndef MMIX_DEVICE_POINTER // the emulator records what a kernel may access
#define MMIX_DEVICE_POINTER(p, bytes, writable) (p)
#endif

namespace mmix {

using torch::stable::Tensor;

inline void check_cuda(cudaError_t error, const char *doing) {
  STD_TORCH_CHECK(error == cudaSuccess, doing, ": ", cudaGetErrorString(error));
}

// Makes the tensor's device the current one during its lifetime. Holds torch's current stream
// there.
class OnDevice {
public:
  explicit OnDevice(const Tensor &t) : guard_(t.get_device_index()), device_(t.get_device_index()) {
    void *stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream) == 0,
                    "no current CUDA stream");
    stream_ = static_cast<cudaStream_t>(stream);
    // This library has its own, statically linked CUDA runtime, which may not have seen torch
    // choose the device.
    check_cuda(cudaSetDevice(device_), "cudaSetDevice");
  }
  int attribute(cudaDeviceAttr what) const {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, what, device_), "cudaDeviceGetAttribute");
    return value;
  }
  int multiprocessors() const { return attribute(cudaDevAttrMultiProcessorCount); }
  // The most dynamic shared memory a block may have, after opting in.
  int shared_bytes() const { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

  template <class... P, class... A>
  void launch(void (*kernel)(P...), dim3 grid, unsigned block, size_t shared, A... args) const {
    launch_clusters(1, kernel, grid, block, shared, args...);
  }
  // Groups every `cluster` neighbouring blocks into a cluster.
  template <class... P, class... A>
  void launch_clusters(unsigned cluster, void (*kernel)(P...), dim3 grid, unsigned block,
                       size_t shared, A... args) const {
    constexpr size_t kWithoutAsking = 48 * 1024;
    if (shared > kWithoutAsking)
      check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared)),
                 "cudaFuncSetAttribute");
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(block);
    config.dynamicSmemBytes = shared;
    config.stream = stream_;
    cudaLaunchAttribute together{};
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim.x = cluster;
    together.val.clusterDim.y = together.val.clusterDim.z = 1;
    config.attrs = &together;
    config.numAttrs = cluster > 1 ? 1 : 0;
    check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...), "kernel launch");
  }

private:
  torch::stable::accelerator::DeviceGuard guard_;
  int device_;
  cudaStream_t stream_ = nullptr;
};

// The bytes from the first to the last element of a strided tensor.
inline size_t extent(const Tensor &t) {
  if (t.numel() == 0) return 0;
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  return static_cast<size_t>(last + 1) * t.element_size();
}

template <class T> const T *input(const Tensor &t) {
  return MMIX_DEVICE_POINTER(static_cast<const T *>(t.const_data_ptr()), extent(t), false);
}
template <class T> T *output(const Tensor &t) {
  return MMIX_DEVICE_POINTER(static_cast<T *>(t.mutable_data_ptr()), extent(t), true);
}

// Calls body.template operator()<T>() with the element type of a floating dtype.
template <class Body> void with_dtype(ScalarType type, const Body &body) {
  visit(dtype_of(type), [&]<class T>(T *) { body.template operator()<T>(); });
}

} // namespace mmix
