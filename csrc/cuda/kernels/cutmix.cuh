// CutMix in place: a row is mixed only inside its box. It is a gather of the pieces that boxes
// cover. Elements outside the boxes keep their values.
#pragma once
#include "cuda/kernels/mix_gather.cuh"

namespace mmix {

struct BoxArgs {
  const int64_t *box; // top, bottom, left, right; bottom and right are exclusive
  int64_t stride;     // 4: one box for each row; 0: one box for all rows
  // Column c of a sample is the pixel (c / y_every % height, c / x_every % width).
  int64_t y_every, height, x_every, width;
  // Whether aligned vectors of so many columns have one y, and consecutive x or one x.
  template <int kCount> bool in_vectors() const {
    return y_every % kCount == 0 && (x_every == 1 || x_every % kCount == 0);
  }
};

// The elements of a piece that are inside the box of a row.
template <int kCount> struct Boxes {
  static constexpr bool kPartly = kCount > 1;
  static constexpr unsigned kAll = (1u << kCount) - 1;
  const BoxArgs &b;
  int64_t y = 0, x = 0;
  __device__ explicit Boxes(const BoxArgs &b_) : b(b_) {}
  // Whether any row may have the piece at this column inside its box.
  __device__ bool move_to(int64_t column) {
    if (column <= UINT32_MAX) { // short divisions
      const auto c = static_cast<unsigned>(column);
      y = c / static_cast<unsigned>(b.y_every) % static_cast<unsigned>(b.height);
      x = c / static_cast<unsigned>(b.x_every) % static_cast<unsigned>(b.width);
    } else {
      y = column / b.y_every % b.height;
      x = column / b.x_every % b.width;
    }
    return b.stride != 0 || mask(0) != 0;
  }
  __device__ unsigned mask(int row) const {
    const int64_t *box = b.box + row * b.stride;
    const int64_t top = load(box), bottom = load(box + 1), left = load(box + 2);
    const int64_t right = load(box + 3); // all four at once: none waits for a comparison
    if (y < top || y >= bottom) return 0;
    if (kCount == 1 || b.x_every != 1) return x >= left && x < right ? kAll : 0;
    unsigned inside = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) inside |= unsigned(x + i >= left && x + i < right) << i;
    return inside;
  }
};

template <class T, bool kVectors>
__global__ void __launch_bounds__(kGatherThreads, 1) cutmix(const MixArgs<T> a, const BoxArgs b) {
  gather_block<T, kVectors, true, true>(a, Boxes<Pieces<T, kVectors>::kCount>(b));
}

} // namespace mmix
