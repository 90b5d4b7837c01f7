// In place, for a batch that is too large for a slab: a block has all rows of a tile, and its teams
// walk along partners. Each thread follows one vector (or element, see Pieces) of a row to the
// next, and loads kSteps rows at a time, since it knows which rows come. The cut rows divide long
// cycles into stretches that are independent once the rows at their ends are saved.
#pragma once
#include "cuda/kernels/mix_gather.cuh"

namespace mmix {

constexpr int kSteps = 2; // rows in flight for each thread: more take registers of other threads
constexpr int kHeads = 4; // cut rows for each team, about: stretches differ in length

template <class T, bool kVectors> struct Stretches {
  using P = Pieces<T, kVectors>;
  using Piece = typename P::Piece;
  const MixArgs<T> &a;
  const Weights<T> weights;
  const Links links;
  const Team team;
  Piece *heads; // of the cut rows: this lane's
  T *x;         // this lane's piece of row 0

  __device__ __forceinline__ T *at(int row) const { return x + row * a.x_row; }

  // From row `first`, whose original is *head, to a bad row, to a cut row, or back to `first`.
  __device__ __forceinline__ void walk(int first, const Piece *head) const {
    Piece own = *head;
    for (int row = first;;) {
      int next[kSteps], last = kSteps;
      Piece v[kSteps];
#pragma unroll
      for (int u = 0; u < kSteps; ++u) {
        if (u >= last) continue;
        const int partner = next[u] = links(u == 0 ? row : next[u - 1]);
        const bool cut = partner >= 0 && a.cut(partner);
        if (partner < 0 || partner == first || cut) last = u + 1;
        if (partner == first)
          v[u] = *head;
        else if (cut)
          v[u] = heads[partner / a.cut.step() * a.lanes];
        else if (partner >= 0)
          v[u] = P::load_piece(at(partner));
      }
#pragma unroll
      for (int u = 0; u < kSteps; ++u) {
        if (u >= last) continue;
        mix(row, next[u], own, v[u]);
        own = v[u];
        row = next[u];
      }
      if (row < 0 || row == first || a.cut(row)) return;
    }
  }
  __device__ __forceinline__ void mix(int row, int partner, Piece own, Piece other) const {
    if (partner < 0) return P::store_piece(at(row), P::poison());
    const auto c = weights(row, partner);
    if (!c.keep()) P::store_piece(at(row), P::mixed(own, other, c));
  }
};

// Shared memory: the links; a piece for each thread, the head of its walk from a row that is no cut
// row; the cut rows' pieces of the tile.
template <class T, bool kVectors>
__device__ __forceinline__ void mix_stretches_block(const MixArgs<T> &a) {
  using P = Pieces<T, kVectors>;
  unsigned *memory = dynamic_shared<unsigned>();
  const Links links = link_all(a.pairing, a.table, memory);
  const Team team(a.lanes);
  auto *heads = reinterpret_cast<typename P::Piece *>(memory);
  Stretches<T, kVectors> s{a, Weights<T>(a), links, team, heads + blockDim.x + team.lane, nullptr};
  const int lane = static_cast<int>(threadIdx.x % 32);
  auto *head = heads + threadIdx.x;
  const int teams = 32 / a.lanes, team_of_warp = lane / a.lanes; // a team is a part of a warp
  for (int64_t tile = blockIdx.x; tile < P::tiles(a.columns, a.lanes); tile += a.blocks) {
    Offsets o{0, 0};
    const bool active = P::place(a.columns, a.lanes, tile, team.lane, o);
    s.x = a.out + o.out;
    if (s.weights.still()) {
#pragma unroll 1
      for (int row = team.first; active && row < a.batch; row += team.step)
        if (links(row) < 0) P::store_piece(s.at(row), P::poison());
      continue;
    }
#pragma unroll 1
    for (int k = team.first; active && k < a.cut.count(a.batch); k += team.step)
      s.heads[k * a.lanes] = P::load_piece(s.at(k * a.cut.step()));
    __syncthreads(); // a walk reads heads that others save, and overwrites their rows
#pragma unroll 1
    for (int k = team.first; active && k < a.cut.count(a.batch); k += team.step)
      s.walk(k * a.cut.step(), s.heads + k * a.lanes);
    // The lanes of a warp look for starts among 32 rows, and its teams share what they find.
    for (int base = static_cast<int>(threadIdx.x) - lane; base < a.batch; base += blockDim.x) {
      const int mine = base + lane;
      unsigned found = __ballot_sync(kAll, mine < a.batch && links.starts(mine, a.cut));
      for (int turn = 0; found; found &= found - 1, ++turn) {
        const int first = base + __ffs(static_cast<int>(found)) - 1;
        if (!active || turn % teams != team_of_warp) continue;
        *head = P::load_piece(s.at(first));
        s.walk(first, head);
      }
    }
    __syncthreads(); // the next heads overwrite those that others may still be reading
  }
}

template <class T, bool kTargets>
__global__ void __launch_bounds__(kSlabThreads)
    mix_stretches(const MixArgs<T> a, const TargetArgs t) {
  mix_or_targets<kTargets>(a, t, mix_stretches_block<T, true>);
}
template <class T, bool kTargets>
__global__ void __launch_bounds__(kSlabThreads, 1)
    mix_strided(const MixArgs<T> a, const TargetArgs t) {
  mix_or_targets<kTargets>(a, t, mix_stretches_block<T, false>);
}

} // namespace mmix
