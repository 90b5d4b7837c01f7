// mix_targets writes soft targets once, as a contiguous (B, C, d1, ...) tensor. mix_batch_ also
// mixes the activations.
#include "checks.h"
#include "cpu/tensors.h"
#include "shapes.h"
#include "smoothing.h"
#include <torch/csrc/stable/library.h>

namespace mmix {
namespace {

// A thread gets at least this many entries to write.
constexpr int64_t kEntriesPerThread = 16384;

template <class A, class T> struct TargetRows {
  const Lam &lam;
  const int64_t *perm; // null: the partners' targets are a tensor of their own
  int64_t classes, inner, batch;
  Smoothing smoothing;
  T *out;

  // Targets from labels. All entries of a row are equal, except those of its two labels. An ignored
  // label contributes zeros. y_b: the targets that perm names, or those of the partners.
  void from_labels(const int64_t *y, const int64_t *y_b, int64_t ignore_index) const {
    const A base = static_cast<A>(smoothing.base), hot = static_cast<A>(smoothing.hot);
    each([&](const Blend<A> &blend, int64_t b) {
      T *sample = out + b * classes * inner;
      const int64_t *mine = y + b * inner, *theirs = y_b + partner(b) * inner;
      const auto entry = [&](int64_t s, int64_t c) {
        const auto q = [&](int64_t label) {
          return label == ignore_index ? A(0) : label == c ? hot : base;
        };
        return static_cast<T>(blend(q(mine[s]), q(theirs[s])));
      };
      for (int64_t s = 0; s < inner; ++s) {
        const T usual = entry(s, -1); // -1 is no class
        if (inner == 1)
          std::fill_n(sample, classes, usual);
        else
          for (int64_t c = 0; c < classes; ++c) sample[c * inner + s] = usual;
        for (int64_t label : {mine[s], theirs[s]})
          if (label != ignore_index) sample[label * inner + s] = entry(s, label);
      }
    });
  }

  template <class S> void from_probabilities(const S *target, const S *target_b) const {
    const A keep = static_cast<A>(smoothing.keep), base = static_cast<A>(smoothing.base);
    each([&](const Blend<A> &blend, int64_t b) {
      const int64_t sample = classes * inner;
      const S *mine = target + b * sample, *theirs = target_b + partner(b) * sample;
      for (int64_t k = 0; k < sample; ++k)
        out[b * sample + k] = static_cast<T>(
            blend(keep * static_cast<A>(mine[k]) + base, keep * static_cast<A>(theirs[k]) + base));
    });
  }

private:
  int64_t partner(int64_t b) const { return perm ? perm[b] : b; }
  template <class Body> void each(const Body &body) const {
    const int64_t grain = 1 + kEntriesPerThread / (classes * inner);
    torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        body(Blend<A>{static_cast<A>(lam.own(b)), static_cast<A>(lam.other(b))}, b);
    });
  }
};

Tensor mix_targets(Tensor target, std::optional<Tensor> perm, Tensor lam_tensor, int64_t classes,
                   double eps, int64_t ignore_index, ScalarType dtype,
                   std::optional<Tensor> target_b) {
  const bool labels = are_labels(target);
  const int64_t batch = target.size(0);
  const int64_t *index = nullptr;
  if (perm) {
    index = static_cast<const int64_t *>(perm->const_data_ptr());
    check_permutation(index, batch);
  }
  const Tensor &partners = perm ? target : *target_b;
  const auto checked = [&](const char *name, const Tensor &t) {
    const int64_t *y = labels ? static_cast<const int64_t *>(t.const_data_ptr()) : nullptr;
    for (int64_t i = 0, n = t.numel(); labels && i < n; ++i)
      check_label(name, y[i], classes, ignore_index);
    return y;
  };
  const int64_t *y = checked("target", target), *y_b = perm ? y : checked("target_b", partners);
  Tensor out = fresh(soft_target_shape(target, classes), dtype);
  if (out.numel() == 0) return out;
  const bool wide = arithmetic_of(target.scalar_type(), dtype) == ScalarType::Double;
  const Lam lam(lam_tensor, wide);
  const int64_t inner = positions(out);
  const Smoothing smoothing(eps, classes);
  const auto fill = [&](auto acc) {
    using A = decltype(acc);
    visit(dtype_of(dtype), [&](auto *o) {
      using T = std::remove_pointer_t<decltype(o)>;
      T *data = static_cast<T *>(out.mutable_data_ptr());
      const TargetRows<A, T> rows{lam, index, classes, inner, batch, smoothing, data};
      if (labels) return rows.from_labels(y, y_b, ignore_index);
      visit(dtype_of(target.scalar_type()), [&](auto *s) {
        using S = std::remove_pointer_t<decltype(s)>;
        rows.from_probabilities(static_cast<const S *>(target.const_data_ptr()),
                                static_cast<const S *>(partners.const_data_ptr()));
      });
    });
  };
  wide ? fill(double{}) : fill(float{});
  return out;
}

Tensor mix_batch_(Tensor x, Tensor target, Tensor perm, Tensor lam, int64_t classes, double eps,
                  int64_t ignore_index, ScalarType dtype) {
  // The targets first: mix_targets checks the values before x is written.
  Tensor soft = mix_targets(target, perm, lam, classes, eps, ignore_index, dtype, std::nullopt);
  mix_(x, perm, lam, 0);
  return soft;
}

} // namespace
} // namespace mmix

STABLE_TORCH_LIBRARY_IMPL(mmix_fast, CPU, m) {
  m.impl("mix_targets", TORCH_BOX(&mmix::mix_targets));
  m.impl("mix_batch_", TORCH_BOX(&mmix::mix_batch_));
}
