// Rows kept in shared memory. A group of lanes, from a warp to a cluster of blocks, owns a row. It
// reads the row into shared memory once, and computes and writes the gradient from there. Each lane
// uses only the logits that it loaded itself, so no barrier is needed. The terms of a dense spread
// are loaded by all lanes together (see cross_entropy_terms.cuh). A row longer than the group's
// share of shared memory is read in segments. Each segment is read twice, except the last, which is
// still held when the sums are known.
#pragma once
#include "cuda/kernels/cross_entropy_row_part.cuh"

namespace mmix {

// Shared memory: the scratch, two LossRows for each row of the block, RowSums of its warps and its
// cluster, then the pieces of each lane, and the terms of each row's spread.
template <class Real> __host__ MMIX_DEVICE size_t rows_overhead(int threads, int lanes) {
  static_assert(sizeof(LossRow<Real>) * 2 % 16 == 0 && sizeof(RowSums<Real>) % 16 == 0);
  return sizeof(LossScratch) + sizeof(LossRow<Real>) * 2 * (threads / lanes) +
         sizeof(RowSums<Real>) * (threads / 32 + 1);
}

// Whether a block, or a cluster of them, takes every gridDim-th group of rows. The other kernels
// would spill registers: they take one group each.
template <class T, bool kGeneral> constexpr bool kTakesTurns = sizeof(T) < 8 && !kGeneral;

template <class T, bool kPacked, bool kGeneral>
__global__ void __launch_bounds__(kRowThreads, 1)
    cross_entropy_rows(const __grid_constant__ LossProblem a, const RowsPlan plan) {
  using Real = Acc<T>;
  using Part = RowPart<T, kPacked, kGeneral>;
  if (rescale_is_noop<Real>(a)) return;
  const int group = threadIdx.x / plan.lanes, groups = blockDim.x / plan.lanes;
  LossScratch &scratch = *dynamic_shared<LossScratch>();
  LossRow<Real> *rows = reinterpret_cast<LossRow<Real> *>(&scratch + 1);
  RowSums<Real> *warps = reinterpret_cast<RowSums<Real> *>(rows + 2 * groups);
  auto *pieces = reinterpret_cast<typename Part::Piece *>(warps + blockDim.x / 32 + 1);
  const bool dense = kGeneral && a.dense;
  double *loss = scratch.warps[2] + group; // of the row's first lane; it saves registers
  const int64_t begin = int64_t{blockIdx.x / plan.cluster} * groups;
  constexpr bool kTurns = kTakesTurns<T, kGeneral>;
  if (kTurns) Part(a, plan, begin + group, pieces).read(0); // in flight while labels are read
  make_scales<Real>(a, scratch);
  const bool leads = threadIdx.x % plan.lanes == 0;
  if (kTurns && leads) *loss = 0;
  int turn = 0;
  const unsigned step = gridDim.x / plan.cluster * groups;
#pragma unroll 1
  for (int64_t first = begin; first < a.rows; first += step) {
    Part part(a, plan, first + group, pieces);
    // Two places take turns: other threads may still use the coefficients of the row before.
    LossRow<Real> &row = rows[turn % 2 * groups + group];
    if constexpr (kTurns) {
      // With one segment, this row was read while the gradient of the row before was written.
      const LossRow<Real> &before = rows[(turn + 1) % 2 * groups + group];
      if (turn != 0 && (!a.gradient || before.keep || plan.segments > 1)) part.read(0);
    } else {
      part.read(0);
    }
    ++turn;
    if (leads)
      row = loss_row<Real>(a, first + group, pair_of_row(a, first + group), scratch.scales);
    sync_row(plan.lanes); // the row's first lane has written
    part.read_edge_spread(row);

    // First all segments for the sums, then all for the gradient, from the held one backwards. Both
    // are one loop, so that the long code that loads a segment exists once. With a dense spread, a
    // backward needs the sums too: the mass is a sum over the classes. A shard is given it.
    int held = 0;
    RowSums<Real> sums; // later, in the same registers: max, log2_sum and p of RowGradient
    T *gradient = static_cast<T *>(a.gradient);
#pragma unroll 1
    for (bool summing = (dense && !a.of_shard) || !a.from_stats;; summing = false) {
      if (!summing) {
        RowResult<Real> result(sums, a.of_shard);
        const Real one = finish_row(a, row.number, leads && part.rank == 0, row, result);
        if (!kTurns) {
          post_loss(a, one, scratch);
        } else {
          if (leads) *loss += one;
          if (first + step >= a.rows) post_loss(a, leads ? *loss : 0, scratch);
        }
        if (!gradient) break;
        const RowGradient<Real> of(row, result, mass_of(a, row, result, dense));
        sums = {of.max, of.log2_sum, of.p, 0};
        if (row.number < a.rows) gradient += a.gradient_at.offset(row.number);
      }
#pragma unroll 1
      for (int n = 0; n < plan.segments; ++n) {
        if (n > 0) part.read(held = summing ? n : (held == 0 ? plan.segments : held) - 1);
        if (n > 0 || summing || (a.from_stats && a.of_shard)) part.read_terms(held, row, n > 0);
        part.wait();
        if (summing)
          sums = merge(sums, part.sums(held, row));
        else if (!row.keep) {
          const RowGradient<Real> of{sums.mass, sums.max, sums.exp_sum};
          if constexpr (kTurns) {
            const int64_t after = plan.segments == 1 ? first + step + group : a.rows;
            const Part next(a, plan, after, pieces, false);
            part.write_gradient(held, row, of, gradient, &next);
          } else {
            part.write_gradient(held, row, of, gradient);
          }
        }
      }
      if (!summing) break;
      sums = merge_warps(sums, plan.lanes, warps);
      sums = merge_blocks(sums, plan.cluster, warps + blockDim.x / 32);
    }
    if (!kTurns) break;
  }
  write_total<Real>(a, scratch);
}

} // namespace mmix
