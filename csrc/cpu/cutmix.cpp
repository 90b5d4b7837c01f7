// cutmix_ on strided CPU tensors. It works like mix_, but changes each row (sample) only inside its
// box. The lines of an image are independent, so the unit of work is a block of lines. Each unit
// walks the cycles of perm and saves only the lines of a cycle's first row, its head. Integers are
// copied as bytes, without arithmetic. So is every dtype if one λ of 0 serves all rows.
#include "checks.h"
#include "cpu/cycles.h"
#include "cpu/tensors.h"
#include <algorithm>
#include <cstring>
#include <torch/csrc/stable/library.h>
#include <vector>

namespace mmix {
namespace {

// A sample as images of height*width columns; a line is the columns at one y. A column has `unit`
// contiguous elements: 1, or all channels of a channels_last tensor. The other dimensions, e.g. the
// channels, count the images of a sample.
struct Lines {
  int64_t unit = 1, column_stride, width, height, y_stride, outer = 1;
  std::vector<int64_t> sizes, strides; // of the other dimensions, the last one first

  explicit Lines(const Tensor &x)
      : column_stride(x.stride(-1)), width(x.size(-1)), height(x.size(-2)), y_stride(x.stride(-2)) {
    for (int64_t d = x.dim() - 3; d >= 1; --d) {
      if (unit == 1 && x.stride(d) == 1 && column_stride == x.size(d)) {
        unit = x.size(d);
        continue;
      }
      sizes.push_back(x.size(d));
      strides.push_back(x.stride(d));
      outer *= x.size(d);
    }
  }

  int64_t offset(int64_t image, int64_t y) const {
    int64_t offset = y * y_stride;
    for (size_t d = 0; d < sizes.size(); ++d) {
      offset += image % sizes[d] * strides[d];
      image /= sizes[d];
    }
    return offset;
  }
};

// Bytes of a row that a unit changes before it goes to the next row. They and the saved head fit in
// the L1 cache.
constexpr int64_t kBlockBytes = 8192;

struct Box {
  int64_t top, bottom, left, right;
};

// One box for all rows, or one for each row. `all` is the smallest box that contains them all.
struct Boxes {
  Boxes(const Tensor &box, int64_t n, int64_t height, int64_t width)
      : own(static_cast<const Box *>(box.const_data_ptr())), step(box.dim() == 2 ? 1 : 0),
        all{height, 0, width, 0} {
    for (int64_t i = 0; i < (step ? n : 1); ++i) {
      const Box &b = own[i];
      check_box(b.top, b.bottom, b.left, b.right, height, width);
      if (b.top < b.bottom && b.left < b.right)
        all = {std::min(all.top, b.top), std::max(all.bottom, b.bottom), std::min(all.left, b.left),
               std::max(all.right, b.right)};
    }
  }
  const Box &operator[](int64_t i) const { return own[i * step]; }
  bool shared() const { return step == 0; }

