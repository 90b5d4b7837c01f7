// Mixed cross-entropy. The forward reads the logits once, keeps two numbers for each row, and can
// write the gradient in the same pass. The backward computes the gradient from the logits and those
// numbers. It writes to a new tensor or over the logits.
#include "cpu/loss_across.h"
#include "cpu/loss_along.h"
#include <torch/csrc/stable/library.h>

namespace mmix {
namespace {

// Rows with fewer classes than this are processed by AcrossRows. With vectors along the classes,
// the partial vector at the end of each row would cost more than a transposition.
constexpr int64_t kShortRow = 160;

template <class A, class Body>
double over_rows(const LossRows<A> &rows, const GradientRows *out, const Body &body) {
  if (rows.logits.rows_adjacent() || rows.classes < kShortRow)
    return share_out<AcrossRows<A>>(rows, out, body);
  return share_out<AlongClasses<A>>(rows, out, body);
}

template <class A>
double forward(const LossRows<A> &rows, const GradientRows *gradient, double upstream,
               Softmax<A> *stats, A *loss) {
  const double total = over_rows(rows, gradient, [&](auto &worker, int64_t first, int64_t n) {
    return worker.forward(first, n, stats + first, rows.per_row ? loss + first : nullptr, upstream);
  });
  return rows.undefined ? std::numeric_limits<double>::quiet_NaN() : total;
}

// The op's loss: one for each row, or their mean or sum.
template <class A> struct Losses {
  Losses(const Tensor &logits, const LossRows<A> &rows)
      : tensor(fresh(rows.per_row ? row_shape(logits) : std::vector<int64_t>{},
                     arithmetic_of(logits.scalar_type()))),
        data(static_cast<A *>(tensor.mutable_data_ptr())), one(!rows.per_row) {}
  void finish(double total) {
    if (one) *data = static_cast<A>(total);
  }
  Tensor tensor;
  A *data;
  bool one;
};

// stats, a (rows, 2) tensor, as one Softmax for each row.
template <class A> Softmax<A> *softmax_of(const Tensor &stats) {
  return static_cast<Softmax<A> *>(const_cast<void *>(stats.const_data_ptr()));
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy(MMIX_LOSS_PARAMETERS,
                                                 std::optional<double> upstream) {
  const LossArgs args = MMIX_LOSS_ARGS;
  return with_arithmetic(logits, [&](auto zero) {
    using A = decltype(zero);
    const LossRows<A> rows(args);
    Losses<A> losses(logits, rows);
    Tensor stats = fresh({rows.count, 2}, arithmetic_of(logits.scalar_type()));
    Tensor gradient = upstream ? fresh_like(logits) : fresh({0}, logits.scalar_type());
    std::optional<GradientRows> out;
    if (upstream) out.emplace(gradient, streams(gradient));
    losses.finish(forward(rows, out ? &*out : nullptr, upstream.value_or(1), softmax_of<A>(stats),
                          losses.data));
    return std::tuple(losses.tensor, stats, gradient);
  });
}

Tensor cross_entropy_(MMIX_LOSS_PARAMETERS) {
  const LossArgs args = MMIX_LOSS_ARGS;
  return with_arithmetic(logits, [&](auto zero) {
    using A = decltype(zero);
    const LossRows<A> rows(args);
    Losses<A> losses(logits, rows);
    std::vector<Softmax<A>> stats(rows.count);
    const GradientRows out(logits, false);
    losses.finish(forward(rows, &out, 1, stats.data(), losses.data));
    return losses.tensor;
  });
}

Tensor cross_entropy_part(MMIX_LOSS_PARAMETERS) {
  const LossArgs args = MMIX_LOSS_ARGS;
  return with_arithmetic(logits, [&](auto zero) {
    using A = decltype(zero);
    const LossRows<A> rows(args);
    Tensor part = fresh({rows.count, 4}, arithmetic_of(logits.scalar_type()));
    A *to = static_cast<A *>(part.mutable_data_ptr());
    share_out<AlongClasses<A>>(rows, nullptr, [&](auto &worker, int64_t r, int64_t) {
      worker.part(r, to + 4 * r);
      return 0.0;
    });
    return part;
  });
}

// `unit`: out already holds the gradient for an upstream gradient of 1.
void gradient_into(const Tensor &out, const Tensor &grad, const Tensor &stats, const LossArgs &args,
                   bool unit, bool stream) {
  with_arithmetic(args.logits, [&](auto zero) {
    using A = decltype(zero);
    const A *g = static_cast<const A *>(grad.const_data_ptr());
    if (unit && !args.is_per_row() && *g == 1) return;
    const LossRows<A> rows(args);
    const GradientRows to(out, stream);
    if (args.is_shard()) { // of few rows and many classes
      const A *of_all = static_cast<const A *>(stats.const_data_ptr());
      share_out<AlongClasses<A>>(rows, &to, [&](auto &worker, int64_t r, int64_t) {
        worker.shard_backward(r, of_all + 3 * r, g, rows.per_row);
        return 0.0;
      });
      return;
    }
    const Softmax<A> *softmax = softmax_of<A>(stats);
    over_rows(rows, &to, [&](auto &worker, int64_t first, int64_t n) {
      worker.backward(first, n, softmax + first, g, rows.per_row);
      return 0.0;
    });
  });
}

Tensor cross_entropy_backward(Tensor grad, Tensor stats, MMIX_LOSS_PARAMETERS) {
  Tensor out = fresh_like(logits);
  gradient_into(out, grad, stats, MMIX_LOSS_ARGS, false, streams(out));
  return out;
}

void cross_entropy_backward_(Tensor grad, Tensor stats, MMIX_LOSS_PARAMETERS) {
  gradient_into(logits, grad, stats, MMIX_LOSS_ARGS, false, false);
}

void cross_entropy_rescale_(Tensor gradient, Tensor grad, Tensor stats, MMIX_LOSS_PARAMETERS) {
  gradient_into(gradient, grad, stats, MMIX_LOSS_ARGS, true, streams(gradient));
}

} // namespace
} // namespace mmix

STABLE_TORCH_LIBRARY_IMPL(mmix_fast, CPU, m) {
  m.impl("cross_entropy", TORCH_BOX(&mmix::cross_entropy));
  m.impl("cross_entropy_", TORCH_BOX(&mmix::cross_entropy_));
  m.impl("cross_entropy_part", TORCH_BOX(&mmix::cross_entropy_part));
  m.impl("cross_entropy_backward", TORCH_BOX(&mmix::cross_entropy_backward));
  m.impl("cross_entropy_backward_", TORCH_BOX(&mmix::cross_entropy_backward_));
  m.impl("cross_entropy_rescale_", TORCH_BOX(&mmix::cross_entropy_rescale_));
}
