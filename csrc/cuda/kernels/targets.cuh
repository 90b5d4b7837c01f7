// Soft targets, written once: lam*q(y) + (1-lam)*q(y[perm]) as (B, C, inner), contiguous. The
// dtypes of target and result are known only at run time: this part of a launch is small, and so
// one kernel for each dtype of the activations serves every pair of dtypes. A is the type of the
// arithmetic.
#pragma once
#include "cuda/kernels/dtypes.cuh"
#include "cuda/kernels/pairing.cuh"
#include "cuda/kernels/tile.cuh"
#include <type_traits>

namespace mmix {

// A number in the type of the launch's arithmetic: a conversion in the kernel would keep a
// register.
union Number {
  double wide;
  float narrow;
  template <class A> __device__ __forceinline__ A as() const {
    if constexpr (sizeof(A) == 8) return wide;
    return narrow;
  }
};

struct TargetArgs {
  const void *target; // labels (B, inner) or probabilities (B, C, inner)
  void *out;
  bool labels;          // whether target holds labels
  DType type, out_type; // of probabilities, and of out
  int batch;
  int64_t classes, inner;
  Pairing pairing;
  LamRef lam;
  Number keep, base, hot; // label smoothing: q = keep*t + base, or hot at the label
  int64_t ignore_index;
};

// The unit of work: a warp writes this many elements of a line at a time.
constexpr int kTargetPiece = 2048;

// The (C, inner) targets of a row as lines of contiguous elements. If inner is 1, all classes are
// one line. Else the positions of each class are a line.
struct Lines {
  int64_t length;
  int per_row, pieces; // pieces of a line
  __host__ __device__ explicit Lines(const TargetArgs &a)
      : length(a.inner == 1 ? a.classes : a.inner),
        per_row(a.inner == 1 ? 1 : static_cast<int>(a.classes)),
        pieces(static_cast<int>((length + kTargetPiece - 1) / kTargetPiece)) {}
};

template <class A> __device__ __forceinline__ A read(const void *p, DType type, int64_t i) {
  A v = 0;
  visit(type, [&]<class T>(T *) { // float64 is only read if A is double
    if constexpr (sizeof(T) <= sizeof(A))
      v = static_cast<A>(widen(load(static_cast<const T *>(p) + i)));
  });
  return v;
}

// The target of one row along one line, smoothed but not mixed. The call with k gives element k.
template <class A> struct SoftLabels {
  static constexpr int kIgnored = -1, kOutOfRange = -2;
  const TargetArgs &a;
  const int64_t *label; // line along positions: label[k] of element k; along classes: label[0]
  int first;            // the class of element 0
  bool along;           // the line runs along classes
  int y;
  __device__ SoftLabels(const TargetArgs &a_, const void *target, int64_t row, int line,
                        int64_t from)
      : a(a_), label(static_cast<const int64_t *>(target) + row * a_.inner),
        first(a_.inner == 1 ? static_cast<int>(from) : line), along(a_.inner == 1) {
    if (along)
      y = read_label(0);
    else
      label += from;
  }
  __device__ int read_label(int k) const {
    const int64_t v = load(label + k);
    return v == a.ignore_index       ? kIgnored
           : v < 0 || v >= a.classes ? kOutOfRange
                                     : static_cast<int>(v);
  }
  __device__ A operator()(int k) const { // NaN for a label out of range
    const int mine = along ? y : read_label(k);
    if (mine == first + (along ? k : 0)) return a.hot.template as<A>();
    if (mine >= 0) return a.base.template as<A>();
    return mine == kIgnored ? A(0) : widen(not_a_number<A>());
  }
};
template <class A> struct SoftProbabilities {
  const TargetArgs &a;
  const void *target;
  int64_t at;
  __device__ SoftProbabilities(const TargetArgs &a_, const void *target_, int64_t row, int line,
                               int64_t from)
      : a(a_), target(target_), at((row * a_.classes + line) * a_.inner + from) {}
  __device__ A operator()(int k) const {
    return plus(times(a.keep.template as<A>(), read<A>(target, a.type, at + k)),
                a.base.template as<A>());
  }
};

template <bool kLean, class Out, class A, template <class> class Soft>
__device__ __forceinline__ void write_piece(const TargetArgs &a, const void *target_b, int row,
                                            int partner, int line, int64_t from, int n,
                                            ThreadGroup t) {
  Out *out = static_cast<Out *>(a.out) + (row * a.classes + line) * a.inner + from;
  if (partner < 0) return poison_tile(out, n, t);
  const Soft<A> mine(a, a.target, row, line, from), theirs(a, target_b, partner, line, from);
  const A own = a.lam.template own<A>(row);
  const Coefficients<A> mixed{own, plus(A(1), -own)};
  const auto element = [&](int k) {
    return narrow<Out>(static_cast<Acc<Out>>(mixed.forward(mine(k), theirs(k))));
  };
  constexpr bool kLabelled = std::is_same_v<Soft<A>, SoftLabels<A>>;
  if constexpr ((kLean && (sizeof(Out) < 8 || kLabelled)) || sizeof(A) > 2 * sizeof(Out)) {
    // One element at a time: more would spill registers.
#pragma unroll 1
    for (int e = t.lane; e < n; e += t.lanes) store(out + e, element(e));
    return;
  }
  const Split<Out> s(out, n);
  // Elements of an access: 16 bytes, or 8, since eight elements would spill registers.
  constexpr int kFour = sizeof(Out) == 8 ? 2 : 4;
  union {
    Out at[kFour];
    std::conditional_t<sizeof(Out) == 2, uint2, uint4> raw;
  } four;
#pragma unroll 1 // registers matter more here than loads in flight
  for (int k = t.lane; k < s.vectors * (Vec<Out>::kCount / kFour); k += t.lanes) {
    const int at = s.head + k * kFour;
#pragma unroll
    for (int i = 0; i < kFour; ++i) four.at[i] = element(at + i);
    __stwb(MMIX_GLOBAL_WRITE(reinterpret_cast<decltype(four.raw) *>(out + at)), four.raw);
  }
#pragma unroll 1
  for (int e = t.lane; e < s.edges(); e += t.lanes) store(out + s.edge(e), element(s.edge(e)));
}

template <bool kLean, class A, template <class> class Soft, class... Where>
__device__ __forceinline__ void write_as(const TargetArgs &a, Where... where) {
  visit(a.out_type, [&]<class Out>(Out *) { // float64 is only written if A is double
    if constexpr (sizeof(Out) <= sizeof(A)) write_piece<kLean, Out, A, Soft>(a, where...);
  });
}

// partner_of(row): a row of target_b, or kBad. With kLean it takes few registers: for a kernel that
// does something else too.
template <class A, bool kLean, class Partner>
__device__ __forceinline__ void targets_of(const TargetArgs &a, const void *target_b,
                                           const Partner &partner_of, unsigned block,
                                           unsigned blocks) {
  const Lines lines(a);
  const ThreadGroup group{static_cast<int>(threadIdx.x % 32), 32};
  const int per_row = lines.per_row * lines.pieces; // of fewer than 2^31 elements
  const int64_t warps = int64_t{blocks} * (blockDim.x / 32);
#pragma unroll 1
  for (int64_t unit = int64_t{block} * (blockDim.x / 32) + threadIdx.x / 32;
       unit < int64_t{a.batch} * per_row; unit += warps) {
    const int row = static_cast<int>(unit / per_row);
    const int partner = partner_of(row);
    const int in_row = static_cast<int>(unit % per_row);
    const int line = in_row / lines.pieces;
    const int64_t from = int64_t{in_row % lines.pieces} * kTargetPiece;
    const int n = static_cast<int>(min(lines.length - from, static_cast<int64_t>(kTargetPiece)));
    if (a.labels)
      write_as<kLean, A, SoftLabels>(a, target_b, row, partner, line, from, n, group);
    else
      write_as<kLean, A, SoftProbabilities>(a, target_b, row, partner, line, from, n, group);
  }
}

template <class A, bool kLean>
__device__ __forceinline__ void targets_block(const TargetArgs &a, const Claims &claims,
                                              unsigned block, unsigned blocks) {
  const auto partner = [&](int row) { return claims.partner(load(a.pairing.perm + row)); };
  targets_of<A, kLean>(a, a.target, partner, block, blocks);
}

template <class A> __global__ void __launch_bounds__(256, 4) mix_targets(const TargetArgs a) {
  unsigned *memory = dynamic_shared<unsigned>();
  const Claims claims = claim_rows(a.pairing, memory); // in shared memory, if there is room
  targets_block<A, sizeof(A) == 8>(a, claims, blockIdx.x, gridDim.x);
}
// The partners' targets are a tensor of their own.
template <class A>
__global__ void __launch_bounds__(256, 4)
    mix_targets_of_pairs(const TargetArgs a, const void *target_b) {
  const auto partner = [](int row) { return row; };
  targets_of<A, sizeof(A) == 8>(a, target_b, partner, blockIdx.x, gridDim.x);
}

} // namespace mmix
