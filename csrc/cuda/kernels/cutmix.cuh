// CutMix in place: a row is mixed only inside its box. Each element of a sample is a column, so
// this is the walk of mix_strided, by one thread for each column. Elements outside the boxes are
// not written.
#pragma once
#include "cuda/kernels/mix.cuh"

namespace mmix {

struct BoxArgs {
  const int64_t *box; // top, bottom, left, right; bottom and right are exclusive
  int64_t stride;     // 4: one box for each row; 0: one box for all rows
  // Column c of a sample is the pixel (c / y_every % height, c / x_every % width).
  int64_t y_every, height, x_every, width;
};

template <class T> struct BoxWeights {
  const Weights<T> &weights;
  const BoxArgs &b;
  int64_t y, x;
  __device__ BoxWeights(const Weights<T> &weights_, const BoxArgs &b_, int64_t column)
      : weights(weights_), b(b_), y(column / b.y_every % b.height),
        x(column / b.x_every % b.width) {}
  __device__ bool covers(int row) const {
    const int64_t *box = b.box + row * b.stride;
    return y >= load(box) && y < load(box + 1) && x >= load(box + 2) && x < load(box + 3);
  }
  __device__ auto operator()(int row, int partner) const { return weights(row, partner); }
};

template <class T>
__global__ void __launch_bounds__(256, 4) cutmix(const MixArgs<T> a, const BoxArgs b) {
  const Weights<T> weights(a);
  mix_strided_block(a, [&](int64_t column) { return BoxWeights<T>(weights, b, column); });
}

} // namespace mmix
