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
  int64_t hop; // from one tile to the next, modulo their number; they have no common divisor
  bool bits;   // elements without a NaN: a row with a bad entry of perm stays as it is
  // Whether aligned vectors of so many columns have one y, and an x that does not fall.
  template <int kCount> bool in_vectors() const {
    return y_every % kCount == 0 && x_every * width % kCount == 0;
  }
};

// The elements of a piece that are inside the box of a row. A piece has elements at kPlaces places,
// kEach consecutive ones at each.
template <int kPlaces, int kEach> struct Boxes {
  static constexpr bool kPartly = true;
  const BoxArgs &b;
  int64_t y[kPlaces], x[kPlaces];
  int64_t same; // columns before a vector that have the x of its first one
  __device__ explicit Boxes(const BoxArgs &b_) : b(b_) {}

  // Blocks take neighbouring tiles, and a box covers neighbouring tiles: in this order each block
  // has its part of them.
  __device__ __forceinline__ int64_t tile(int64_t index, int64_t tiles) const {
    return index * b.hop % tiles;
  }
  __device__ bool same_for_all() const { return b.stride == 0; }
  __device__ bool poisons() const { return !b.bits; }
  __device__ void enter(int place, int64_t column) {
    if (column <= UINT32_MAX) { // short divisions
      const auto c = static_cast<unsigned>(column);
      y[place] = c / static_cast<unsigned>(b.y_every) % static_cast<unsigned>(b.height);
      x[place] = c / static_cast<unsigned>(b.x_every) % static_cast<unsigned>(b.width);
    } else {
      y[place] = column / b.y_every % b.height;
      x[place] = column / b.x_every % b.width;
    }
    if (kEach > 1) same = b.x_every == 1 ? 0 : column % b.x_every;
  }
  // The elements at a place that are left of an edge.
  __device__ __forceinline__ unsigned left_of(int64_t edge, int place) const {
    if (kEach == 1 || edge <= x[place]) return edge > x[place];
    const int64_t pixels = edge - x[place]; // the product could overflow where this is large
    const int64_t columns = pixels < kEach ? pixels * b.x_every - same : kEach;
    return columns < kEach ? (1u << columns) - 1 : (1u << kEach) - 1;
  }
  __device__ unsigned mask(int row) const {
    const int64_t *box = b.box + row * b.stride;
    const int64_t top = load(box), bottom = load(box + 1), left = load(box + 2);
    const int64_t right = load(box + 3); // all four at once: none waits for a comparison
    unsigned inside = 0;
#pragma unroll
    for (int p = 0; p < kPlaces; ++p) {
      if (y[p] >= top && y[p] < bottom)
        inside |= (left_of(right, p) & ~left_of(left, p)) << (p * kEach);
    }
    return inside;
  }
};

template <class T, bool kVectors>
__global__ void __launch_bounds__(kGatherThreads, 1) cutmix(const MixArgs<T> a, const BoxArgs b) {
  using P = Pieces<T, kVectors>;
  gather_block<T, kVectors, true>(a, Boxes<P::kPlaces, P::kCount / P::kPlaces>(b));
}

} // namespace mmix
