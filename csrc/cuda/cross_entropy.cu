// Mixed cross-entropy on the GPU, in one launch, or in two if a mean has many rows. Nothing is read
// on the host.
//   divisors             what a mean divides by, from labels, weights and λ, if there are many rows
//                        and the caller does not give it
//   rows, tiles or maps  these divisors if there are few rows; statistics, losses, their sum; the
//                        gradient if it is wanted
#include "cuda/cross_entropy_plan.h"
#include "cuda/loss_launch.h"

namespace mmix {
namespace {

LossProblem problem_of(const LossArgs &args) {
  const int64_t all = args.all_classes();
  STD_TORCH_CHECK(all <= INT32_MAX / 2, "there are too many classes");
  LossProblem a = loss_problem(args, Smoothing(args.label_smoothing, all));
  a.all_classes = static_cast<int>(all);
  a.class_offset = static_cast<int>(args.class_offset);
  a.ignore_index = args.ignore_index;
  a.z_loss = args.z_loss;
  a.softcap = args.softcap;
  a.inverse_softcap = args.softcap == 0 ? 0 : 1 / args.softcap;
  a.constant_scale = 1;
  if (args.scales)
    a.scales = input<double>(*args.scales);
  else if (!a.labels && args.is_mean())
    a.constant_scale = 1.0 / static_cast<double>(a.rows);
  a.dense = !a.labels || (args.weight && args.label_smoothing != 0);
  return a;
}

// Sums the divisors in a launch of its own.
template <class Real> Workspace divisors(const OnDevice &device, LossProblem &a, const Tensor &z) {
  const auto kernel = cross_entropy_divisors<Real>;
  const auto blocks = grid_for((a.rows + kMeanThreads - 1) / kMeanThreads, 1, device.device(),
                               device.kernel(kernel), kMeanThreads, sizeof(LossScratch));
  Workspace space(device, z, blocks * kMeanSums + MeanScales::kCount);
  a.last = space.last;
  double *scales = space.at + blocks * kMeanSums;
  device.launch(kernel, blocks, kMeanThreads, sizeof(LossScratch), a, space.at, scales);
  a.scales = scales;
  return space;
}

// Plans and launches the kernels of a forward or a backward.
template <class T> void run(const OnDevice &device, LossProblem a, const Tensor &z, bool summed) {
  const LossForm form(a, sizeof(T));
  const auto tiles = form.general ? cross_entropy_tiles<T, true> : cross_entropy_tiles<T, false>;
  auto rows = cross_entropy_rows<T, false, true>;
  if (form.packed && !form.general) rows = cross_entropy_rows<T, true, false>;
  if constexpr (sizeof(T) < 8)
    if (form.packed && form.general) rows = cross_entropy_rows<T, true, true>;
  void (*maps)(LossProblem, MapsPlan) = nullptr; // there are none in float64
  if constexpr (sizeof(T) < 8) maps = cross_entropy_maps<T>;
  const bool divided =
      a.counts && a.rows > most_counted_rows(form, sizeof(T)); // by a launch before
  if (divided) a.counts = false;
  const LossPlan plan =
      plan_loss(a, form, sizeof(T), device.device(), maps ? &device.kernel(maps) : nullptr,
                device.kernel(tiles), device.kernel(rows), device.clusters(rows));
  std::optional<Workspace> scales, sums; // until the launch
  if (divided) scales = divisors<Acc<T>>(device, a, z);
  if (summed) {
    sums.emplace(device, z, plan.blocks);
    a.partial = sums->at;
    a.last = sums->last;
  }
  if (plan.mapped)
    device.launch(maps, plan.blocks, plan.threads, plan.shared, a, plan.maps);
  else if (plan.tiled)
    device.launch(tiles, plan.blocks, plan.threads, plan.shared, a, plan.tiles);
  else
    device.launch_clusters(plan.rows.cluster, rows, plan.blocks, plan.threads, plan.shared, a,
                           plan.rows);
}

void run(const OnDevice &device, const LossArgs &args, LossProblem &a, bool summed) {
  a.counts = args.is_mean() && a.labels && !a.scales;
  with_dtype(args.logits.scalar_type(), [&]<class T>() { run<T>(device, a, args.logits, summed); });
}

struct Forward {
  Tensor loss, stats;
};
// gradient: null if it is not wanted; may be the logits.
Forward forward(const LossArgs &args, const Tensor *gradient) {
  const Tensor &z = args.logits;
  const OnDevice device(z);
  const ScalarType acc = arithmetic_of(z.scalar_type());
  const auto shape = args.is_per_row() ? row_shape(z) : std::vector<int64_t>{};
  LossProblem a = problem_of(args);
  Tensor loss = torch::stable::new_empty(z, shape, acc);
  Tensor stats = torch::stable::new_empty(z, {a.rows, 2}, acc);
  if (a.rows == 0) { // a mean over nothing is NaN, a sum 0
    if (args.scales)
      torch::stable::copy_(loss, torch::stable::select(*args.scales, 0, MeanScales::kAdded));
    else if (!args.is_per_row())
      torch::stable::fill_(loss, args.is_mean() ? NAN : 0.0);
    return {loss, stats};
  }
  a.stats = output<char>(stats);
  a.loss = output<char>(loss);
  if (gradient) {
    a.gradient = output<char>(*gradient);
    a.gradient_at = row_layout(*gradient);
  }
  run(device, args, a, !args.is_per_row());
  return {loss, stats};
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy(MMIX_LOSS_PARAMETERS,
                                                 std::optional<double> upstream) {
  const bool with_gradient = upstream && *upstream == 1; // loss and gradient share coefficients
  Tensor gradient =
      with_gradient ? torch::stable::empty_like(logits) : torch::stable::new_empty(logits, {0});
  auto [loss, stats] = forward(MMIX_LOSS_ARGS, with_gradient ? &gradient : nullptr);
  return {loss, stats, gradient};
}

// Every kernel has read all it needs of a logit before the gradient is written over it. A row or a
// tile waits in shared memory. Of a row in segments, all are read before the first gradient is
// written, and each one again by the threads that write it, just before they do.
Tensor cross_entropy_(MMIX_LOSS_PARAMETERS) { return forward(MMIX_LOSS_ARGS, &logits).loss; }

Tensor cross_entropy_part(MMIX_LOSS_PARAMETERS) {
  const LossArgs args = MMIX_LOSS_ARGS;
  const OnDevice device(logits);
  LossProblem a = problem_of(args);
  Tensor part = torch::stable::new_empty(logits, {a.rows, 4}, arithmetic_of(logits.scalar_type()));
  if (a.rows == 0) return part;
  a.of_shard = true;
  a.stats = output<char>(part);
  run(device, args, a, false);
  return part;
}

void backward_into(const Tensor &out, const Tensor &grad, const Tensor &stats, const LossArgs &args,
                   bool rescale) {
  const OnDevice device(args.logits);
  LossProblem a = problem_of(args);
  if (a.rows == 0 || a.classes == 0) return;
  a.gradient = output<char>(out);
  a.gradient_at = row_layout(out);
  a.upstream = input<char>(grad);
  a.upstream_per_row = args.is_per_row();
  a.stats = const_cast<char *>(input<char>(stats));
  a.from_stats = true;
  a.of_shard = args.is_shard();
  a.rescale = rescale;
  run(device, args, a, false);
}

Tensor cross_entropy_backward(Tensor grad, Tensor stats, MMIX_LOSS_PARAMETERS) {
  Tensor out = torch::stable::empty_like(logits);
  backward_into(out, grad, stats, MMIX_LOSS_ARGS, false);
  return out;
}

void cross_entropy_backward_(Tensor grad, Tensor stats, MMIX_LOSS_PARAMETERS) {
  backward_into(logits, grad, stats, MMIX_LOSS_ARGS, false);
}

// The forward wrote the gradient for an upstream gradient of 1, the most common one of a mean or a
// sum. Then the forward moves 2NC elements (N rows, C classes: logits read, gradient written) and
// the backward none. Any other upstream gradient costs 2NC more (logits read again, gradient
// written again), 4NC in all. It would be 3NC if only the backward wrote the gradient, as with
// inplace_backward. But the upstream gradient is known only on the GPU and after the forward.
// Always waiting for it would cost the common case 3NC instead of 2NC. Scaling the 16-bit gradient
// that exists would move as much as computing it again, and would round it twice.
void cross_entropy_rescale_(Tensor gradient, Tensor grad, Tensor stats, MMIX_LOSS_PARAMETERS) {
  backward_into(gradient, grad, stats, MMIX_LOSS_ARGS, true);
}

} // namespace
} // namespace mmix

STABLE_TORCH_LIBRARY_IMPL(MMIX_NAMESPACE, MMIX_DEVICE_KEY, m) {
  m.impl("cross_entropy", TORCH_BOX(&mmix::cross_entropy));
  m.impl("cross_entropy_", TORCH_BOX(&mmix::cross_entropy_));
  m.impl("cross_entropy_part", TORCH_BOX(&mmix::cross_entropy_part));
  m.impl("cross_entropy_backward", TORCH_BOX(&mmix::cross_entropy_backward));
  m.impl("cross_entropy_backward_", TORCH_BOX(&mmix::cross_entropy_backward_));
  m.impl("cross_entropy_rescale_", TORCH_BOX(&mmix::cross_entropy_rescale_));
}
