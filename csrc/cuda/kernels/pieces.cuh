// What a thread of a gather moves at a time: some elements of a row. Also which of them are mixed:
// all (Everything, here), or those inside a box (cutmix.cuh).
#pragma once
#include "cuda/kernels/mix.cuh"
#include "cuda/kernels/vectors.cuh"
#include <type_traits>

namespace mmix {

// The offset of `row` rows. Bytes, as one multiplication and addition give them.
template <class T> __device__ __forceinline__ T *row_of(T *start, int64_t stride, int row) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  const auto bytes = static_cast<uint64_t>(stride) * sizeof(T);
  return reinterpret_cast<T *>(reinterpret_cast<Byte *>(start) +
                               static_cast<unsigned>(row) * bytes);
}

// A piece, and where it is in row 0 of x and of out. The mask has a bit for each element that is
// there and that some row mixes.
template <class T, bool kVectors, bool kInPlace = false> struct Pieces;

// Aligned 16-byte vectors.
template <class T, bool kInPlace> struct Pieces<T, true, kInPlace> {
  using Piece = Vec<T>;
  static constexpr int kCount = Vec<T>::kCount, kPlaces = 1;
  static constexpr unsigned kAll = (1u << kCount) - 1;
  static constexpr bool whole = true; // a vector has all its elements
  int64_t x, out;
  unsigned mask;

  static __host__ __device__ int64_t tiles(const Columns &c, int lanes) {
    return tile_count(c, lanes * kCount);
  }
  template <class Cover>
  __device__ __forceinline__ void find(const Columns &c, int lanes, int64_t tile, int lane,
                                       Cover &cover) {
    const TilePlace at(c, lanes * kCount, tile);
    x = at.x + lane * kCount;
    out = at.out + lane * kCount;
    mask = lane * kCount < at.n ? kAll : 0;
    if (mask) cover.enter(0, at.column + lane * kCount);
  }
  // A row of x, or of out, seen from the piece: rows are then increments.
  __device__ __forceinline__ const T *from(const T *start) const { return start + x; }
  __device__ __forceinline__ T *to(T *start) const { return start + out; }
  template <bool> __device__ __forceinline__ Piece load_piece(const T *row, unsigned) const {
    return load_vec(row);
  }
  __device__ __forceinline__ void store_piece(T *row, Piece v, unsigned) const {
    store_vec(row, v);
  }
  static __device__ __forceinline__ Piece mixed(Piece a, Piece b, Coefficients<Acc<T>> c) {
    return mix_any(a, b, c);
  }
  static __device__ __forceinline__ Piece both(Piece a, Piece b, Coefficients<Acc<T>> c) {
    return mix_both(a, b, c);
  }
  static __device__ __forceinline__ Piece nan() { return vector_of_nan<T>(); }
  // A vector is stored as a whole, so that it needs the row's own elements outside the mask.
  static constexpr bool kBlends = true;
  static __device__ __forceinline__ Piece blend(Piece own, Piece v, unsigned mask) {
    return select_elements(own, v, mask);
  }
};

// Single elements, anywhere: a lane has every lanes-th of the tile's, so that lanes read
// neighbours.
template <class T, bool kInPlace> struct Pieces<T, false, kInPlace> {
  static constexpr int kCount = sizeof(T) == 8 ? 2 : sizeof(T) == 1 ? 8 : 4, kPlaces = kCount;
  static constexpr unsigned kAll = (1u << kCount) - 1;
  union Piece {
    std::conditional_t<kCount * sizeof(T) == 16, uint4, uint2> raw; // moved at once
    T at[kCount];
  };
  int64_t x[kCount], out[kCount];
  unsigned mask;
  bool whole; // the tile: all its lanes have all their elements

  static __host__ __device__ int64_t tiles(const Columns &c, int lanes) { // of any columns
    return (c.run * c.runs + lanes * kCount - 1) / (lanes * kCount);
  }
  template <class Cover>
  __device__ __forceinline__ void find(const Columns &c, int lanes, int64_t tile, int lane,
                                       Cover &cover) {
    mask = 0;
    whole = (tile + 1) * kCount * lanes <= c.run * c.runs;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const int64_t column = (tile * kCount + k) * lanes + lane;
      if (column >= c.run * c.runs) continue;
      mask |= 1u << k;
      cover.enter(k, column);
      x[k] = out[k] = column;
      if (c.runs == 1 && c.dims == 0) continue; // without divisions
      const int64_t in_run = column % c.run;
      const Offsets o = run_offsets(c, column / c.run);
      x[k] = o.x + in_run;
      out[k] = o.out + in_run;
    }
  }
  __device__ __forceinline__ const T *from(const T *start) const { return start; }
  __device__ __forceinline__ T *to(T *start) const { return start; }
  // With kWhole there is no test for each element.
  template <bool kWhole>
  __device__ __forceinline__ Piece load_piece(const T *row, unsigned mask_) const {
    Piece v;
#pragma unroll
    for (int k = 0; k < kCount; ++k)
      if (kWhole || mask_ >> k & 1) v.at[k] = load(row + x[k]);
    return v;
  }
  __device__ __forceinline__ void store_piece(T *row, Piece v, unsigned mask_) const {
#pragma unroll
    for (int k = 0; k < kCount; ++k)
      if (mask_ >> k & 1) store(row + (kInPlace ? x[k] : out[k]), v.at[k]); // fewer registers
  }
  static __device__ __forceinline__ Piece mixed(Piece a, Piece b, Coefficients<Acc<T>> c) {
    Piece y;
#pragma unroll
    for (int k = 0; k < kCount; ++k) y.at[k] = c(a.at[k], b.at[k]);
    return y;
  }
  static __device__ __forceinline__ Piece both(Piece a, Piece b, Coefficients<Acc<T>> c) {
    Piece y;
#pragma unroll
    for (int k = 0; k < kCount; ++k) y.at[k] = c.both(a.at[k], b.at[k]);
    return y;
  }
  static __device__ __forceinline__ Piece nan() {
    Piece y;
#pragma unroll
    for (int k = 0; k < kCount; ++k) y.at[k] = not_a_number<T>();
    return y;
  }
  static constexpr bool kBlends = false;
  static __device__ __forceinline__ Piece blend(Piece, Piece v, unsigned) { return v; }
};

// Every element of every row is mixed.
struct Everything {
  static constexpr bool kPartly = false;
  __device__ void enter(int, int64_t) {}
  __device__ int64_t tile(int64_t index, int64_t) const { return index; }
  __device__ bool same_for_all() const { return true; }
  __device__ bool poisons() const { return true; }
  __device__ unsigned mask(int) const { return ~0u; }
};

} // namespace mmix
