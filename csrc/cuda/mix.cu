// mix, mix_, mix_targets, mix_batch_ and cutmix_ on CUDA tensors. Nothing here reads a value on the
// host.
#include "cuda/kernels/cutmix.cuh"
#include "cuda/launch.h"
#include "cuda/mix_plan.h"
#include "row_layout.h"
#include "shapes.h"
#include "smoothing.h"
#include <optional>
#include <vector>

namespace mmix {
namespace {

Device device_of(const OnDevice &on) { return {on.multiprocessors(), on.shared_bytes()}; }

LamRef lam_ref(const Tensor &lam) {
  const bool wide = lam.scalar_type() == ScalarType::Double;
  const void *data = wide ? static_cast<const void *>(input<double>(lam)) : input<float>(lam);
  return {data, wide, lam.dim() == 1 ? lam.stride(0) : 0};
}

// The columns of x and out as a kernel takes them. nullopt if they have more than kMaxDims
// dimensions, the run counted as one.
std::optional<Columns> columns_of(const Tensor &x, const Tensor &out, int64_t dim) {
  const SampleLayout sample(x, out, dim);
  if (sample.dims.size() + (sample.run != 1) > kMaxDims) return std::nullopt;
  Columns c{sample.run, sample.runs, 0, {}, {}, {}};
  for (const Dim &d : sample.dims) {
    c.size[c.dims] = d.size;
    c.x_stride[c.dims] = d.stride;
    c.out_stride[c.dims++] = d.out_stride;
  }
  return c;
}

// The largest power of two, at most 32, that divides the address of every run in bytes.
template <class T> int alignment_of(const MixArgs<T> &a) {
  uint64_t all = reinterpret_cast<uintptr_t>(a.x) | reinterpret_cast<uintptr_t>(a.out);
  const auto add = [&](int64_t stride) { all |= static_cast<uint64_t>(stride) * sizeof(T); };
  if (a.batch > 1) add(a.x_row), add(a.out_row);
  for (int d = 0; d < a.columns.dims; ++d) add(a.columns.x_stride[d]), add(a.columns.out_stride[d]);
  return 1 << std::countr_zero(all | 32);
}

int checked_batch(int64_t batch) {
  STD_TORCH_CHECK(batch <= 1 << 30, "the batch must have at most 2^30 samples, got ", batch);
  return static_cast<int>(batch);
}

// The tables of a batch that is too large for shared memory: 8 bytes for each row.
struct Tables {
  Tensor next, start;
  Tables(const OnDevice &on, const Tensor &like, const int64_t *perm, int batch, bool adjoint,
         Cut cut)
      : next(torch::stable::new_empty(like, {batch}, ScalarType::Int)),
        start(torch::stable::new_empty(like, {batch}, ScalarType::Int)) {
    torch::stable::fill_(start, kUnclaimed);
    constexpr unsigned kThreads = 256;
    const dim3 grid((batch + kThreads - 1) / kThreads);
    int *links = output<int>(next), *users = output<int>(start);
    on.launch(claim_rows_kernel, grid, kThreads, 0, perm, batch, users, links);
    on.launch(link_rows_kernel, grid, kThreads, 0, batch, users, links, adjoint);
    on.launch(mark_starts_kernel, grid, kThreads, 0, perm, batch, links, users, adjoint, cut);
  }
};

struct Targets { // the part of a launch that writes soft targets
  TargetArgs args;
  Tensor out;
  bool wide; // float64 arithmetic
};

Targets make_targets(const Tensor &target, const Tensor &perm, const Tensor &lam, int64_t classes,
                     double eps, int64_t ignore_index, ScalarType dtype) {
  Tensor out = torch::stable::new_empty(target, soft_target_shape(target, classes), dtype);
  const bool wide = arithmetic_of(target.scalar_type(), dtype) == ScalarType::Double;
  const auto narrow_to = [wide](double v) {
    return wide ? v : static_cast<double>(static_cast<float>(v));
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
  a.perm = input<int64_t>(perm);
  a.lam = lam_ref(lam);
  const Smoothing smoothing(eps, classes);
  a.keep = narrow_to(smoothing.keep);
  a.base = narrow_to(smoothing.base);
  a.hot = narrow_to(smoothing.hot);
  a.ignore_index = ignore_index;
  return {a, out, wide};
}

BoxArgs box_args(const Tensor &x, const Tensor &box) {
  BoxArgs b{input<int64_t>(box), box.dim() == 2 ? 4 : 0, 1, 1, 1, 1};
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
  const Device device = device_of(on);
  MixArgs<T> a{};
  a.out = output<T>(out);
  a.x = input<T>(x);
  a.batch = checked_batch(x.size(dim));
  a.x_row = x.stride(dim);
  a.out_row = out.stride(dim);
  a.columns = columns;
  a.perm = input<int64_t>(perm);
  a.adjoint = adjoint;
  a.lam = lam_ref(lam);
  const MixShape<T> shape{a.batch, columns, alignment_of(a)};
  const MixPlan plan = extra.box ? plan_strided(shape, device) : plan_mix(shape, device);
  a.width = plan.width;
  a.pitch = plan.pitch;
  a.lanes = plan.lanes;
  a.blocks = plan.blocks;
  a.cut = plan.cut;
  std::optional<Tables> tables; // freed in stream order by torch's allocator
  if (!plan.tables_in_block) {
    tables.emplace(on, perm, a.perm, a.batch, adjoint, plan.cut);
    a.next = input<int>(tables->next);
    a.start = input<int>(tables->start);
  }
  const auto launch = [&](auto *kernel, unsigned blocks, auto... arguments) {
    on.launch(kernel, dim3(blocks), plan.threads, plan.shared, arguments...);
  };
  if constexpr (sizeof(T) < 8) {
    const Targets *targets = extra.targets;
    if (plan.way == Way::kSlab && targets && !targets->wide) {
      launch(mix_slab<T, true>, a.blocks + plan_targets(targets->args, plan.threads, device), a,
             targets->args);
      return true;
    }
  }
  if (extra.box)
    launch(cutmix<T>, a.blocks, a, box_args(x, *extra.box));
  else if (plan.way == Way::kSlab)
    launch(mix_slab<T, false>, a.blocks, a, TargetArgs{});
  else if (plan.way == Way::kWalk)
    launch(mix_walk<T>, a.blocks, a);
  else
    launch(mix_strided<T>, a.blocks, a);
  return false;
}

bool mix_into(const Tensor &x, const Tensor &out, const Tensor &perm, const Tensor &lam,
              int64_t dim, bool adjoint, const Extra &extra, const OnDevice &on) {
  const auto columns = columns_of(x, out, dim);
  bool together = false;
  if (!columns) { // more than kMaxDims dimensions that do not merge
    Tensor dense = torch::stable::contiguous(x), target = out;
    together = mix_into(dense, dense, perm, lam, dim, adjoint, extra, on);
    torch::stable::copy_(target, dense);
    return together;
  }
  with_dtype(x.scalar_type(), [&]<class T>() {
    together = run_mix<T>(on, x, out, perm, lam, dim, adjoint, *columns, extra);
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

void launch_targets(Targets &targets, const Tensor &perm, const OnDevice &on) {
  TargetArgs &a = targets.args;
  if (targets.out.numel() == 0) return;
  constexpr unsigned kThreads = 256;
  const Device device = device_of(on);
  int64_t shared = 2 * table_bytes(a.batch);
  std::optional<Tables> tables;
  if (shared > device.shared) {
    shared = 0;
    tables.emplace(on, perm, a.perm, a.batch, false, Cut{0});
    a.next = input<int>(tables->next);
  }
  on.launch(targets.wide ? mix_targets<double> : mix_targets<float>,
            dim3(plan_targets(a, kThreads, device)), kThreads, shared, a);
}

Tensor mix_targets_op(Tensor target, Tensor perm, Tensor lam, int64_t classes, double eps,
                      int64_t ignore_index, ScalarType dtype) {
  const OnDevice on(target);
  Targets targets = make_targets(target, perm, lam, classes, eps, ignore_index, dtype);
  launch_targets(targets, perm, on);
  return targets.out;
}

Tensor mix_batch_(Tensor x, Tensor target, Tensor perm, Tensor lam, int64_t classes, double eps,
                  int64_t ignore_index, ScalarType dtype) {
  const OnDevice on(x);
  Targets targets = make_targets(target, perm, lam, classes, eps, ignore_index, dtype);
  // One launch if x takes the slab kernel and there is no float64.
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
