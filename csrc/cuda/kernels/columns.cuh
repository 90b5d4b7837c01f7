// The columns of a sample: runs of contiguous elements. The other dimensions give the offset of
// each run.
#pragma once
#include <cstdint>
#include <cuda_runtime.h>

namespace mmix {

constexpr int kMaxDims = 8;

struct Columns {
  int64_t run, runs; // elements of a run; number of runs
  int dims;          // the other dimensions, smallest stride first
  int64_t size[kMaxDims], x_stride[kMaxDims], out_stride[kMaxDims];
};

struct Offsets {
  int64_t x, out;
};

__device__ __forceinline__ Offsets run_offsets(const Columns &c, int64_t run) {
  Offsets o{0, 0};
#pragma unroll 1 // a dynamic index into kernel parameters is cheap, eight divisions are not
  for (int d = 0; d < c.dims; ++d) {
    const int64_t k = run % c.size[d];
    run /= c.size[d];
    o.x += k * c.x_stride[d];
    o.out += k * c.out_stride[d];
  }
  return o;
}

// The number of tiles of `width` columns. A tile lies within one run.
__host__ __device__ inline int64_t tile_count(const Columns &c, int width) {
  return (c.run + width - 1) / width * c.runs;
}
struct TilePlace {
  int64_t column, x, out; // its first column, and the offsets of that
  int n;
  __device__ __forceinline__ TilePlace(const Columns &c, int width, int64_t index) {
    if (c.runs == 1 && c.dims == 0) { // without divisions
      column = x = out = index * width;
      n = static_cast<int>(c.run - x < width ? c.run - x : width);
      return;
    }
    const int64_t per_run = (c.run + width - 1) / width, run = index / per_run;
    const int64_t in_run = index % per_run * width;
    const Offsets o = run_offsets(c, run);
    column = run * c.run + in_run;
    x = o.x + in_run;
    out = o.out + in_run;
    n = static_cast<int>(c.run - in_run < width ? c.run - in_run : width);
  }
};

} // namespace mmix
