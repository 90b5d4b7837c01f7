// Emulated kernels run on CPU tensors: no device to guard. Every op opens with a guard, which here
// tells the emulator that the buffers of the op before are gone.
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
