// A random permutation of a batch of any size, computed for each row alone.
#pragma once
#include "cuda/kernels/philox.cuh"

namespace mmix {

// The cells of Shuffle: nearly a square, and at least as many as the batch has rows.
struct Grid {
  unsigned batch, width, height;
  __host__ __device__ explicit Grid(unsigned batch_)
      : batch(batch_), width(1 + static_cast<unsigned>(sqrt(static_cast<double>(batch_)))),
        height((batch_ + width - 1) / width) {}
};

// A Feistel network over the cells of the grid: it turns each row, then each column, by a random
// number of its own (Black and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002). The
// few cells beyond the batch are passed through until a row of the batch comes.
class Shuffle {
public:
  __device__ Shuffle(const Grid &grid, const Philox &draw) : grid_(grid), draw_(draw) {}

  __device__ unsigned operator()(unsigned row) const {
    do {
      unsigned y = row / grid_.width, x = row % grid_.width;
#pragma unroll 1
      for (unsigned round = 0; round < kRounds; ++round) {
        y += turn(round, x, 0, grid_.height);
        if (y >= grid_.height) y -= grid_.height;
        x += turn(round, y, 1, grid_.width);
        if (x >= grid_.width) x -= grid_.width;
      }
      row = y * grid_.width + x;
    } while (row >= grid_.batch);
    return row;
  }
  __device__ unsigned inverse(unsigned row) const {
    do {
      unsigned y = row / grid_.width, x = row % grid_.width;
#pragma unroll 1
      for (unsigned round = kRounds; round-- > 0;) {
        x += grid_.width - turn(round, y, 1, grid_.width);
        if (x >= grid_.width) x -= grid_.width;
        y += grid_.height - turn(round, x, 0, grid_.height);
        if (y >= grid_.height) y -= grid_.height;
      }
      row = y * grid_.width + x;
    } while (row >= grid_.batch);
    return row;
  }

private:
  // With 5, permutations of 6 rows are not equally likely; with 8, no test tells them apart.
  static constexpr unsigned kRounds = 8;

  // A random number below size, for a coordinate.
  __device__ unsigned turn(unsigned round, unsigned coordinate, unsigned half,
                           unsigned size) const {
    const uint4 bits = draw_(make_uint4(coordinate, kShuffle, round, half));
    return static_cast<unsigned>(uint64_t{bits.x} * size >> 32);
  }

  const Grid grid_;
  const Philox draw_;
};

} // namespace mmix
