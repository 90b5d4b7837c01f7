// cutmix_ on strided CPU tensors: like mix_, but each row changes inside its own box only. Lines of
// an image are independent, so blocks of them are the units of work; each walks the cycles of perm
// with only the head's lines saved. Integers are pasted: bytes of an element's size, with no
// arithmetic; so is everything where the one λ is 0.
#include "cpu/cycles.h"
#include "cpu/tensors.h"
#include <algorithm>
#include <cstring>
#include <torch/csrc/stable/library.h>
#include <vector>

namespace mmix {
namespace {

// An image's line y, seen as columns of `unit` contiguous elements: 1, or all channels of a
// channels_last image. The other dimensions, channels for one, number the images of a sample.
struct Lines {
  int64_t unit = 1, column_stride, width, height, y_stride, outer = 1;
  std::vector<int64_t> sizes, strides; // of the other dimensions, fastest first

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

// Bytes of a row that are changed before the next row's turn, with the head's in the L1 cache.
constexpr int64_t kBlockBytes = 8192;

struct Box {
  int64_t top, bottom, left, right;
};

// The one box, or that of each row, and the least box that holds them all.
struct Boxes {
  Boxes(const Tensor &box, int64_t n, int64_t height, int64_t width)
      : own(static_cast<const Box *>(box.const_data_ptr())), step(box.dim() == 2 ? 1 : 0),
        all{height, 0, width, 0} {
    for (int64_t i = 0; i < (step ? n : 1); ++i) {
      const Box &b = own[i];
      if (b.top < 0 || b.bottom < b.top || height < b.bottom || b.left < 0 || b.right < b.left ||
          width < b.right) {
        std::ostringstream text;
        text << "box must hold 0 <= top <= bottom <= " << height
             << " and 0 <= left <= right <= " << width << ", got (" << b.top << ", " << b.bottom
             << ", " << b.left << ", " << b.right << ")";
        throw std::invalid_argument(text.str());
      }
      if (b.top < b.bottom && b.left < b.right)
        all = {std::min(all.top, b.top), std::max(all.bottom, b.bottom),
               std::min(all.left, b.left), std::max(all.right, b.right)};
    }
  }
  const Box &operator[](int64_t i) const { return own[i * step]; }

  const Box *own; // the tensor's rows of four
  int64_t step;
  Box all;
};

// The row kernel of elements that are no numbers to us: other's bytes, whatever λ is.
template <int64_t kBytes>
void paste(void *dst, const void *, const void *other, const void *, int64_t n, double, double,
           bool) {
  std::memcpy(dst, other, n * kBytes);
}

auto row_kernel_of(const Tensor &x, bool pastes) {
  if (!pastes) return row_kernels().mix[dtype_of(x.scalar_type())];
  switch (x.element_size()) {
  case 1:
    return &paste<1>;
  case 2:
    return &paste<2>;
  case 4:
    return &paste<4>;
  default:
    return &paste<8>;
  }
}

bool is_number(ScalarType type) {
  return type == ScalarType::Half || type == ScalarType::BFloat16 || type == ScalarType::Float ||
         type == ScalarType::Double;
}

void cutmix_(Tensor x, Tensor perm, Tensor box, Tensor lam_tensor) {
  const int64_t n = x.size(0);
  const Cycles cycles(static_cast<const int64_t *>(perm.const_data_ptr()), n);
  const Lines lines(x);
  const Boxes boxes(box, n, lines.height, lines.width);
  const Box &all = boxes.all;
  const int64_t width = all.right - all.left, height = all.bottom - all.top;
  if (x.numel() == 0 || width <= 0 || height <= 0) return;
  const Lam lam(lam_tensor, x.scalar_type() == ScalarType::Double);
  const auto mix_row =
      row_kernel_of(x, !is_number(x.scalar_type()) || (!lam.per_sample && lam.shared == 0));
  const int64_t elem = x.element_size(), unit = lines.unit * elem;
  const int64_t column = lines.column_stride * elem, row_stride = x.stride(0) * elem;
  char *data = static_cast<char *>(x.mutable_data_ptr());

  const int64_t total = lines.outer * height, bytes = width * unit; // lines, bytes of one
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(),
                                            1 + total * bytes * n / kBytesPerThread);
  const int64_t block =
      std::clamp<int64_t>(kBlockBytes / bytes, 1, (total + threads - 1) / threads);
  const int64_t blocks = (total + block - 1) / block, grain = threads == 1 ? blocks : 1;
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    std::vector<char> head(block * bytes); // of the cycle's first row, overwritten before its use
    std::vector<int64_t> ys(block), offsets(block); // of the block's lines; bytes, the box's left
    for (int64_t b = begin; b < end; ++b) {
      const int64_t count = std::min(block, total - b * block);
      for (int64_t l = 0; l < count; ++l) {
        const int64_t line = b * block + l;
        ys[l] = all.top + line % height;
        offsets[l] = lines.offset(line / height, ys[l]) * elem + all.left * column;
      }
      // Mixes row i inside its box; the partner's columns, in line l from `from(l)`, are `step`
      // apart.
      const auto change = [&](int64_t i, int64_t step, const auto &from) {
        const Box &own_box = boxes[i];
        const double own = lam.own(i), other = lam.other(i);
        const bool dense = column == unit && step == unit;
        const int64_t first = own_box.left - all.left, last = own_box.right - all.left;
        const int64_t run = dense ? last - first : 1; // columns a call
        for (int64_t l = 0; l < count; ++l) {
          if (ys[l] < own_box.top || ys[l] >= own_box.bottom) continue;
          for (int64_t c = first; c < last; c += run) {
            char *p = data + i * row_stride + offsets[l] + c * column;
            mix_row(p, p, from(l) + c * step, p, run * lines.unit, own, other, false);
          }
        }
      };
      const int64_t run = column == unit ? width : 1;
      for (int64_t cycle = 0; cycle < cycles.count(); ++cycle) {
        int64_t k = cycles.begin[cycle];
        const char *first = data + cycles.row[k] * row_stride;
        for (int64_t l = 0; l < count; ++l)
          for (int64_t c = 0; c < width; c += run)
            std::memcpy(head.data() + l * bytes + c * unit, first + offsets[l] + c * column,
                        run * unit);
        for (; k + 1 < cycles.begin[cycle + 1]; ++k) {
          const char *partner = data + cycles.row[k + 1] * row_stride;
          change(cycles.row[k], column, [&](int64_t l) { return partner + offsets[l]; });
        }
        change(cycles.row[k], unit, [&](int64_t l) { return head.data() + l * bytes; });
      }
    }
  });
}

} // namespace
} // namespace mmix

STABLE_TORCH_LIBRARY_IMPL(mmix_fast, CPU, m) { m.impl("cutmix_", TORCH_BOX(&mmix::cutmix_)); }
