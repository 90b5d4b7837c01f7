// mix_other, mix_other_ and sum_rows_ on CUDA tensors. Nothing here reads a value on the host.
#include "cuda/batches.h"
#include "cuda/mix_other_plan.h"
#include <optional>

namespace mmix {
namespace {

template <class T> const T *input_or_null(const std::optional<Tensor> &t) {
  return t ? input<T>(*t) : nullptr;
}

// Calls run(true_type or false_type): whether all rows are made of aligned 16-byte vectors.
template <class T, class Run> void by_alignment(const Columns &c, uint64_t bits, const Run &run) {
  if (bits % 16 == 0 && c.run * sizeof(T) % 16 == 0)
    run(std::true_type{});
  else
    run(std::false_type{});
}

void mix_into(const OnDevice &on, const Tensor &x, const Tensor &out, const Tensor &other,
              const std::optional<Tensor> &perm, const Tensor &lam, int64_t dim) {
  const SampleLayout sample(x, out, dim, &other);
  if (!fits(sample)) { // more than kMaxDims dimensions that do not merge
    const Tensor dense = torch::stable::contiguous(x), mixed = torch::stable::empty_like(dense);
    mix_into(on, dense, mixed, torch::stable::contiguous(other), perm, lam, dim);
    Tensor target = out;
    torch::stable::copy_(target, mixed);
    return;
  }
  with_dtype(x.scalar_type(), [&]<class T>() {
    OtherArgs<T> a{};
    a.x = input<T>(x), a.other = input<T>(other), a.out = output<T>(out);
    a.perm = input_or_null<int64_t>(perm);
    a.others = checked_batch(other.size(dim));
    a.x_row = x.stride(dim), a.other_row = other.stride(dim), a.out_row = out.stride(dim);
    a.columns = columns_of(sample), a.partners = columns_of(sample, &Dim::other_stride);
    a.lam = lam_ref(lam);
    const int batch = checked_batch(x.size(dim));
    const uint64_t bits = address_bits(x, sample.dims, &Dim::stride, dim) |
                          address_bits(out, sample.dims, &Dim::out_stride, dim) |
                          address_bits(other, sample.dims, &Dim::other_stride, dim);
    by_alignment<T>(a.columns, bits, [&](auto vectors) {
      constexpr bool kVectors = vectors.value;
      const auto kernel = mix_other<T, kVectors>;
      const StreamPlan plan = plan_stream<T, kVectors>(
          a.columns, batch, OtherRows<T, kVectors>::kAtOnce, on.device(), on.kernel(kernel));
      a.units = plan.units;
      on.launch(kernel, dim3(plan.blocks), kStreamThreads, 0, a);
    });
  });
}

Tensor mix_other_op(Tensor x, Tensor other, std::optional<Tensor> perm, Tensor lam, int64_t dim) {
  const OnDevice on(x);
  Tensor out = torch::stable::empty_like(x);
  if (x.numel() > 0) mix_into(on, x, out, other, perm, lam, dim);
  return out;
}

void mix_other_(Tensor x, Tensor other, std::optional<Tensor> perm, Tensor lam, int64_t dim) {
  const OnDevice on(x);
  if (x.numel() > 0) mix_into(on, x, x, other, perm, lam, dim);
}

void sum_into(const OnDevice &on, const Tensor &out, const Tensor &x, const Tensor &weight,
              const std::optional<Tensor> &order, const std::optional<Tensor> &begin, int64_t dim) {
  const SampleLayout sample(x, out, dim);
  if (!fits(sample)) {
    const Tensor dense = torch::stable::contiguous(out);
    sum_into(on, dense, torch::stable::contiguous(x), weight, order, begin, dim);
    Tensor target = out;
    torch::stable::copy_(target, dense);
    return;
  }
  with_dtype(x.scalar_type(), [&]<class T>() {
    SumArgs<T> a{};
    a.x = input<T>(x), a.out = output<T>(out);
    a.order = input_or_null<int64_t>(order), a.begin = input_or_null<int64_t>(begin);
    a.x_row = x.stride(dim), a.out_row = out.stride(dim);
    a.columns = columns_of(sample);
    a.weight = lam_ref(weight);
    checked_batch(x.size(dim));
    const int batch = checked_batch(out.size(dim));
    const uint64_t bits = address_bits(x, sample.dims, &Dim::stride, dim) |
                          address_bits(out, sample.dims, &Dim::out_stride, dim);
    by_alignment<T>(a.columns, bits, [&](auto vectors) {
      const auto kernel = sum_rows<T, vectors.value>;
      const StreamPlan plan =
          plan_stream<T, vectors.value>(a.columns, batch, 1, on.device(), on.kernel(kernel));
      a.units = plan.units;
      on.launch(kernel, dim3(plan.blocks), kStreamThreads, 0, a);
    });
  });
}

void sum_rows_(Tensor out, Tensor x, Tensor weight, std::optional<Tensor> order,
               std::optional<Tensor> begin, int64_t dim) {
  const OnDevice on(x);
  if (out.numel() > 0) sum_into(on, out, x, weight, order, begin, dim);
}

} // namespace
} // namespace mmix

STABLE_TORCH_LIBRARY_IMPL(MMIX_NAMESPACE, MMIX_DEVICE_KEY, m) {
  m.impl("mix_other", TORCH_BOX(&mmix::mix_other_op));
  m.impl("mix_other_", TORCH_BOX(&mmix::mix_other_));
  m.impl("sum_rows_", TORCH_BOX(&mmix::sum_rows_));
}
