// The arguments that all ops of a loss share, in the order of their schemas
// (mmix_fast/schemas.py): as C++ parameters and as a struct.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <torch/csrc/stable/tensor.h>

#define MMIX_LOSS_PARAMETERS                                                                       \
  Tensor logits, Tensor target, std::optional<Tensor> perm, std::optional<Tensor> target_b,        \
      Tensor lam, std::optional<Tensor> weight, std::optional<Tensor> scales,                      \
      int64_t ignore_index, std::string reduction, double label_smoothing, double z_loss,          \
      double softcap, int64_t class_offset, int64_t num_classes

// Of these parameters, where they have these names.
#define MMIX_LOSS_ARGS                                                                             \
  LossArgs {                                                                                       \
    logits, target, perm, target_b, lam, weight, scales, ignore_index, reduction, label_smoothing, \
        z_loss, softcap, class_offset, num_classes                                                 \
  }

// The same of the binary cross-entropy.
#define MMIX_BINARY_LOSS_PARAMETERS                                                                \
  Tensor logits, Tensor target, std::optional<Tensor> perm, std::optional<Tensor> target_b,        \
      Tensor lam, std::optional<Tensor> weight, std::optional<Tensor> pos_weight,                  \
      std::string reduction, double label_smoothing, std::optional<double> target_threshold

#define MMIX_BINARY_LOSS_ARGS                                                                      \
  BinaryLossArgs {                                                                                 \
    logits, target, perm, target_b, lam, weight, pos_weight, reduction, label_smoothing,           \
        target_threshold                                                                           \
  }

namespace mmix {

using torch::stable::Tensor;

struct LossArgs {
  const Tensor &logits, &target;
  const std::optional<Tensor> &perm, &target_b;
  const Tensor &lam;
  const std::optional<Tensor> &weight, &scales;
  int64_t ignore_index;
  const std::string &reduction;
  double label_smoothing, z_loss, softcap;
  int64_t class_offset, num_classes;

  bool is_mean() const { return reduction == "mean"; }
  bool is_per_row() const { return reduction == "none"; }
  // The logits are those of some of the classes.
  bool is_shard() const { return num_classes != 0; }
  int64_t all_classes() const { return is_shard() ? num_classes : logits.size(1); }
};

struct BinaryLossArgs {
  const Tensor &logits, &target;
  const std::optional<Tensor> &perm, &target_b;
  const Tensor &lam;
  const std::optional<Tensor> &weight, &pos_weight;
  const std::string &reduction;
  double label_smoothing;
  const std::optional<double> &target_threshold;

  bool is_per_element() const { return reduction == "none"; }
  // What every element's loss is divided by.
  double divisor() const {
    if (reduction == "mean") return static_cast<double>(logits.numel());
    return reduction == "batchmean" ? static_cast<double>(logits.size(0)) : 1.0;
  }
};

} // namespace mmix
