// mix_other, mix_other_ and sum_rows_ on strided CPU tensors: mixing with the samples of a second
// batch, and the gradients of both batches. No row that is written is read as a partner, so the
// rows are independent of each other and come in the order of memory.
#include "checks.h"
#include "cpu/tensors.h"
#include "row_layout.h"
#include <algorithm>
#include <cstring>
#include <optional>
#include <torch/csrc/stable/library.h>

namespace mmix {
namespace {

// Bytes of a row that are mixed at a time. The next row's part of the other batch is prefetched
// meanwhile.
constexpr int64_t kPieceBytes = 16384;
// Columns of a sum of several rows of 16-bit elements: the sum and a row, as float, fit in the L1
// cache.
constexpr int64_t kSumColumns = 2048;

// Elements from the start of a row of each tensor.
struct Place {
  int64_t x = 0, out = 0, other = 0;
};

Place place_of(const SampleLayout &l, int64_t run) {
  Place p;
  for (const Dim &d : l.dims) {
    const int64_t k = run % d.size;
    run /= d.size;
    p.x += k * d.stride;
    p.out += k * d.out_stride;
    p.other += k * d.other_stride;
  }
  return p;
}

// body(row, place, columns) for the pieces of all rows, split among threads. `row_stride`: of the
// rows in memory. Where the runs of a row are nearer to each other than the rows are, rows come
// one after the other, else runs do. `stream`: the bodies store past the caches.
template <class Body>
void each_piece(const SampleLayout &l, int64_t rows, int64_t row_stride, int64_t elem,
                int64_t widest, bool stream, const Body &body) {
  const bool by_rows = l.dims.empty() || row_stride >= l.dims.back().stride;
  const int64_t columns = std::min(widest, l.run), pieces = (l.run + columns - 1) / columns;
  const int64_t units = rows * l.runs * pieces, bytes = rows * l.run * l.runs * elem;
  const int64_t threads =
      std::min<int64_t>(torch::stable::get_num_threads(), 1 + bytes / kBytesPerThread);
  torch::stable::parallel_for(
      0, units, (units + threads - 1) / threads, [&](int64_t begin, int64_t end) {
        const int64_t inner = by_rows ? l.runs : rows;
        int64_t at = begin / pieces, piece = begin % pieces;
        int64_t outer_index = at / inner, inner_index = at % inner;
        Place place;
        int64_t placed = -1; // the run that `place` is of
        for (int64_t unit = begin; unit < end; ++unit) {
          const int64_t row = by_rows ? outer_index : inner_index;
          const int64_t run = by_rows ? inner_index : outer_index;
          if (run != placed) place = place_of(l, run), placed = run;
          const int64_t column = piece * columns;
          body(row, Place{place.x + column, place.out + column, place.other + column},
               std::min(columns, l.run - column));
          if (++piece < pieces) continue;
          piece = 0;
          if (++inner_index < inner) continue;
          inner_index = 0;
          ++outer_index;
        }
        if (stream) publish_streamed();
      });
}

void mix_into(const Tensor &x, const Tensor &out, const Tensor &other,
              const std::optional<Tensor> &perm, const Tensor &lam_tensor, int64_t dim) {
  const DType type = dtype_of(x.scalar_type());
  const Lam lam(lam_tensor, type == kDouble);
  const int64_t elem = element_size(type), rows = x.size(dim);
  const int64_t *index = perm ? static_cast<const int64_t *>(perm->const_data_ptr()) : nullptr;
  const char *own = static_cast<const char *>(x.const_data_ptr());
  const char *second = static_cast<const char *>(other.const_data_ptr());
  char *to = static_cast<char *>(out.mutable_data_ptr());
  const int64_t x_step = x.stride(dim) * elem, out_step = out.stride(dim) * elem;
  const int64_t other_step = other.stride(dim) * elem;
  const bool stream = own != to && streams(out);
  const auto kernel = row_kernels().mix[type];
  const SampleLayout layout(x, out, dim, &other);
  const auto partner = [=](int64_t row) { return (index ? index[row] : row) * other_step; };
  each_piece(layout, rows, x.stride(dim), elem, kPieceBytes / elem, stream,
             [&](int64_t row, const Place &p, int64_t columns) {
               const char *theirs = second + p.other * elem, *mate = theirs + partner(row);
               // What comes next: the rest of the row, or the next row.
               const char *ahead = mate + columns * elem;
               if (columns == layout.run && row + 1 < rows) ahead = theirs + partner(row + 1);
               kernel(to + p.out * elem + row * out_step, own + p.x * elem + row * x_step, mate,
                      ahead, columns, lam.own(row), lam.other(row), stream);
             });
}

void check(const Tensor &x, const Tensor &other, const std::optional<Tensor> &perm, int64_t dim) {
  if (perm)
    check_indices(static_cast<const int64_t *>(perm->const_data_ptr()), x.size(dim),
                  other.size(dim));
}

Tensor mix_other(Tensor x, Tensor other, std::optional<Tensor> perm, Tensor lam, int64_t dim) {
  check(x, other, perm, dim);
  Tensor out = fresh_like(x);
  if (x.numel() > 0) mix_into(x, out, other, perm, lam, dim);
  return out;
}

void mix_other_(Tensor x, Tensor other, std::optional<Tensor> perm, Tensor lam, int64_t dim) {
  check(x, other, perm, dim);
  if (x.numel() > 0) mix_into(x, x, other, perm, lam, dim);
}

// The terms of one sum: rows of x with coefficients that are not 0.
struct Terms {
  Terms(const Tensor &weight, const std::optional<Tensor> &order_,
        const std::optional<Tensor> &begin_, bool wide)
      : weights(weight, wide),
        order(order_ ? static_cast<const int64_t *>(order_->const_data_ptr()) : nullptr),
        begin(begin_ ? static_cast<const int64_t *>(begin_->const_data_ptr()) : nullptr) {}
  // Calls body(row, coefficient) in the order of the sum.
  template <class Body> void each(int64_t k, const Body &body) const {
    const int64_t first = begin ? begin[k] : k, last = begin ? begin[k + 1] : k + 1;
    for (int64_t t = first; t < last; ++t) {
      const int64_t row = order ? order[t] : t;
      const double coefficient = weights.own(row);
      if (coefficient != 0) body(row, coefficient);
    }
  }
  Lam weights;
  const int64_t *order, *begin;
};

struct Rows {
  const char *first;
  int64_t step; // bytes
  const void *operator()(int64_t row) const { return first + row * step; }
};

// dst[0..n) = the sum of coefficient*row over the terms of k, computed in A.
template <class A>
void sum_piece(DType type, void *dst, const Terms &terms, int64_t k, int64_t n, const Rows &at) {
  const auto mix = row_kernels().mix[type];
  // The usual one or two terms are a row of a mix.
  int64_t count = 0;
  const void *rows[2];
  double coefficients[2] = {0, 0};
  terms.each(k, [&](int64_t row, double coefficient) {
    if (count < 2) rows[count] = at(row), coefficients[count] = coefficient;
    ++count;
  });
  if (count <= 2) {
    if (count == 0) rows[0] = dst;
    const void *second = count == 2 ? rows[1] : rows[0];
    return mix(dst, rows[0], second, rows[0], n, coefficients[0], coefficients[1], false);
  }
  // More are added one by one, in the dtype of the arithmetic.
  const auto &wide = row_kernels().template loss<A>();
  const auto add = row_kernels().mix[sizeof(A) == 8 ? kDouble : kFloat];
  alignas(64) A total[kSumColumns], term[kSumColumns];
  count = 0;
  terms.each(k, [&](int64_t row, double coefficient) {
    A *to = count == 0 ? total : term;
    wide.widen[type](to, at(row), n);
    if (count++ == 0)
      add(total, total, total, total, n, coefficient, 0, false);
    else
      add(total, total, term, term, n, 1, coefficient, false);
  });
  wide.narrow[type](dst, total, n);
}

void sum_rows_(Tensor out, Tensor x, Tensor weight, std::optional<Tensor> order,
               std::optional<Tensor> begin, int64_t dim) {
  if (out.numel() == 0) return;
  const DType type = dtype_of(x.scalar_type());
  const Terms terms(weight, order, begin, type == kDouble);
  const int64_t elem = element_size(type);
  const SampleLayout layout(x, out, dim);
  const int64_t columns = order ? kSumColumns : kPieceBytes / elem;
  expect_writes(out.mutable_data_ptr(), out.numel() * elem);
  const char *from = static_cast<const char *>(x.const_data_ptr());
  char *to = static_cast<char *>(out.mutable_data_ptr());
  const int64_t step = x.stride(dim) * elem, out_step = out.stride(dim) * elem;
  const auto sum = type == kDouble ? sum_piece<double> : sum_piece<float>;
  each_piece(layout, out.size(dim), out.stride(dim), elem, columns, false,
             [&](int64_t k, const Place &p, int64_t n) {
               sum(type, to + p.out * elem + k * out_step, terms, k, n,
                   Rows{from + p.x * elem, step});
             });
}

} // namespace
} // namespace mmix

STABLE_TORCH_LIBRARY_IMPL(mmix_fast, CPU, m) {
  m.impl("mix_other", TORCH_BOX(&mmix::mix_other));
  m.impl("mix_other_", TORCH_BOX(&mmix::mix_other_));
  m.impl("sum_rows_", TORCH_BOX(&mmix::sum_rows_));
}
