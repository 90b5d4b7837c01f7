// cutmix_ on strided CPU tensors: like mix_, but each row changes inside its own box only. Lines of
// an image are independent, so the work is split over them; each walks the cycles of perm with only
// the head's line saved. Integers are pasted: bytes of an element's size, with no arithmetic.
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

struct Box {
  int64_t top, bottom, left, right;
};

// The box of each row, then the least box that holds them all.
std::vector<Box> boxes_of(const Tensor &box, int64_t n, int64_t height, int64_t width) {
  std::vector<Box> boxes(n + 1);
  Box all{height, 0, width, 0};
  const int64_t *p = static_cast<const int64_t *>(box.const_data_ptr());
  for (int64_t i = 0; i < n; ++i, p += box.dim() == 2 ? 4 : 0) {
    const Box b{p[0], p[1], p[2], p[3]};
    if (b.top < 0 || b.bottom < b.top || height < b.bottom || b.left < 0 || b.right < b.left ||
        width < b.right) {
      std::ostringstream text;
      text << "box must hold 0 <= top <= bottom <= " << height
           << " and 0 <= left <= right <= " << width << ", got (" << b.top << ", " << b.bottom
           << ", " << b.left << ", " << b.right << ")";
      throw std::invalid_argument(text.str());
    }
    if (b.top < b.bottom && b.left < b.right)
      all = {std::min(all.top, b.top), std::max(all.bottom, b.bottom), std::min(all.left, b.left),
             std::max(all.right, b.right)};
    boxes[i] = b;
  }
  boxes[n] = all;
  return boxes;
}

// The row kernel of elements that are no numbers to us: other's bytes, whatever λ is.
template <int64_t kBytes>
void paste(void *dst, const void *, const void *other, const void *, int64_t n, double, double,
           bool) {
  std::memcpy(dst, other, n * kBytes);
}

auto row_kernel_of(ScalarType type) {
  switch (type) {
  case ScalarType::Byte:
    return &paste<1>;
  case ScalarType::Short:
    return &paste<2>;
  case ScalarType::Int:
    return &paste<4>;
  case ScalarType::Long:
    return &paste<8>;
  default:
    return row_kernels().mix[dtype_of(type)];
  }
}

void cutmix_(Tensor x, Tensor perm, Tensor box, Tensor lam_tensor) {
  const int64_t n = x.size(0), row_stride = x.stride(0);
  const Cycles cycles(static_cast<const int64_t *>(perm.const_data_ptr()), n);
  const Lines lines(x);
  const std::vector<Box> boxes = boxes_of(box, n, lines.height, lines.width);
  const Box &all = boxes[n];
  const int64_t width = all.right - all.left, height = all.bottom - all.top;
  if (x.numel() == 0 || width <= 0 || height <= 0) return;
  const Lam lam(lam_tensor, x.scalar_type() == ScalarType::Double);
  const int64_t elem = x.element_size(), unit = lines.unit, column = lines.column_stride;
  const auto mix_row = row_kernel_of(x.scalar_type());
  char *data = static_cast<char *>(x.mutable_data_ptr());

  const int64_t bytes = width * unit * elem;
  const int64_t grain = std::max<int64_t>(1, kBytesPerThread / (bytes * n));
  torch::stable::parallel_for(0, lines.outer * height, grain, [&](int64_t begin, int64_t end) {
    std::vector<char> head(bytes); // the first row of the cycle, overwritten before its last use
    for (int64_t line = begin; line < end; ++line) {
      const int64_t y = all.top + line % height;
      const int64_t offset = lines.offset(line / height, y) + all.left * column;
      const auto at = [&](int64_t i) { return data + (offset + i * row_stride) * elem; };
      // Mixes row i inside its box; the columns of its partner, at `from`, are `step` apart.
      const auto change = [&](int64_t i, const char *from, int64_t step) {
        const Box &b = boxes[i];
        if (y < b.top || y >= b.bottom || b.left == b.right) return;
        const double own = lam.own(i), other = lam.other(i);
        const bool dense = column == unit && step == unit;
        const int64_t run = dense ? b.right - b.left : 1; // columns a call
        for (int64_t c = b.left - all.left; c < b.right - all.left; c += run) {
          char *p = at(i) + c * column * elem;
          mix_row(p, p, from + c * step * elem, p, run * unit, own, other, false);
        }
      };
      const int64_t run = column == unit ? width : 1;
      for (int64_t k = 0; k < n; ++k) {
        if (cycles.head[k] == k)
          for (int64_t c = 0; c < width; c += run)
            std::memcpy(head.data() + c * unit * elem, at(cycles.row[k]) + c * column * elem,
                        run * unit * elem);
        if (cycles.ends_cycle(k))
          change(cycles.row[k], head.data(), unit);
        else
          change(cycles.row[k], at(cycles.row[k + 1]), column);
      }
    }
  });
}

} // namespace
} // namespace mmix

STABLE_TORCH_LIBRARY_IMPL(mmix_fast, CPU, m) { m.impl("cutmix_", TORCH_BOX(&mmix::cutmix_)); }
