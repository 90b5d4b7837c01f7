// Mixed cross-entropy. The forward reads the logits once, keeps two numbers a row and can write the
// gradient in the same pass; the backward makes the gradient from those numbers, into a fresh
// buffer or over the logits themselves.
#include "cpu/loss_worker.h"
#include <algorithm>
#include <torch/csrc/stable/library.h>

namespace mmix {
namespace {

// A thread should have at least this much work; a row costs as much as this many more classes.
constexpr int64_t kLogitsPerThread = 65536, kRowCost = 256;

// Calls body(worker, row number) for every row, a worker for each thread.
template <class A, class Body>
void over_rows(const LossRows &rows, const GradientRows *out, const Body &body) {
  const int64_t grain = std::max<int64_t>(1, kLogitsPerThread / (rows.classes + kRowCost));
  torch::stable::parallel_for(0, rows.count, grain, [&](int64_t begin, int64_t end) {
    LossWorker<A> worker(rows, out);
    for (int64_t r = begin; r < end; ++r) body(worker, r);
    if (out && out->stream) publish_streamed();
  });
}

template <class A>
double forward(const LossRows &rows, const GradientRows *gradient, A *stats, A *loss) {
  // Row losses are summed in one fixed order, whatever the number of threads.
  std::vector<double> row_loss(rows.count, 0.0);
  over_rows<A>(rows, gradient, [&](LossWorker<A> &worker, int64_t r) {
    const LossRow row = rows.row(r);
    Softmax<A> s;
    if (row.live) {
      worker.load(r, row);
      s = worker.softmax(row);
      row_loss[r] = worker.loss(row, s);
      if (gradient) worker.gradient(r, row, 1, s);
    } else if (gradient) {
      worker.zero(r);
    }
    stats[2 * r] = s.max;
    stats[2 * r + 1] = s.log_sum;
  });
  double total = 0;
  for (int64_t r = 0; r < rows.count; ++r) {
    if (rows.per_row) loss[r] = static_cast<A>(row_loss[r]);
    total += row_loss[r];
  }
  return rows.undefined ? std::numeric_limits<double>::quiet_NaN() : total;
}

// Where `unit`, out holds the gradient for an upstream of 1 and such rows are done.
template <class A>
void backward(const LossRows &rows, const GradientRows &out, const A *grad, const A *stats,
              bool unit) {
  over_rows<A>(rows, &out, [&](LossWorker<A> &worker, int64_t r) {
    const double g = grad[rows.per_row ? r : 0];
    if (unit && g == 1) return;
    const LossRow row = rows.row(r);
    if (!row.live) return worker.zero(r);
    worker.load(r, row);
    const A max = stats[2 * r], log_sum = stats[2 * r + 1];
    worker.gradient(r, row, g, {max, log_sum, std::exp(log_sum)});
  });
}

template <class F> decltype(auto) with_arithmetic(const Tensor &logits, const F &f) {
  return logits.scalar_type() == ScalarType::Double ? f(double{}) : f(float{});
}

// The signature of each op is its schema's: MMIX_CE_ARGS of csrc/ops.cpp.
#define MMIX_CE_PARAMETERS                                                                         \
  Tensor logits, Tensor target, std::optional<Tensor> perm, std::optional<Tensor> target_b,        \
      Tensor lam, std::optional<Tensor> weight, int64_t ignore_index, std::string reduction,       \
      double label_smoothing, double z_loss, double softcap
#define MMIX_CE_LOSS_ARGS                                                                          \
  LossArgs {                                                                                       \
    logits, target, perm, target_b, lam, weight, ignore_index, reduction, label_smoothing, z_loss, \
        softcap                                                                                    \
  }

std::tuple<Tensor, Tensor, Tensor> cross_entropy(MMIX_CE_PARAMETERS, bool with_gradient) {
  const LossArgs args = MMIX_CE_LOSS_ARGS;
  const LossRows rows(args);
  const auto acc =
      logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  std::vector<int64_t> shape;
  for (int64_t d = 0; rows.per_row && d < logits.dim(); ++d)
    if (d != 1) shape.push_back(logits.size(d));
  Tensor loss = fresh(shape, acc);
  Tensor stats = fresh({rows.count, 2}, acc);
  Tensor gradient = with_gradient ? fresh_like(logits) : fresh({0}, logits.scalar_type());
  std::optional<GradientRows> out;
  if (with_gradient) out.emplace(gradient, streams(gradient));
  with_arithmetic(logits, [&](auto zero) {
    using A = decltype(zero);
    A *loss_data = static_cast<A *>(loss.mutable_data_ptr());
    const double total = forward<A>(rows, out ? &*out : nullptr,
                                    static_cast<A *>(stats.mutable_data_ptr()), loss_data);
    if (!rows.per_row) *loss_data = static_cast<A>(total);
  });
  return {loss, stats, gradient};
}

void gradient_into(const Tensor &out, const Tensor &grad, const Tensor &stats, const LossArgs &args,
                   bool unit, bool stream) {
  with_arithmetic(args.logits, [&](auto zero) {
    using A = decltype(zero);
    const A *g = static_cast<const A *>(grad.const_data_ptr());
    if (unit && args.reduction != "none" && *g == 1) return;
    const LossRows rows(args);
    const GradientRows to(out, stream);
    backward<A>(rows, to, g, static_cast<const A *>(stats.const_data_ptr()), unit);
  });
}

Tensor cross_entropy_backward(Tensor grad, Tensor stats, MMIX_CE_PARAMETERS) {
  Tensor out = fresh_like(logits);
  gradient_into(out, grad, stats, MMIX_CE_LOSS_ARGS, false, streams(out));
  return out;
}

void cross_entropy_backward_(Tensor grad, Tensor stats, MMIX_CE_PARAMETERS) {
  gradient_into(logits, grad, stats, MMIX_CE_LOSS_ARGS, false, false);
}

void cross_entropy_rescale_(Tensor gradient, Tensor grad, Tensor stats, MMIX_CE_PARAMETERS) {
  gradient_into(gradient, grad, stats, MMIX_CE_LOSS_ARGS, true, streams(gradient));
}

} // namespace
} // namespace mmix

STABLE_TORCH_LIBRARY_IMPL(mmix_fast, CPU, m) {
  m.impl("cross_entropy", TORCH_BOX(&mmix::cross_entropy));
  m.impl("cross_entropy_backward", TORCH_BOX(&mmix::cross_entropy_backward));
  m.impl("cross_entropy_backward_", TORCH_BOX(&mmix::cross_entropy_backward_));
  m.impl("cross_entropy_rescale_", TORCH_BOX(&mmix::cross_entropy_rescale_));
}
