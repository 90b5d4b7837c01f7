// Random bits as a function of a key and a counter: Philox4x32-10 of Salmon et al., Parallel random
// numbers: as easy as 1, 2, 3 (SC 2011). No state: each thread asks for the bits that it needs.
#pragma once
#include <cstdint>
#include <cuda_runtime.h>

namespace mmix {

// What a counter is for: its second word. Counters that differ here share no bits.
enum Stream : unsigned { kFirstGamma, kSecondGamma, kExponentials, kSortKeys, kShuffle };

class Philox {
public:
  __device__ __forceinline__ Philox(unsigned low, unsigned high) : low_(low), high_(high) {}

  // 128 bits for each counter. Different counters and keys give independent bits.
  __device__ __forceinline__ uint4 operator()(uint4 counter) const {
    unsigned low = low_, high = high_;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
      const uint64_t a = uint64_t{0xD2511F53u} * counter.x, b = uint64_t{0xCD9E8D57u} * counter.z;
      counter =
          make_uint4(static_cast<unsigned>(b >> 32) ^ counter.y ^ low, static_cast<unsigned>(b),
                     static_cast<unsigned>(a >> 32) ^ counter.w ^ high, static_cast<unsigned>(a));
      low += 0x9E3779B9u;  // golden ratio
      high += 0xBB67AE85u; // sqrt(3) - 1
    }
    return counter;
  }

private:
  unsigned low_, high_;
};

// In (0, 1], never 0, so that its log is finite.
__device__ __forceinline__ float uniform(unsigned bits) {
  return fmaf(static_cast<float>(bits), 0x1p-32f, 0x1p-33f);
}

} // namespace mmix
