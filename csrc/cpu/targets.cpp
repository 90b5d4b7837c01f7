// mix_targets: soft targets written once, class-major within a sample as (B, C, d1, ...).
#include "checks.h"
#include "cpu/tensors.h"
#include <torch/csrc/stable/library.h>

namespace mmix {
namespace {

struct Blend { // lam*a + (1-lam)*b in the arithmetic's dtype; a zero coefficient's side is absent
  double own, other;
  bool wide;
  double operator()(double a, double b) const {
    if (other == 0) return a;
    if (own == 0) return b;
    if (wide) return own * a + other * b;
    return static_cast<float>(own) * static_cast<float>(a) +
           static_cast<float>(other) * static_cast<float>(b);
  }
};

Tensor mix_targets(Tensor target, Tensor perm, Tensor lam_tensor, int64_t classes, double eps,
                   int64_t ignore_index, ScalarType dtype) {
  const bool labels = target.scalar_type() == ScalarType::Long;
  const int64_t batch = target.size(0);
  const int64_t *index = static_cast<const int64_t *>(perm.const_data_ptr());
  check_permutation(index, batch);
  std::vector<int64_t> sizes{batch, classes};
  int64_t inner = 1;
  for (int64_t d = labels ? 1 : 2; d < target.dim(); ++d) {
    sizes.push_back(target.size(d));
    inner *= target.size(d);
  }
  const int64_t *y = labels ? static_cast<const int64_t *>(target.const_data_ptr()) : nullptr;
  for (int64_t i = 0; labels && i < batch * inner; ++i)
    check_label("target", y[i], classes, ignore_index);
  Tensor out = torch::stable::new_empty(target, sizes, dtype);
  if (out.numel() == 0) return out;
  const DType type = dtype_of(dtype);
  const DType source_type = labels ? kFloat : dtype_of(target.scalar_type());
  const Lam lam(lam_tensor);
  const bool wide = lam.type == kDouble;
  const auto narrow = [&](double v) {
    return wide ? v : static_cast<double>(static_cast<float>(v));
  };
  const double base = narrow(eps / classes), keep = 1.0 - eps;
  const double hot = narrow(keep + eps / classes);
  const void *source = target.const_data_ptr();
  void *dst = out.mutable_data_ptr();
  const int64_t sample = classes * inner;
  torch::stable::parallel_for(0, batch, 1 + 16384 / sample, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Blend blend{lam.own(b), lam.other(b), wide};
      const int64_t p = index[b];
      for (int64_t k = 0; k < sample; ++k) {
        double q_own, q_other;
        if (labels) {
          const int64_t c = k / inner, s = k % inner;
          const int64_t mine = y[b * inner + s], theirs = y[p * inner + s];
          q_own = mine == ignore_index ? 0 : mine == c ? hot : base;
          q_other = theirs == ignore_index ? 0 : theirs == c ? hot : base;
        } else {
          const auto smooth = [&](int64_t i) {
            const double t = read(source, source_type, i);
            return wide ? keep * t + eps / classes
                        : static_cast<double>(static_cast<float>(keep) * static_cast<float>(t) +
                                              static_cast<float>(eps / classes));
          };
          q_own = smooth(b * sample + k);
          q_other = smooth(p * sample + k);
        }
        write(dst, type, b * sample + k, blend(q_own, q_other));
      }
    }
  });
  return out;
}

} // namespace
} // namespace mmix

STABLE_TORCH_LIBRARY_IMPL(mmix_fast, CPU, m) {
  m.impl("mix_targets", TORCH_BOX(&mmix::mix_targets));
}
