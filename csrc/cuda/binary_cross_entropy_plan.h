// Plans the launch of a binary cross-entropy: what a piece is, how large tiles are, how many
// blocks. This is decided only here, by the layout of the tensors and the device.
#pragma once
#include "cuda/cross_entropy_plan.h"
#include "cuda/kernels/binary_cross_entropy.cuh"

namespace mmix {

// What the tensors and the options ask of a kernel.
struct BinaryForm {
  bool across;  // pieces are neighbouring rows
  int width;    // elements of a piece; 1 for any strides
  bool general; // there is more than labels, or there are gaps between rows
};

// Whether pieces of `width` elements along the classes, of which rows are multiples, are aligned.
inline bool along_near(const void *p, const RowLayout &at, int width, int64_t element) {
  if (at.class_stride != 1 || !aligned_to(p, std::min<int64_t>(16, width * element))) return false;
  for (int d = 0; d < at.dims; ++d)
    if (at.size[d].n > 1 && at.stride[d] % width != 0) return false;
  return true;
}

// Also notes which numbers of elements are moved a piece at a time.
inline BinaryForm binary_form(BinaryProblem &a, int64_t element) {
  const auto flat = [&](const void *p, const RowLayout &at) {
    return tile_order(at, a.classes) == TileOrder::kFlat && aligned_to(p, 16);
  };
  const bool lean = a.labels && !a.weighted && !a.per_element && flat(a.logits, a.logits_at) &&
                    (!a.gradient || flat(a.gradient, a.gradient_at));
  // exp in float64 is long code for each element.
  if (lean && element < 8) return {false, static_cast<int>(16 / element), false};
  BinaryForm form{tile_order(a.logits_at, a.classes) == TileOrder::kRowsNear, 1, true};
  constexpr int width = kPixels;
  if (element == 8 || (form.across ? a.inner : int64_t{a.classes}) % width != 0) return form;
  const auto fits = [&](const void *p, const RowLayout &at, int64_t of) {
    if (!p) return true;
    return form.across ? pixels_near(p, at, of) : along_near(p, at, width, of);
  };
  const auto values_fit = [&](const Values &v) { return fits(v.data, v.at, element_size(v.type)); };
  const auto weights_fit = [&](const Values &v) {
    return form.across || aligned_to(v.data, width * element_size(v.type));
  };
  if (fits(a.logits, a.logits_at, element) && fits(a.gradient, a.gradient_at, element) &&
      values_fit(a.terms[kTarget]) && values_fit(a.terms[kTargetB]) &&
      weights_fit(a.terms[kWeight]) && weights_fit(a.pos_weight))
    form.width = width;
  if (a.per_element) {
    a.wide_upstream = fits(a.upstream, a.upstream_at, sizeof(float));
    a.wide_loss = fits(a.loss, a.loss_at, sizeof(float));
  }
  return form;
}

constexpr int kMostTileRows = 256;   // their labels are kept in shared memory
constexpr int kTileDepth = 8;        // pieces of a thread, along classes
constexpr int kTileGroups = 32;      // pieces of a class of a tile, across rows
constexpr int kTileGroupsOfOne = 64; // the same if a piece is an element

// Tiles are smaller if there are fewer than two for each multiprocessor.
inline BinaryPlan plan_binary(const BinaryProblem &a, const BinaryForm &form,
                              const Device &device) {
  BinaryPlan plan{};
  const int64_t enough = int64_t{2} * device.multiprocessors;
  if (form.across) {
    plan.groups = form.width == 1 ? kTileGroupsOfOne : kTileGroups;
    plan.rows = plan.groups * form.width;
    const int lanes = kBinaryThreads / plan.groups; // classes that are moved at the same time
    const int64_t of_rows = (a.rows + plan.rows - 1) / plan.rows;
    const int64_t chunks =
        std::clamp<int64_t>(enough / of_rows, 1, (a.classes + lanes - 1) / lanes);
    plan.width = static_cast<int>((a.classes + chunks - 1) / chunks + lanes - 1) / lanes * lanes;
    plan.chunks = (a.classes + plan.width - 1) / plan.width;
    plan.tiles = of_rows * plan.chunks;
    return plan;
  }
  const int64_t all = a.rows * a.classes;
  int depth = kTileDepth;
  while (depth > 1 && all / (int64_t{depth} * kBinaryThreads * form.width) < enough) depth /= 2;
  int64_t width = int64_t{depth} * kBinaryThreads * form.width;
  width = std::min(width, int64_t{kMostTileRows - 1} * a.classes); // rows may be cut at both ends
  width = std::max<int64_t>(width / form.width, 1) * form.width;
  plan.width = static_cast<int>(width);
  plan.rows = static_cast<int>(std::min<int64_t>(a.rows, (width + a.classes - 2) / a.classes + 1));
  plan.tiles = (all + width - 1) / width;
  return plan;
}

} // namespace mmix
