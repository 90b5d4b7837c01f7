// CutMix in place: a row is mixed only inside its box. Each element of a sample is a column, and
// one thread walks along the partners of each. Elements outside the boxes are not written.
#pragma once
#include "cuda/kernels/mix.cuh"

namespace mmix {

struct BoxArgs {
  const int64_t *box; // top, bottom, left, right; bottom and right are exclusive
  int64_t stride;     // 4: one box for each row; 0: one box for all rows
  // Column c of a sample is the pixel (c / y_every % height, c / x_every % width).
  int64_t y_every, height, x_every, width;
};

// The boxes as one column sees them.
struct Boxes {
  const BoxArgs &b;
  int64_t y, x;
  __device__ Boxes(const BoxArgs &b_, int64_t column)
      : b(b_), y(column / b.y_every % b.height), x(column / b.x_every % b.width) {}
  __device__ bool cover(int row) const {
    const int64_t *box = b.box + row * b.stride;
    return y >= load(box) && y < load(box + 1) && x >= load(box + 2) && x < load(box + 3);
  }
};

// Shared memory: the links. The only cut row is row 0, whose original value every walk may need. A
// row that is not covered is not written, and is read only as a partner.
template <class T>
__global__ void __launch_bounds__(256, 4) cutmix(const MixArgs<T> a, const BoxArgs b) {
  unsigned *memory = dynamic_shared<unsigned>();
  const Links links = link_all(a.pairing, a.table, memory);
  const Weights<T> weights(a);
  const int64_t columns = a.columns.run * a.columns.runs;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const auto walk = [&](const Boxes &boxes, T *x, int first, T head, T zeroth) {
    T own = head;
    bool known = true; // own holds the row's value
    for (int row = first;;) {
      const int partner = links(row);
      const bool last = partner < 0 || partner == first || partner == 0;
      const bool covered = boxes.cover(row);
      T other{};
      if (covered) {
        T *at = x + row * a.x_row;
        if (partner < 0) {
          store(at, not_a_number<T>());
        } else {
          other = partner == first ? head : partner == 0 ? zeroth : load(x + partner * a.x_row);
          const auto c = weights(row, partner);
          if (!c.keep()) store(at, c(known ? own : load(at), other));
        }
      }
      if (last) return;
      own = other;
      known = covered;
      row = partner;
    }
  };
  for (int64_t base = int64_t{blockIdx.x} * blockDim.x + threadIdx.x - lane; base < columns;
       base += int64_t{a.blocks} * blockDim.x) {
    const bool active = base + lane < columns;
    const int64_t column = active ? base + lane : base;
    const Boxes boxes(b, column);
    T *x = a.out + run_offsets(a.columns, column / a.columns.run).out + column % a.columns.run;
    const T zeroth = load(x);
    if (active) walk(boxes, x, 0, zeroth, zeroth);
    // The lanes of a warp look for starts among 32 rows; then each walks from all of them.
    for (int rows = 0; rows < a.batch; rows += 32) {
      const int mine = rows + lane;
      unsigned found = __ballot_sync(kAll, mine < a.batch && links.starts(mine, a.cut));
      for (; active && found; found &= found - 1) {
        const int first = rows + __ffs(static_cast<int>(found)) - 1;
        walk(boxes, x, first, load(x + first * a.x_row), zeroth);
      }
    }
  }
}

} // namespace mmix
