// Mixed binary cross-entropy, in one pass over the logits: the forward can write the gradient too.
// The backward computes it again from the logits alone.
#include "cpu/binary_across.h"
#include "cpu/binary_along.h"
#include "empty_like.h"
#include <torch/csrc/stable/library.h>

namespace mmix {
namespace {

// Rows with gaps between them are processed by BinaryAcross if they have fewer classes than this:
// vectors along so few would mostly be partial.
constexpr int64_t kShortRow = 64;

// Whether row after row lies in memory without gaps.
bool adjoining(const RowView &view, int64_t classes) {
  return view.class_stride == 1 && view.dims.size() <= 1 &&
         (view.dims.empty() || view.step() == classes);
}

// Returns the sum of the losses. `out` takes what rows.result says.
template <class A> double over_rows(BinaryRows<A> &rows, const GradientRows *out) {
  const int64_t classes = rows.classes;
  const bool adjoin = adjoining(rows.logits, classes) && (!out || adjoining(out->view, classes));
  const bool contiguous = rows.logits.class_stride == 1 && (!out || out->view.class_stride == 1);
  const auto run = [](auto &worker, int64_t first, int64_t n) { return worker.run(first, n); };
  if (adjoin || (contiguous && classes >= kShortRow)) {
    if (adjoin && classes > 0) rows.several = std::max<int64_t>(1, kBinaryPiece / classes);
    return share_out<BinaryAlong<A>>(rows, out, run);
  }
  rows.several = tile_rows<A>(rows);
  return share_out<BinaryAcross<A>>(rows, out, run);
}

std::tuple<Tensor, Tensor> binary_cross_entropy(MMIX_BINARY_LOSS_PARAMETERS,
                                                std::optional<double> upstream) {
  const BinaryLossArgs args = MMIX_BINARY_LOSS_ARGS;
  return with_arithmetic(logits, [&](auto zero) {
    using A = decltype(zero);
    BinaryRows<A> rows(args);
    const bool every = args.is_per_element();
    Tensor loss = every ? empty_like(logits, arithmetic_of(logits.scalar_type()))
                        : fresh({}, arithmetic_of(logits.scalar_type()));
    Tensor gradient = upstream ? fresh_like(logits) : fresh({0}, logits.scalar_type());
    std::optional<GradientRows> out;
    if (every) {
      rows.result = kLosses;
      expect_writes(loss.mutable_data_ptr(), loss.numel() * static_cast<int64_t>(sizeof(A)));
      out.emplace(loss, streams(loss));
    } else if (upstream) {
      rows.result = kGradient;
      rows.scale = *upstream / args.divisor();
      out.emplace(gradient, streams(gradient));
    }
    const double total = over_rows(rows, out ? &*out : nullptr);
    if (!every) *static_cast<A *>(loss.mutable_data_ptr()) = static_cast<A>(total / args.divisor());
    return std::tuple(loss, gradient);
  });
}

// `unit`: out already holds the gradient for an upstream gradient of 1.
void gradient_into(const Tensor &out, const Tensor &grad, const BinaryLossArgs &args, bool unit,
                   bool stream) {
  with_arithmetic(args.logits, [&](auto zero) {
    using A = decltype(zero);
    BinaryRows<A> rows(args);
    rows.result = kGradientAlone;
    if (is_expanded(grad)) {
      const A g = *static_cast<const A *>(grad.const_data_ptr());
      if (unit && g == 1) return;
      rows.scale = static_cast<double>(g) / args.divisor();
    } else {
      rows.upstream.emplace(grad);
    }
    const GradientRows to(out, stream);
    over_rows(rows, &to);
  });
}

Tensor binary_cross_entropy_backward(Tensor grad, MMIX_BINARY_LOSS_PARAMETERS) {
  Tensor out = fresh_like(logits);
  gradient_into(out, grad, MMIX_BINARY_LOSS_ARGS, false, streams(out));
  return out;
}

void binary_cross_entropy_backward_(Tensor grad, MMIX_BINARY_LOSS_PARAMETERS) {
  gradient_into(logits, grad, MMIX_BINARY_LOSS_ARGS, false, false);
}

void binary_cross_entropy_rescale_(Tensor gradient, Tensor grad, MMIX_BINARY_LOSS_PARAMETERS) {
  gradient_into(gradient, grad, MMIX_BINARY_LOSS_ARGS, true, streams(gradient));
}

} // namespace
} // namespace mmix

STABLE_TORCH_LIBRARY_IMPL(mmix_fast, CPU, m) {
  m.impl("binary_cross_entropy", TORCH_BOX(&mmix::binary_cross_entropy));
  m.impl("binary_cross_entropy_backward", TORCH_BOX(&mmix::binary_cross_entropy_backward));
  m.impl("binary_cross_entropy_backward_", TORCH_BOX(&mmix::binary_cross_entropy_backward_));
  m.impl("binary_cross_entropy_rescale_", TORCH_BOX(&mmix::binary_cross_entropy_rescale_));
}
