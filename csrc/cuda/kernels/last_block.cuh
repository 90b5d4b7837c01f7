// Which block of a launch is the last one to finish: it sums what the others wrote. Each launch has
// a counter of blocks that is 0 before and after it.
#pragma once
#include <cuda_runtime.h>

namespace mmix {

#ifdef MMIX_EMULATED
constexpr int kTickets = 4; // so that a test uses them up
#else
constexpr int kTickets = 16384;
#endif
static __device__ unsigned finished_blocks[kTickets]; // 0 when the code is loaded

// The counter of a launch: that of its ticket or, if that is negative, `finished`. Launches that
// may run at the same time have different ones (see tickets.h).
struct LastBlock {
  int ticket;
  unsigned *finished;
};

// True in the last block, for one thread of each block. Stores of that thread before it are visible
// to the last block after it. The last block leaves the counter at 0.
__device__ __forceinline__ bool is_last_block(const LastBlock &last) {
  unsigned *finished = last.ticket < 0 ? last.finished : finished_blocks + last.ticket;
  __threadfence(); // this thread's stores come before its count
  const bool is = atomicInc(finished, gridDim.x - 1) == gridDim.x - 1;
  __threadfence(); // the loads of what other blocks stored come after all counts
  return is;
}

} // namespace mmix
