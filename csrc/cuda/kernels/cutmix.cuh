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

// The elements of a piece that are inside the box of a row. A piece has elements at kPlaces places:
// a vector of kEach elements at one, or one element at each.
template <int kPlaces, int kEach> struct Boxes {
  static constexpr bool kPartly = true;
  const BoxArgs &b;
  int64_t y[kPlaces], x[kPlaces];
  // Of a vector, at most kEach: columns with the x of its first one, and with each x after that.
  int first, step;
  __device__ explicit Boxes(const BoxArgs &b_) : b(b_) {}

  // Blocks take neighbouring tiles, and a box covers neighbouring tiles: in this order each block
  // has its part of them.
  __device__ __forceinline__ int64_t tile(int64_t index, int64_t tiles) const {
    return index * b.hop % tiles;
  }
  __device__ bool same_for_all() const { return b.stride == 0; }
  __device__ bool poisons() const { return !b.bits; }
  __device__ void enter(int place, int64_t column) {
    if (column <= UINT32_MAX) // short divisions
      enter_as(place, static_cast<unsigned>(column));
    else
      enter_as(place, column);
  }
  template <class Int> __device__ __forceinline__ void enter_as(int place, Int column) {
    const Int every = static_cast<Int>(b.x_every), pixel = column / every;
    y[place] = column / static_cast<Int>(b.y_every) % static_cast<Int>(b.height);
    x[place] = pixel % static_cast<Int>(b.width);
    if constexpr (kEach > 1) {
      first = static_cast<int>(min(every - (column - pixel * every), Int(kEach)));
      step = static_cast<int>(min(every, Int(kEach)));
    }
  }
  // A bit for each element of a vector that is left of an edge.
  __device__ __forceinline__ unsigned left_of(int64_t edge) const {
    if (edge <= x[0]) return 0;
    const int64_t pixels = edge - x[0];
    const int n = pixels < kEach ? first + static_cast<int>(pixels - 1) * step : kEach;
    return (1u << min(n, kEach)) - 1;
  }
  __device__ unsigned mask(int row) const {
    const int64_t *box = b.box + row * b.stride;
    const int64_t top = load(box), bottom = load(box + 1), left = load(box + 2);
    const int64_t right = load(box + 3); // all four at once: none waits for a comparison
    unsigned inside = 0;
#pragma unroll
    for (int p = 0; p < kPlaces; ++p) {
      const bool in_y = y[p] >= top && y[p] < bottom;
      if constexpr (kEach > 1)
        inside = in_y ? left_of(right) & ~left_of(left) : 0;
      else
        inside |= unsigned(in_y && x[p] >= left && x[p] < right) << p;
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
