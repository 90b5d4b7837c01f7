// Mixed binary cross-entropy on the GPU, in one launch. Nothing is read on the host.
#include "cuda/binary_cross_entropy_plan.h"
#include "cuda/loss_launch.h"
#include "empty_like.h"

namespace mmix {
namespace {

BinaryProblem problem_of(const BinaryLossArgs &args) {
  const Tensor &z = args.logits;
  BinaryProblem a{};
  const int64_t kinds = are_labels(args.target) ? z.size(1) : 2; // a target of 1/2 for each
  static_cast<LossProblem &>(a) = loss_problem(args, Smoothing(args.label_smoothing, kinds));
  a.ignore_index = -1; // out of range like every other negative label
  a.constant_scale = args.is_per_element() ? 1 : 1 / args.divisor();
  a.thresholded = args.target_threshold.has_value();
  a.threshold = args.target_threshold.value_or(0);
  if (args.pos_weight) a.pos_weight = class_values(*args.pos_weight);
  a.weighted = args.weight || args.pos_weight;
  a.per_element = args.is_per_element();
  a.by_classes = divisor(a.classes);
  a.inverse_classes = ~0u / static_cast<unsigned>(std::max(a.classes, 1));
  return a;
}

template <class T, bool kAcross, int kWidth, bool kGeneral>
void run_as(const OnDevice &device, BinaryProblem &a, const BinaryForm &form, const Tensor &z) {
  const auto kernel = binary_cross_entropy_tiles<T, kAcross, kWidth, kGeneral>;
  const BinaryPlan plan = plan_binary(a, form, device.device());
  const size_t shared = sizeof(LossScratch) + 2 * plan.rows * sizeof(BinaryRow<Acc<T>, kGeneral>);
  const unsigned blocks =
      grid_for(plan.tiles, 1, device.device(), device.kernel(kernel), kBinaryThreads, shared);
  std::optional<Workspace> sums; // until the launch
  if (a.loss && !a.per_element) {
    sums.emplace(device, z, blocks);
    a.partial = sums->at;
    a.last = sums->last;
  }
  device.launch(kernel, blocks, kBinaryThreads, shared, a, plan);
}

void run(const OnDevice &device, BinaryProblem &a, const Tensor &z) {
  with_dtype(z.scalar_type(), [&]<class T>() {
    const BinaryForm form = binary_form(a, sizeof(T));
    if (form.width == 1)
      return form.across ? run_as<T, true, 1, true>(device, a, form, z)
                         : run_as<T, false, 1, true>(device, a, form, z);
    if constexpr (sizeof(T) < 8) {
      if (form.across) return run_as<T, true, kPixels, true>(device, a, form, z);
      if (form.general) return run_as<T, false, kPixels, true>(device, a, form, z);
      run_as<T, false, Vec<T>::kCount, false>(device, a, form, z);
    }
  });
}

std::tuple<Tensor, Tensor> binary_cross_entropy(MMIX_BINARY_LOSS_PARAMETERS,
                                                std::optional<double> upstream) {
  const BinaryLossArgs args = MMIX_BINARY_LOSS_ARGS;
  const OnDevice device(logits);
  const ScalarType acc = arithmetic_of(logits.scalar_type());
  const bool with_gradient = upstream && *upstream == 1; // loss and gradient share coefficients
  Tensor loss =
      args.is_per_element() ? empty_like(logits, acc) : torch::stable::new_empty(logits, {}, acc);
  Tensor gradient =
      with_gradient ? torch::stable::empty_like(logits) : torch::stable::new_empty(logits, {0});
  if (logits.numel() == 0) { // a mean over nothing is NaN, a sum 0
    if (!args.is_per_element()) torch::stable::fill_(loss, 0 / args.divisor());
    return {loss, gradient};
  }
  BinaryProblem a = problem_of(args);
  a.loss = output<char>(loss);
  if (a.per_element) a.loss_at = row_layout(loss);
  if (with_gradient) {
    a.gradient = output<char>(gradient);
    a.gradient_at = row_layout(gradient);
  }
  run(device, a, logits);
  return {loss, gradient};
}

void backward_into(const Tensor &out, const Tensor &grad, const BinaryLossArgs &args,
                   bool rescale) {
  const OnDevice device(args.logits);
  if (args.logits.numel() == 0) return;
  BinaryProblem a = problem_of(args);
  a.gradient = output<char>(out);
  a.gradient_at = row_layout(out);
  a.upstream = input<char>(grad);
  a.per_element = a.upstream_per_row = !is_expanded(grad);
  if (a.per_element) a.upstream_at = row_layout(grad);
  a.rescale = rescale;
  run(device, a, args.logits);
}

Tensor binary_cross_entropy_backward(Tensor grad, MMIX_BINARY_LOSS_PARAMETERS) {
  Tensor out = torch::stable::empty_like(logits);
  backward_into(out, grad, MMIX_BINARY_LOSS_ARGS, false);
  return out;
}

void binary_cross_entropy_backward_(Tensor grad, MMIX_BINARY_LOSS_PARAMETERS) {
  backward_into(logits, grad, MMIX_BINARY_LOSS_ARGS, false);
}

// See cross_entropy_rescale_.
void binary_cross_entropy_rescale_(Tensor gradient, Tensor grad, MMIX_BINARY_LOSS_PARAMETERS) {
  backward_into(gradient, grad, MMIX_BINARY_LOSS_ARGS, true);
}

} // namespace
} // namespace mmix

STABLE_TORCH_LIBRARY_IMPL(MMIX_NAMESPACE, MMIX_DEVICE_KEY, m) {
  m.impl("binary_cross_entropy", TORCH_BOX(&mmix::binary_cross_entropy));
  m.impl("binary_cross_entropy_backward", TORCH_BOX(&mmix::binary_cross_entropy_backward));
  m.impl("binary_cross_entropy_backward_", TORCH_BOX(&mmix::binary_cross_entropy_backward_));
  m.impl("binary_cross_entropy_rescale_", TORCH_BOX(&mmix::binary_cross_entropy_rescale_));
}
