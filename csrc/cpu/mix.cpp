// mix and mix_ on strided CPU tensors. Both use the same walk along the cycles of perm.
#include "checks.h"
#include "cpu/cycles.h"
#include "cpu/tensors.h"
#include "row_layout.h"
#include <algorithm>
#include <cstring>
#include <torch/csrc/stable/library.h>

namespace mmix {
namespace {

// Bytes of a row that are mixed before the walk goes to the next row. With kTileBytes, the own row,
// its partner, the saved head and the prefetched rows stay in the L2 cache. With kSmallTileBytes,
// used if columns are split among threads, they stay in the L1 cache.
constexpr int64_t kTileBytes = 32768, kSmallTileBytes = 8192;
// An in-place mix splits the visit only if it saves at most this many bytes for each thread.
constexpr int64_t kSavedPerThread = 65536;
// In place, rows shorter than a page need more bytes for each thread: the hardware prefetcher runs
// ahead within a page, so a thread pulls in cache lines that another is about to write.
constexpr int64_t kNarrowRow = 4096, kNarrowBytesPerThread = 2 << 20;
// A row is prefetched kAheadBytes before its visit, but at least kLeastAhead and at most kMostAhead
// rows before.
constexpr int64_t kAheadBytes = 32768, kLeastAhead = 2, kMostAhead = 8;

// A batch as runs of contiguous elements, with the offsets of the runs in x and out.
struct Layout : SampleLayout {
  int64_t batch, x_stride, out_stride; // of the batch dimension

  Layout(const Tensor &x, const Tensor &out, int64_t dim)
      : SampleLayout(x, out, dim), batch(x.size(dim)), x_stride(x.stride(dim)),
        out_stride(out.stride(dim)) {}

  void offsets(int64_t index, int64_t &x_offset, int64_t &out_offset) const {
    x_offset = out_offset = 0;
    for (const Dim &d : dims) {
      const int64_t k = index % d.size;
      index /= d.size;
      x_offset += k * d.stride;
      out_offset += k * d.out_stride;
    }
  }
};

// How the work is split. Stretches of the visit (the order of rows in Cycles) are independent once
// the rows that another stretch overwrites are saved. Tiles of columns are always independent.
// Reading whole rows is fastest, so threads share the visit. They share the columns only if the
// rows to save would be large.
struct Schedule {
  Schedule(const Layout &l, int64_t elem, bool inplace) {
    const int64_t row = l.run * l.runs * elem, bytes = row * l.batch;
    const int64_t least = !inplace           ? kBytesPerThread
                          : row < kNarrowRow ? kNarrowBytesPerThread
                                             : kInPlaceBytesPerThread;
    const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), 1 + bytes / least);
    const bool cut_visit = !inplace || 2 * row * (threads - 1) <= kSavedPerThread * threads;
    stretches = cut_visit ? std::min(l.batch, threads) : 1;
    const int64_t line = std::max<int64_t>(64 / elem, 1);
    const int64_t widest = (cut_visit ? kTileBytes : kSmallTileBytes) / elem;
    const int64_t share = cut_visit ? widest : l.run * l.runs / threads / line * line;
    columns = std::min(std::clamp(share, line, widest), l.run);
    per_run = (l.run + columns - 1) / columns;
    tiles = per_run * l.runs;
    grain = threads == 1 ? tiles * stretches : 1;
    ahead = std::clamp(kAheadBytes / (columns * elem), kLeastAhead, kMostAhead);
  }
  int64_t stretches, columns, per_run, tiles, grain, ahead;
};

