// Emulated kernels run on CPU tensors: no device to guard. Every op begins with a guard, which here
// tells the emulator to forget the buffers of the previous op.
#pragma once
#define DeviceGuard TorchDeviceGuard
#include_next <torch/csrc/stable/accelerator.h>
#undef DeviceGuard
#include "../../../../cuda_emulator.h"

namespace torch::stable::accelerator {

struct DeviceGuard {
  explicit DeviceGuard(int) { emu::begin_operation(); }
};

} // namespace torch::stable::accelerator
