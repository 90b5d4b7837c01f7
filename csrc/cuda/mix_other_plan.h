// Plans the launch of a stream over rows (mix_other.cuh): the lanes of a row, and how many rows a
// unit has.
#pragma once
#include "cuda/kernels/mix_other.cuh"
#include "cuda/launch.h"
#include <algorithm>
#include <bit>

namespace mmix {

struct StreamPlan {
  Units units;
  unsigned blocks;
};

// Units are as tall as leaves two for each block that the device runs at a time, and at least so
// tall that each thread has `at_once` rows.
template <class T, bool kVectors>
StreamPlan plan_stream(const Columns &c, int batch, int at_once, const Device &device,
                       const Kernel &kernel) {
  using P = Pieces<T, kVectors>;
  const int64_t columns = kVectors ? c.run : c.run * c.runs; // that a tile may span
  const int64_t pieces = (columns + P::kCount - 1) / P::kCount;
  Units units{batch, batch, 1, 1};
  units.lanes =
      static_cast<int>(std::bit_ceil(static_cast<uint64_t>(std::min<int64_t>(pieces, 32))));
  units.tiles = P::tiles(c, units.lanes);
  const int least = kStreamThreads / units.lanes * at_once;
  const int64_t at_a_time =
      int64_t{device.multiprocessors} * device.resident(kernel, kStreamThreads, 0);
  const int64_t wanted = std::max<int64_t>(1, (2 * at_a_time + units.tiles - 1) / units.tiles);
  const int64_t steps = (batch + wanted * least - 1) / (wanted * least);
  units.rows = static_cast<int>(std::min<int64_t>(steps * least, batch));
  const int64_t count = (batch + units.rows - 1) / units.rows * units.tiles;
  return {units, static_cast<unsigned>(std::min(count, at_a_time))};
}

} // namespace mmix