template <class Row> // row(dst, own, other, ahead, columns, i)
void walk(const Cycles &cycles, const Layout &l, int64_t elem, const char *src, char *dst,
          const Row &row) {
  const bool inplace = src == dst;
  const Schedule plan(l, elem, inplace);
  const int64_t n = cycles.size, parts = plan.stretches, bytes = plan.columns * elem;
  const auto begin_of = [&](int64_t part) { return part * n / parts; };
  const auto cycle_at = [&](int64_t k) {
    return std::upper_bound(cycles.begin.begin(), cycles.begin.end(), k) - 1;
  };
  // In place, a stretch that ends inside a cycle reads the first row of the next stretch. A stretch
  // that begins inside a cycle may read the head of that cycle. Both rows are saved before any
  // thread writes.
  std::vector<char> saved(inplace ? plan.tiles * (parts - 1) * 2 * bytes : 0);
  const auto saved_row = [&](int64_t tile, int64_t part, bool head) {
    return saved.data() + ((tile * (parts - 1) + part - 1) * 2 + head) * bytes;
  };
  const auto place = [&](int64_t tile, int64_t &x_offset, int64_t &out_offset) {
    l.offsets(tile / plan.per_run, x_offset, out_offset);
    const int64_t column = tile % plan.per_run * plan.columns;
    x_offset += column;
    out_offset += column;
    return std::min(plan.columns, l.run - column);
  };
  for (int64_t tile = 0; inplace && parts > 1 && tile < plan.tiles; ++tile) {
    int64_t x_offset, out_offset;
    const int64_t width = place(tile, x_offset, out_offset) * elem;
    const auto save = [&](char *to, int64_t k) {
      std::memcpy(to, src + (x_offset + cycles.row[k] * l.x_stride) * elem, width);
    };
    for (int64_t part = 1; part < parts; ++part) {
      save(saved_row(tile, part, false), begin_of(part));
      save(saved_row(tile, part, true), *cycle_at(begin_of(part)));
    }
  }
  torch::stable::parallel_for(0, plan.tiles * parts, plan.grain, [&](int64_t begin, int64_t end) {
    alignas(64) char buffer[kTileBytes]; // the head of a cycle that begins in this stretch
    // Local copies, so that the loop over rows does not read them again after each call.
    const int64_t *const rows = cycles.row.get(), final = n - 1, ahead = plan.ahead;
    const int64_t x_step = l.x_stride * elem, out_step = l.out_stride * elem;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t part = unit / plan.tiles, tile = unit % plan.tiles;
      int64_t x_offset, out_offset;
      const int64_t width = place(tile, x_offset, out_offset);
      const char *const x = src + x_offset * elem;
      char *const out = dst + out_offset * elem;
      const auto at = [=](int64_t k) { return x + rows[k] * x_step; };
      const int64_t first = begin_of(part), last = begin_of(part + 1);
      auto cycle = cycle_at(first);
      for (int64_t k = first; k < last; ++k, ++cycle) {
        const int64_t stop = std::min(cycle[1], last) - 1;
        const char *own = at(k), *head = at(*cycle);
        if (inplace && *cycle < first) {
          head = saved_row(tile, part, true);
        } else if (inplace) {
          std::memcpy(buffer, own, width * elem);
          head = buffer;
        }
        const auto change = [&](const char *other) {
          row(out + rows[k] * out_step, own, other, at(std::min(k + ahead, final)), width, rows[k]);
          own = other;
        };
        for (; k < stop; ++k) change(at(k + 1));
        if (stop + 1 == cycle[1])
          change(head);
        else
          change(inplace ? saved_row(tile, part + 1, false) : at(k + 1));
      }
    }
    if (!inplace) publish_streamed();
  });
}

Tensor mix(Tensor x, Tensor perm, Tensor lam_tensor, int64_t dim, bool adjoint) {
  const int64_t n = x.size(dim);
  const int64_t *index = static_cast<const int64_t *>(perm.const_data_ptr());
  std::vector<int64_t> inverse;
  if (adjoint) {
    check_permutation(index, n);
    inverse.resize(n);
    for (int64_t i = 0; i < n; ++i) inverse[index[i]] = i;
    index = inverse.data();
  }
  const Cycles cycles(index, n);
  Tensor out = fresh_like(x);
  if (x.numel() == 0) return out;
  const DType type = dtype_of(x.scalar_type());
  const Lam lam(lam_tensor, type == kDouble);
  const int64_t elem = element_size(type);
  const bool stream = streams(out);
  const auto kernel = row_kernels().mix[type];
  walk(cycles, Layout(x, out, dim), elem, static_cast<const char *>(x.const_data_ptr()),
       static_cast<char *>(out.mutable_data_ptr()),
       [=](char *dst, const char *own, const char *other, const char *ahead, int64_t columns,
           int64_t i) {
         kernel(dst, own, other, ahead, columns, lam.own(i), lam.other(adjoint ? index[i] : i),
                stream);
       });
  return out;
}

} // namespace

void mix_(Tensor x, Tensor perm, Tensor lam_tensor, int64_t dim) {
  const Cycles cycles(static_cast<const int64_t *>(perm.const_data_ptr()), x.size(dim));
  if (x.numel() == 0) return;
  const DType type = dtype_of(x.scalar_type());
  const Lam lam(lam_tensor, type == kDouble);
  const auto kernel = row_kernels().mix[type];
  char *data = static_cast<char *>(x.mutable_data_ptr());
  walk(
      cycles, Layout(x, x, dim), element_size(type), data, data,
      [=](char *dst, const char *own, const char *other, const char *ahead, int64_t columns,
          int64_t i) { kernel(dst, own, other, ahead, columns, lam.own(i), lam.other(i), false); });
}

static std::string cpu_isa() { return row_kernels().isa; }

} // namespace mmix

STABLE_TORCH_LIBRARY_IMPL(mmix_fast, CPU, m) {
  m.impl("mix", TORCH_BOX(&mmix::mix));
  m.impl("mix_", TORCH_BOX(&mmix::mix_));
}
STABLE_TORCH_LIBRARY_IMPL(mmix_fast, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&mmix::cpu_isa));
}
