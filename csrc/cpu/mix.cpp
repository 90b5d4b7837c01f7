// mix and mix_ on strided CPU tensors. Columns are independent, so the work is split over column
// tiles; in place, each tile walks the cycles of perm with only the head row saved.
#include "checks.h"
#include "cpu/tensors.h"
#include <algorithm>
#include <cstring>
#include <torch/csrc/stable/library.h>

namespace mmix {
namespace {

// One tile of 8 KiB per row: long enough for the hardware prefetcher and the TLB, short enough
// that the rows of one step (own, other, saved head) stay in a 32 KiB L1 cache.
constexpr int64_t kTileBytes = 8192;
// Rows prefetched ahead of the walk.
constexpr size_t kRowsAhead = 2;
// Below this many bytes a second thread costs more than it brings.
constexpr int64_t kBytesPerThread = 32768;

// A sample seen as runs of contiguous elements: offsets of the runs in x and out.
struct Layout {
  int64_t batch, x_stride, out_stride; // of the batch dimension
  int64_t run = 1, x_step = 1, out_step = 1;
  std::vector<int64_t> sizes, x_strides, out_strides; // the outer dimensions, fastest first
  int64_t runs = 1;

  Layout(const Tensor &x, const Tensor &out, int64_t dim)
      : batch(x.size(dim)), x_stride(x.stride(dim)), out_stride(out.stride(dim)) {
    std::vector<int64_t> dims;
    for (int64_t d = 0; d < x.dim(); ++d)
      if (d != dim && x.size(d) != 1) dims.push_back(d);
    std::sort(dims.begin(), dims.end(),
              [&](int64_t a, int64_t b) { return x.stride(a) < x.stride(b); });
    for (int64_t d : dims) {
      if (!sizes.empty() && x.stride(d) == x_strides.back() * sizes.back() &&
          out.stride(d) == out_strides.back() * sizes.back()) {
        sizes.back() *= x.size(d);
        continue;
      }
      sizes.push_back(x.size(d));
      x_strides.push_back(x.stride(d));
      out_strides.push_back(out.stride(d));
    }
    if (!sizes.empty() && x_strides[0] == 1 && out_strides[0] == 1) {
      run = sizes[0];
      sizes.erase(sizes.begin());
      x_strides.erase(x_strides.begin());
      out_strides.erase(out_strides.begin());
    }
    for (int64_t s : sizes) runs *= s;
  }

  void offsets(int64_t index, int64_t &x_offset, int64_t &out_offset) const {
    x_offset = out_offset = 0;
    for (size_t d = 0; d < sizes.size(); ++d) {
      const int64_t k = index % sizes[d];
      index /= sizes[d];
      x_offset += k * x_strides[d];
      out_offset += k * out_strides[d];
    }
  }
};

// Calls body(x_offset, out_offset, columns) for tiles that cover every column once, in parallel.
template <class Body> void for_each_tile(const Layout &l, int64_t elem, const Body &body) {
  const int64_t widest = std::max<int64_t>(kTileBytes / elem, 1);
  // Every thread should get a tile, in whole cache lines.
  const int64_t line = 64 / elem, threads = torch::stable::get_num_threads();
  const int64_t share = (l.run * l.runs + threads - 1) / threads;
  const int64_t width = std::clamp((share + line - 1) / line * line, line, widest);
  const int64_t per_run = (l.run + width - 1) / width;
  const int64_t tile_bytes = std::min(width, l.run) * elem * l.batch;
  const int64_t grain = std::max<int64_t>(1, kBytesPerThread / std::max<int64_t>(tile_bytes, 1));
  torch::stable::parallel_for(0, l.runs * per_run, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      int64_t x_offset, out_offset;
      l.offsets(t / per_run, x_offset, out_offset);
      const int64_t column = t % per_run * width;
      body(x_offset + column, out_offset + column, std::min(width, l.run - column));
    }
  });
}

std::vector<int64_t> inverse(const int64_t *perm, int64_t n) {
  std::vector<int64_t> inv(n);
  for (int64_t i = 0; i < n; ++i) inv[perm[i]] = i;
  return inv;
}

