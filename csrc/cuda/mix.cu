// mix, mix_, mix_targets, mix_batch_ and cutmix_ on CUDA tensors. Nothing here reads a value on the
// host.
#include "cuda/batches.h"
#include "cuda/mix_plan.h"
#include "shapes.h"
#include "smoothing.h"
#include <optional>
#include <vector>

namespace mmix {
namespace {

// The largest power of two, at most 32, that divides the address of every run in bytes.
template <class T> int alignment_of(const MixArgs<T> &a) {
  uint64_t all = reinterpret_cast<uintptr_t>(a.x) | reinterpret_cast<uintptr_t>(a.out);
  const auto add = [&](int64_t stride) { all |= static_cast<uint64_t>(stride) * sizeof(T); };
  if (a.batch > 1) add(a.x_row), add(a.out_row);
  for (int d = 0; d < a.columns.dims; ++d) add(a.columns.x_stride[d]), add(a.columns.out_stride[d]);
  return 1 << std::countr_zero(all | 32);
}

// perm for a kernel; for a batch with claims in global memory, room for 2 bits a row.
struct Pairs {
  Pairing args;
  std::optional<Tensor> bits; // freed in stream order by torch's allocator
  Pairs(const Tensor &perm, int batch, bool claims_in_block)
      : args{input<int64_t>(perm), batch, nullptr} {
    if (claims_in_block) return;
    bits = torch::stable::new_empty(perm, {Claims::words(batch)}, ScalarType::Int);
    args.claims = output<unsigned>(*bits);
  }
};

struct Targets { // the part of a launch that writes soft targets
  TargetArgs args;
  Tensor out;
  bool wide; // float64 arithmetic
};

Targets make_targets(const Tensor &target, const Tensor &lam, int64_t classes, double eps,
                     int64_t ignore_index, ScalarType dtype) {
  Tensor out = torch::stable::new_empty(target, soft_target_shape(target, classes), dtype);
  const bool wide = arithmetic_of(target.scalar_type(), dtype) == ScalarType::Double;
  const auto number = [wide](double v) {
    Number n{};
    if (wide)
      n.wide = v;
    else
      n.narrow = static_cast<float>(v);
    return n;
  };
  TargetArgs a{};
  a.labels = are_labels(target);
  if (!a.labels) a.type = dtype_of(target.scalar_type());
  a.out_type = dtype_of(dtype);
  a.target = input<void>(target);
  a.out = output<void>(out);
  a.batch = checked_batch(target.size(0));
  a.classes = classes;
  a.inner = positions(out);
  a.lam = lam_ref(lam);
  const Smoothing smoothing(eps, classes);
  a.keep = number(smoothing.keep);
  a.base = number(smoothing.base);
  a.hot = number(smoothing.hot);
  a.ignore_index = ignore_index;
  return {a, out, wide};
}

// cutmix_ pastes the elements of other dtypes as bits, of 1, 2, 4 or 8 bytes.
bool are_bits(const Tensor &x) { return !find_dtype(x.scalar_type()); }

BoxArgs box_args(const Tensor &x, const Tensor &box) {
  BoxArgs b{input<int64_t>(box), box.dim() == 2 ? 4 : 0, 1, 1, 1, 1, 1, are_bits(x)};
  int64_t every = 1;
  for (int64_t d : sorted_dims(x, x, 0)) {
    if (d == x.dim() - 2) b.y_every = every, b.height = x.size(d);
    if (d == x.dim() - 1) b.x_every = every, b.width = x.size(d);
    every *= x.size(d);
  }
  return b;
}

// Options of a launch: targets to write as well, or a box for CutMix.
struct Extra {
  const Targets *targets = nullptr; // in the same launch if the kernel can
  const Tensor *box = nullptr;      // mix only inside it
};

// Launches the mix of x. Returns whether the same launch wrote the targets too.
template <class T>
bool run_mix(const OnDevice &on, const Tensor &x, const Tensor &out, const Tensor &perm,
             const Tensor &lam, int64_t dim, bool adjoint, const Columns &columns,
             const Extra &extra) {
  MixArgs<T> a{};
  a.out = output<T>(out);
  a.x = input<T>(x);
  a.batch = checked_batch(x.size(dim));
  a.x_row = x.stride(dim);
  a.out_row = out.stride(dim);
  a.columns = columns;
  a.adjoint = adjoint;
  a.lam = lam_ref(lam);
  const Device &device = on.device();
  const MixShape<T> shape{a.batch, columns, alignment_of(a), a.x == a.out};

  const auto launch = [&](const MixPlan &plan, auto *kernel, auto... more) {
    const Pairs pairs(perm, a.batch, plan.claims);
    a.pairing = pairs.args;
    a.width = plan.width;
    a.pitch = plan.pitch;
    a.lanes = plan.lanes;
    a.blocks = plan.blocks;
    a.tiles = plan.tiles;
    a.round = plan.round;
    std::optional<Tensor> kept;
    if (plan.kept > 0) {
      kept = torch::stable::new_empty(x, {plan.kept}, ScalarType::Byte);
      a.kept = output<char>(*kept);
    }
    unsigned blocks = plan.blocks;
    const auto add = [&]<class M>(M &m) {
      if constexpr (std::is_same_v<M, TargetArgs>) {
        m.pairing = pairs.args;
        // A slab has blocks of their own for the targets; a gather writes them last.
        if (m.out != nullptr && plan.way != Way::kGather)
          blocks += plan_targets(m, plan.threads, device);
      }
    };
    (add(more), ...);
    if (plan.together)
      on.launch_together(kernel, dim3(blocks), plan.threads, plan.shared, a, more...);
    else
      on.launch(kernel, dim3(blocks), plan.threads, plan.shared, a, more...);
  };
  // kernels() gives the kernel that writes the targets too, or the one that does not.
  const auto with_targets = [&](MixPlan plan, const auto &kernels) {
    const auto one = [&](auto *kernel, const TargetArgs &targets) {
      if (plan.way != Way::kGather) fill_slab<T>(plan, shape, device, on.kernel(kernel));
      launch(plan, kernel, targets);
    };
    if constexpr (sizeof(T) < 8) {
      if (extra.targets && !extra.targets->wide) {
        one(kernels(std::true_type{}), extra.targets->args);
        return true;
      }
    }
    one(kernels(std::false_type{}), TargetArgs{});
    return false;
  };
  const auto gather = [&]<bool kVectors>(std::bool_constant<kVectors>) {
    const GatherPlan<T, kVectors> planner{shape, device};
    const MixPlan plan = planner.plan();
    if (extra.box) {
      BoxArgs box = box_args(x, *extra.box);
      box.hop = spread(plan.tiles);
      launch(plan, cutmix<T, kVectors>, box);
    } else if constexpr (!kOnlyMoved<T>) {
      if (shape.in_place)
        return with_targets(plan, [](auto k) { return mix_gather_in_place<T, kVectors, k.value>; });
      launch(plan, mix_gather<T, kVectors>);
    }
    return false;
  };
  if (extra.box) {
    const bool vectors = shape.aligned() && box_args(x, *extra.box).in_vectors<Vec<T>::kCount>();
    return vectors ? gather(std::true_type{}) : gather(std::false_type{});
  }
  if constexpr (!kOnlyMoved<T>) {
    const MixPlan plan = plan_mix(shape, device);
    switch (plan.way) {
    case Way::kSlab:
      return with_targets(plan, [](auto k) { return mix_slab<T, k.value>; });
    case Way::kAlignedSlab:
      return with_targets(plan, [](auto k) { return mix_slab_aligned<T, k.value>; });
    case Way::kGather:
      return shape.aligned() ? gather(std::true_type{}) : gather(std::false_type{});
    }
  }
  return false;
}

// Calls body.template operator()<T>() with the element type of the kernel for x. Bits are moved by
// the kernel of a floating dtype of their size: a paste does no arithmetic.
template <class Body> void with_element(const Tensor &x, const Body &body) {
  const int64_t size = x.element_size();
  if (size == 1) return body.template operator()<uint8_t>();
  const ScalarType of_size = size == 2   ? ScalarType::Half
                             : size == 4 ? ScalarType::Float
                                         : ScalarType::Double;
  with_dtype(are_bits(x) ? of_size : x.scalar_type(), body);
}

bool mix_into(const Tensor &x, const Tensor &out, const Tensor &perm, const Tensor &lam,
              int64_t dim, bool adjoint, const Extra &extra, const OnDevice &on) {
  const SampleLayout sample(x, out, dim);
  bool together = false;
  if (!fits(sample)) { // more than kMaxDims dimensions that do not merge
    // CutMix writes a part of each row, so in place; it has no adjoint.
    Tensor dense = torch::stable::contiguous(x), target = out;
    Tensor mixed = extra.box ? dense : torch::stable::empty_like(dense);
    together = mix_into(dense, mixed, perm, lam, dim, adjoint, extra, on);
    torch::stable::copy_(target, mixed);
    return together;
  }
  with_element(x, [&]<class T>() {
    together = run_mix<T>(on, x, out, perm, lam, dim, adjoint, columns_of(sample), extra);
  });
  return together;
}

Tensor mix(Tensor x, Tensor perm, Tensor lam, int64_t dim, bool adjoint) {
  const OnDevice on(x);
  Tensor out = torch::stable::empty_like(x);
  if (x.numel() > 0) mix_into(x, out, perm, lam, dim, adjoint, {}, on);
  return out;
}

void mix_(Tensor x, Tensor perm, Tensor lam, int64_t dim) {
  const OnDevice on(x);
  if (x.numel() > 0) mix_into(x, x, perm, lam, dim, false, {}, on);
}

void cutmix_(Tensor x, Tensor perm, Tensor box, Tensor lam) {
  const OnDevice on(x);
  if (x.numel() > 0) mix_into(x, x, perm, lam, 0, false, {.box = &box}, on);
}

constexpr unsigned kTargetThreads = 256;

void launch_targets(Targets &targets, const Tensor &perm, const OnDevice &on) {
  TargetArgs &a = targets.args;
  if (targets.out.numel() == 0) return;
  const int64_t claims = Claims::bytes(a.batch);
  const bool in_block = claims <= on.device().shared;
  Pairs pairs(perm, a.batch, in_block);
  a.pairing = pairs.args;
  if (pairs.bits) {
    torch::stable::fill_(*pairs.bits, 0);
    const unsigned most = 8 * on.multiprocessors();
    const auto blocks = std::min<unsigned>((a.batch + kTargetThreads - 1) / kTargetThreads, most);
    on.launch(claim_rows_kernel, dim3(blocks), kTargetThreads, 0, a.pairing);
  }
  on.launch(targets.wide ? mix_targets<double> : mix_targets<float>,
            dim3(plan_targets(a, kTargetThreads, on.device())), kTargetThreads,
            in_block ? claims : 0, a);
}

// The partners' targets are a tensor of their own.
void launch_targets_of_pairs(Targets &targets, const Tensor &target_b, const OnDevice &on) {
  if (targets.out.numel() == 0) return;
  const TargetArgs &a = targets.args;
  on.launch(targets.wide ? mix_targets_of_pairs<double> : mix_targets_of_pairs<float>,
            dim3(plan_targets(a, kTargetThreads, on.device())), kTargetThreads, 0, a,
            input<void>(target_b));
}

Tensor mix_targets_op(Tensor target, std::optional<Tensor> perm, Tensor lam, int64_t classes,
                      double eps, int64_t ignore_index, ScalarType dtype,
                      std::optional<Tensor> target_b) {
  const OnDevice on(target);
  Targets targets = make_targets(target, lam, classes, eps, ignore_index, dtype);
  if (perm)
    launch_targets(targets, *perm, on);
  else
    launch_targets_of_pairs(targets, *target_b, on);
  return targets.out;
}

Tensor mix_batch_(Tensor x, Tensor target, Tensor perm, Tensor lam, int64_t classes, double eps,
                  int64_t ignore_index, ScalarType dtype) {
  const OnDevice on(x);
  Targets targets = make_targets(target, lam, classes, eps, ignore_index, dtype);
  // One launch, unless there is float64.
  const bool any = targets.out.numel() > 0;
  const bool together = x.numel() > 0 && mix_into(x, x, perm, lam, 0, false,
                                                  {.targets = any ? &targets : nullptr}, on);
  if (!together) launch_targets(targets, perm, on);
  return targets.out;
}

} // namespace
} // namespace mmix

STABLE_TORCH_LIBRARY_IMPL(MMIX_NAMESPACE, MMIX_DEVICE_KEY, m) {
  m.impl("mix", TORCH_BOX(&mmix::mix));
  m.impl("mix_", TORCH_BOX(&mmix::mix_));
  m.impl("mix_targets", TORCH_BOX(&mmix::mix_targets_op));
  m.impl("mix_batch_", TORCH_BOX(&mmix::mix_batch_));
  m.impl("cutmix_", TORCH_BOX(&mmix::cutmix_));
}
