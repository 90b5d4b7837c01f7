// sample_mix on CUDA tensors: one launch for any batch.
#include "cuda/kernels/sample.cuh"
#include "cuda/launch.h"
#include <optional>
#include <string>

namespace mmix {
namespace {

Partners partners_of(const std::string &pairing) {
  if (pairing == "random") return Partners::kRandom;
  if (pairing == "flip") return Partners::kFlip;
  if (pairing == "roll") return Partners::kRoll;
  STD_TORCH_CHECK(pairing == "derangement", "no pairing is called ", pairing);
  return Partners::kDerangement;
}

std::tuple<Tensor, Tensor> sample_mix_op(Tensor key, int64_t batch, bool per_sample,
                                         std::string pairing, double alpha,
                                         std::optional<Tensor> alpha_tensor) {
  const int rows = checked_batch(batch);
  const OnDevice on(key);
  Tensor perm = torch::stable::new_empty(key, {batch});
  Tensor lam = torch::stable::new_empty(
      key, per_sample ? std::vector<int64_t>{batch} : std::vector<int64_t>{}, ScalarType::Float);
  SampleArgs a{.grid = Grid(static_cast<unsigned>(rows))};
  a.key = input<int64_t>(key);
  a.perm = output<int64_t>(perm);
  a.lam = output<float>(lam);
  a.batch = rows;
  a.lams = per_sample ? a.batch : 1;
  a.partners = partners_of(pairing);
  a.alpha = alpha;
  if (alpha_tensor) a.alpha_tensor = input<double>(*alpha_tensor);
  const auto blocks = [](int rows, int of_block) { return (rows + of_block - 1) / of_block; };
  a.lam_blocks = blocks(a.lams, kSampleThreads);
  const bool drawn = a.partners == Partners::kRandom || a.partners == Partners::kDerangement;
  a.ranked = drawn && a.batch <= kMostRanked;
  const unsigned grid = a.lam_blocks + blocks(a.batch, a.ranked ? kRankedRows : kSampleThreads);
  const size_t keys = a.ranked ? blocks(a.batch, 2) * 2 : 0;
  if (grid > 0) on.launch(sample_mix, dim3(grid), kSampleThreads, keys * sizeof(uint64_t), a);
  return {perm, lam};
}

} // namespace
} // namespace mmix

STABLE_TORCH_LIBRARY_IMPL(MMIX_NAMESPACE, MMIX_DEVICE_KEY, m) {
  m.impl("sample_mix", TORCH_BOX(&mmix::sample_mix_op));
}
