// The arguments that all ops of the loss share, in the order of their schema
// (mmix_fast/schemas.py): as C++ parameters and as a struct.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <torch/csrc/stable/tensor.h>

#define MMIX_LOSS_PARAMETERS                                                                       \
  Tensor logits, Tensor target, std::optional<Tensor> perm, std::optional<Tensor> target_b,        \
      Tensor lam, std::optional<Tensor> weight, int64_t ignore_index, std::string reduction,       \
      double label_smoothing, double z_loss, double softcap

// Of these parameters, where they have these names.
#define MMIX_LOSS_ARGS                                                                             \
  LossArgs {                                                                                       \
    logits, target, perm, target_b, lam, weight, ignore_index, reduction, label_smoothing, z_loss, \
        softcap                                                                                    \
  }

namespace mmix {

using torch::stable::Tensor;

struct LossArgs {
  const Tensor &logits, &target;
  const std::optional<Tensor> &perm, &target_b;
  const Tensor &lam;
  const std::optional<Tensor> &weight;
  int64_t ignore_index;
  const std::string &reduction;
  double label_smoothing, z_loss, softcap;

  bool is_mean() const { return reduction == "mean"; }
  bool is_per_row() const { return reduction == "none"; }
};

} // namespace mmix