  const Box *own; // the box tensor, four numbers for each box
  int64_t step;
  Box all;
};

// memcpy. For kPiece to kFew bytes, e.g. a line of a small image, it makes no library call.
inline void copy(char *to, const char *from, int64_t bytes) {
  constexpr int64_t kPiece = 16, kFew = 512; // a vector on any CPU; above kFew memcpy is as fast
  if (bytes < kPiece || bytes > kFew) {
    std::memcpy(to, from, bytes);
    return;
  }
  for (int64_t i = 0; i + kPiece < bytes; i += kPiece) std::memcpy(to + i, from + i, kPiece);
  std::memcpy(to + bytes - kPiece, from + bytes - kPiece, kPiece); // may overlap the piece before
}

// Swaps two runs of bytes, in pieces that fit in registers. The last piece may overlap the piece
// before it, so it is read before the loop writes.
inline void swap(char *a, char *b, int64_t bytes) {
  const auto by = [&](auto piece) {
    using Piece = decltype(piece);
    constexpr int64_t size = sizeof(Piece);
    if (bytes < size) return false;
    const auto load = [](const char *p) {
      Piece v;
      std::memcpy(&v, p, size);
      return v;
    };
    const int64_t last = bytes - size;
    const Piece last_a = load(a + last), last_b = load(b + last);
    for (int64_t i = 0; i < last; i += size) {
      const Piece x = load(a + i), y = load(b + i);
      std::memcpy(a + i, &y, size);
      std::memcpy(b + i, &x, size);
    }
    std::memcpy(a + last, &last_b, size);
    std::memcpy(b + last, &last_a, size);
    return true;
  };
  struct Vector { // fits in a vector on any CPU
    int64_t halves[2];
  };
  if (!by(Vector{}) && !by(int32_t{})) by(char{});
}

// Replaces a run of contiguous columns of row i, at p, with those of its partner, at `from`.
struct Paste {
  int64_t unit; // bytes of a column
  void operator()(char *p, const char *from, int64_t columns, int64_t) const {
    copy(p, from, columns * unit);
  }
};

template <class Change>
void walk(const Tensor &x, const Cycles &cycles, const Lines &lines, const Boxes &boxes,
          const Change &change) {
  const Box &all = boxes.all;
  const int64_t width = all.right - all.left, height = all.bottom - all.top;
  const int64_t elem = x.element_size(), unit = lines.unit * elem;
  const int64_t column = lines.column_stride * elem, row_stride = x.stride(0) * elem;
  char *data = static_cast<char *>(x.mutable_data_ptr());

  const int64_t total = lines.outer * height, bytes = width * unit; // lines, bytes of a line
  const int64_t threads = std::min<int64_t>(
      torch::stable::get_num_threads(), 1 + total * bytes * cycles.size / kInPlaceBytesPerThread);
  const int64_t block =
      std::clamp<int64_t>(kBlockBytes / bytes, 1, (total + threads - 1) / threads);
  const int64_t blocks = (total + block - 1) / block, grain = threads == 1 ? blocks : 1;
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    std::vector<char> head(block * bytes); // the cycle's first row, overwritten before it is read
    std::vector<int64_t> ys(block), offsets(block); // of each line: y, byte offset of all.left
    for (int64_t b = begin; b < end; ++b) {
      const int64_t count = std::min(block, total - b * block);
      for (int64_t l = 0; l < count; ++l) {
        const int64_t line = b * block + l;
        ys[l] = all.top + line % height;
        offsets[l] = lines.offset(line / height, ys[l]) * elem + all.left * column;
      }
      // Changes row i inside its box. The partner's columns in line l begin at from(l), `step`
      // bytes apart.
      const auto change_row = [&](int64_t i, int64_t step, const auto &from) {
        const Box &own = boxes[i];
        const int64_t first = own.left - all.left, last = own.right - all.left;
        const int64_t run = column == unit && step == unit ? last - first : 1; // columns per call
        for (int64_t l = 0; l < count; ++l) {
          if (ys[l] < own.top || ys[l] >= own.bottom) continue;
          for (int64_t c = first; c < last; c += run)
            change(data + i * row_stride + offsets[l] + c * column, from(l) + c * step, run, i);
        }
      };
      const int64_t run = column == unit ? width : 1;
      for (int64_t cycle = 0; cycle < cycles.count(); ++cycle) {
        int64_t k = cycles.begin[cycle];
        char *first = data + cycles.row[k] * row_stride;
        if constexpr (std::is_same_v<Change, Paste>) {
          // Two rows that are each other's partners, in one shared box, e.g. all rows of a flipped
          // batch: swap them. No row is saved.
          if (cycles.begin[cycle + 1] == k + 2 && boxes.shared()) {
            char *second = data + cycles.row[k + 1] * row_stride;
            for (int64_t l = 0; l < count; ++l)
              for (int64_t c = offsets[l]; c < offsets[l] + width * column; c += run * column)
                swap(first + c, second + c, run * unit);
            continue;
          }
        }
        for (int64_t l = 0; l < count; ++l)
          for (int64_t c = 0; c < width; c += run)
            copy(head.data() + l * bytes + c * unit, first + offsets[l] + c * column, run * unit);
        for (; k + 1 < cycles.begin[cycle + 1]; ++k) {
          const char *partner = data + cycles.row[k + 1] * row_stride;
          change_row(cycles.row[k], column, [&](int64_t l) { return partner + offsets[l]; });
        }
        change_row(cycles.row[k], unit, [&](int64_t l) { return head.data() + l * bytes; });
      }
    }
  });
}

void cutmix_(Tensor x, Tensor perm, Tensor box, Tensor lam_tensor) {
  const Cycles cycles(static_cast<const int64_t *>(perm.const_data_ptr()), x.size(0));
  const Lines lines(x);
  const Boxes boxes(box, x.size(0), lines.height, lines.width);
  if (x.numel() == 0 || boxes.all.left >= boxes.all.right) return;
  const std::optional<DType> type = find_dtype(x.scalar_type());
  const Lam lam(lam_tensor, type == kDouble);
  const int64_t unit = lines.unit;
  if (!type || (!lam.per_sample && lam.shared == 0)) {
    walk(x, cycles, lines, boxes, Paste{unit * static_cast<int64_t>(x.element_size())});
    return;
  }
  const auto kernel = row_kernels().mix[*type];
  walk(x, cycles, lines, boxes, [=](char *p, const char *from, int64_t columns, int64_t i) {
    kernel(p, p, from, p, columns * unit, lam.own(i), lam.other(i), false);
  });
}

} // namespace
} // namespace mmix

STABLE_TORCH_LIBRARY_IMPL(mmix_fast, CPU, m) { m.impl("cutmix_", TORCH_BOX(&mmix::cutmix_)); }
