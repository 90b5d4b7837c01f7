// Shared by the .cu files: device, stream, pointers, dtype switch, checked launches. The block and
// grid heuristics are in the *_plan.h files of this folder, one for each kernel family.
#pragma once
// This function is in libtorch_cuda.so, which a CPU build of torch does not have. It is weak, so
// that the extension loads there too.
#pragma weak aoti_torch_get_current_cuda_stream
#include "cuda/kernels/dtypes.cuh"
#include "scalar_types.h"
#include <algorithm>
#include <cuda_runtime.h>
#include <map>
#include <mutex>
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
#ifndef MMIX_DEVICE_NUMBER // the emulator is one device after another
#define MMIX_DEVICE_NUMBER(index) (index)
#endif

namespace mmix {

using torch::stable::Tensor;

inline void check_cuda(cudaError_t error, const char *doing) {
  STD_TORCH_CHECK(error == cudaSuccess, doing, ": ", cudaGetErrorString(error));
}

// What the compiler made of a kernel, for one device.
struct Kernel {
  int registers; // of a thread
  int code;      // the architecture of the PTX it comes from, 90 for sm_90
};

// What plans depend on. Asked once for each device.
struct Device {
  int multiprocessors;
  int shared;                     // bytes that a block may have, after opting in
  int shared_of_sm;               // bytes of a multiprocessor
  int reserved;                   // bytes of shared memory that the device takes for each block
  int registers, threads, blocks; // of a multiprocessor
  bool clusters;

  // The most threads of a multiprocessor that have these registers.
  int threads_for(const Kernel &k) const {
    const int of_warp = (k.registers + 7) / 8 * 8 * 32; // allocated by 256
    return std::min(threads, registers / of_warp * 32);
  }
  // The blocks of a kernel that a multiprocessor runs at the same time; at least 1.
  int resident(const Kernel &k, unsigned threads_of_block, int64_t shared_of_block) const {
    const int64_t by_threads = threads_for(k) / ((threads_of_block + 31) / 32 * 32);
    const int64_t by_shared =
        shared_of_sm / (shared_of_block + reserved + (shared_of_block + reserved == 0));
    return static_cast<int>(std::clamp<int64_t>(std::min(by_threads, by_shared), 1, blocks));
  }
};

// A value for each key, made once; for any number of host threads.
template <class Key, class Value> class Once {
public:
  template <class Make> const Value &of(const Key &key, const Make &make) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = values_.find(key);
    return found != values_.end() ? found->second : values_.emplace(key, make()).first->second;
  }

private:
  std::mutex mutex_;
  std::map<Key, Value> values_; // its values stay where they are
};

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
  const Device &device() const {
    static Once<int, Device> known;
    return known.of(MMIX_DEVICE_NUMBER(device_), [this] {
      return Device{attribute(cudaDevAttrMultiProcessorCount),
                    attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                    attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
                    attribute(cudaDevAttrReservedSharedMemoryPerBlock),
                    attribute(cudaDevAttrMaxRegistersPerMultiprocessor),
                    attribute(cudaDevAttrMaxThreadsPerMultiProcessor),
                    attribute(cudaDevAttrMaxBlocksPerMultiprocessor),
                    attribute(cudaDevAttrClusterLaunch) != 0};
    });
  }
  int multiprocessors() const { return device().multiprocessors; }

  // Lets the kernel have all shared memory of a block. No later call takes that back, so that host
  // threads cannot lower it under each other.
  template <class... P> const Kernel &kernel(void (*kernel)(P...)) const {
    static Once<std::pair<int, const void *>, Kernel> known;
    const void *key = reinterpret_cast<const void *>(kernel);
    return known.of({MMIX_DEVICE_NUMBER(device_), key}, [&] {
      cudaFuncAttributes made;
      check_cuda(cudaFuncGetAttributes(&made, kernel), "cudaFuncGetAttributes");
      check_cuda(cudaFuncSetAttribute(key, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      device().shared - static_cast<int>(made.sharedSizeBytes)),
                 "cudaFuncSetAttribute");
      return Kernel{made.numRegs, made.ptxVersion};
    });
  }
  // Whether the kernel can run in clusters. Code that the driver compiled from the PTX of an older
  // architecture has no cluster barrier.
  template <class... P> bool clusters(void (*kernel_)(P...)) const {
    return device().clusters && kernel(kernel_).code >= 90;
  }

  // A number of the stream that no other stream has, nor had.
  std::pair<int, unsigned long long> stream() const {
    unsigned long long id = 0;
    check_cuda(cudaStreamGetId(stream_, &id), "cudaStreamGetId");
    return {device_, id};
  }
  // Whether launches go into a graph.
  bool capturing() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check_cuda(cudaStreamIsCapturing(stream_, &status), "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
  }

  template <class... P, class... A>
  void launch(void (*kernel)(P...), dim3 grid, unsigned block, size_t shared, A... args) const {
    launch_as(nullptr, kernel, grid, block, shared, args...);
  }
  // Groups every `cluster` neighbouring blocks into a cluster.
  template <class... P, class... A>
  void launch_clusters(unsigned cluster, void (*kernel)(P...), dim3 grid, unsigned block,
                       size_t shared, A... args) const {
    cudaLaunchAttribute together{};
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim.x = cluster;
    together.val.clusterDim.y = together.val.clusterDim.z = 1;
    launch_as(cluster > 1 ? &together : nullptr, kernel, grid, block, shared, args...);
  }
  // All blocks of the grid run at the same time, so that they can wait for each other: at most one
  // for each multiprocessor.
  template <class... P, class... A>
  void launch_together(void (*kernel)(P...), dim3 grid, unsigned block, size_t shared,
                       A... args) const {
    cudaLaunchAttribute together{};
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    launch_as(&together, kernel, grid, block, shared, args...);
  }

private:
  template <class... P, class... A>
  void launch_as(cudaLaunchAttribute *attribute, void (*kernel_)(P...), dim3 grid, unsigned block,
                 size_t shared, A... args) const {
    kernel(kernel_); // the first launch sets its limit of shared memory
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(block);
    config.dynamicSmemBytes = shared;
    config.stream = stream_;
    config.attrs = attribute;
    config.numAttrs = attribute ? 1 : 0;
    check_cuda(cudaLaunchKernelEx(&config, kernel_, static_cast<P>(args)...), "kernel launch");
  }

  torch::stable::accelerator::DeviceGuard guard_;
  int device_;
  cudaStream_t stream_ = nullptr;
};

// The size of a batch for a kernel, which counts its rows in 32 bits.
inline int checked_batch(int64_t batch) {
  STD_TORCH_CHECK(batch <= 1 << 30, "the batch must have at most 2^30 samples, got ", batch);
  return static_cast<int>(batch);
}

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