Tensor mix(Tensor x, Tensor perm, Tensor lam_tensor, int64_t dim, bool adjoint) {
  const int64_t n = x.size(dim);
  const int64_t *index = static_cast<const int64_t *>(perm.const_data_ptr());
  check_permutation(index, n);
  Tensor out = fresh_like(x);
  if (x.numel() == 0) return out;
  std::vector<int64_t> inv;
  if (adjoint) {
    inv = inverse(index, n);
    index = inv.data();
  }
  const Lam lam(lam_tensor);
  const DType type = dtype_of(x.scalar_type());
  const int64_t elem = element_size(type);
  const Layout layout(x, out, dim);
  const auto row = row_kernels().mix[type];
  const char *src = static_cast<const char *>(x.const_data_ptr());
  char *dst = static_cast<char *>(out.mutable_data_ptr());
  for_each_tile(layout, elem, [&](int64_t x_offset, int64_t out_offset, int64_t columns) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t j = index[i];
      row(dst + (out_offset + i * layout.out_stride) * elem,
          src + (x_offset + i * layout.x_stride) * elem,
          src + (x_offset + j * layout.x_stride) * elem, columns, lam.own(i),
          lam.other(adjoint ? j : i));
    }
  });
  return out;
}

// The rows in cycle order; the last row of each cycle is stored as ~row. 8 bytes a row.
std::vector<int64_t> cycle_order(const int64_t *perm, int64_t n) {
  std::vector<bool> seen(n, false);
  std::vector<int64_t> order;
  order.reserve(n);
  for (int64_t i = 0; i < n; ++i) {
    if (seen[i]) continue;
    for (int64_t j = i; !seen[j]; j = perm[j]) {
      seen[j] = true;
      order.push_back(j);
    }
    order.back() = ~order.back();
  }
  return order;
}

void mix_(Tensor x, Tensor perm, Tensor lam_tensor, int64_t dim) {
  const int64_t n = x.size(dim);
  const int64_t *index = static_cast<const int64_t *>(perm.const_data_ptr());
  check_permutation(index, n);
  if (x.numel() == 0) return;
  const std::vector<int64_t> order = cycle_order(index, n);
  const Lam lam(lam_tensor);
  const DType type = dtype_of(x.scalar_type());
  const int64_t elem = element_size(type);
  const Layout layout(x, x, dim);
  const auto row = row_kernels().mix[type];
  char *data = static_cast<char *>(x.mutable_data_ptr());
  for_each_tile(layout, elem, [&](int64_t offset, int64_t, int64_t columns) {
    alignas(
        64) char head[kTileBytes]; // the first row of the cycle, overwritten before its last use
    bool starts = true;
    char *p = nullptr;
    const auto row_at = [&](size_t k) {
      return data + (offset + (order[k] < 0 ? ~order[k] : order[k]) * layout.x_stride) * elem;
    };
    for (size_t k = 0; k < order.size(); ++k) {
      const bool last = order[k] < 0;
      const int64_t i = last ? ~order[k] : order[k];
      // Rows come in random order, which no hardware prefetcher follows.
      if (k + kRowsAhead < order.size()) {
        const char *ahead = row_at(k + kRowsAhead);
        for (int64_t byte = 0; byte < columns * elem; byte += 64)
          __builtin_prefetch(ahead + byte, 1);
      }
      if (starts) {
        p = row_at(k);
        std::memcpy(head, p, columns * elem);
      }
      char *next = head;
      if (!last) {
        next = row_at(k + 1);
      }
      row(p, p, next, columns, lam.own(i), lam.other(i));
      p = next;
      starts = last;
    }
  });
}

std::string cpu_isa() { return row_kernels().isa; }

} // namespace
} // namespace mmix

STABLE_TORCH_LIBRARY_IMPL(mmix_fast, CPU, m) {
  m.impl("mix", TORCH_BOX(&mmix::mix));
  m.impl("mix_", TORCH_BOX(&mmix::mix_));
}
STABLE_TORCH_LIBRARY_IMPL(mmix_fast, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&mmix::cpu_isa));
}
