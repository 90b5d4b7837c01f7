// Every schema of the library, and the Python module that holds nothing: importing it loads them.
// A raw in-place op does not bump the version counter, so these stay private to mmix_fast/.
#include "loss_args.h"
#include <Python.h>
#include <torch/csrc/stable/library.h>

#ifndef MMIX_NAMESPACE // the emulator of tests/cuda_emulation registers its own copy
#define MMIX_NAMESPACE mmix_fast
#endif

STABLE_TORCH_LIBRARY(MMIX_NAMESPACE, m) {
  // out[i] = lam[i]*x[i] + (1-lam[i])*x[perm[i]]; adjoint: lam[i]*x[i] + (1-lam[j])*x[j], perm[j] =
  // i
  m.def("mix(Tensor x, Tensor perm, Tensor lam, int dim, bool adjoint) -> Tensor");
  m.def("mix_(Tensor(a!) x, Tensor perm, Tensor lam, int dim) -> ()");
  // inside box (top, bottom, left, right) of each row, or of all: mix_; outside nothing
  m.def("cutmix_(Tensor(a!) x, Tensor perm, Tensor box, Tensor lam) -> ()");
  m.def(
      "mix_targets(Tensor target, Tensor perm, Tensor lam, int num_classes, float label_smoothing, "
      "int ignore_index, ScalarType dtype) -> Tensor");
  // mix_ of x and mix_targets of target; nothing is written before every value was checked.
  m.def("mix_batch_(Tensor(a!) x, Tensor target, Tensor perm, Tensor lam, int num_classes, "
        "float label_smoothing, int ignore_index, ScalarType dtype) -> Tensor");
  // stats: (rows, 2), the max and the log of the sum of exponentials of each row. gradient: of the
  // loss times `upstream`, written in the same pass. Empty without an upstream, and on a GPU, whose
  // kernels write it there for an upstream of 1 alone.
  m.def("cross_entropy(Tensor logits, " MMIX_LOSS_SCHEMA
        ", float? upstream) -> (Tensor loss, Tensor stats, Tensor gradient)");
  m.def("cross_entropy_backward(Tensor grad, Tensor stats, Tensor logits, " MMIX_LOSS_SCHEMA
        ") -> Tensor");
  m.def("cross_entropy_backward_(Tensor grad, Tensor stats, Tensor(a!) logits, " MMIX_LOSS_SCHEMA
        ") -> ()");
  // Makes the gradient that cross_entropy wrote right for `grad`: rows whose upstream is exactly 1
  // stay, the others are made anew from the logits.
  m.def("cross_entropy_rescale_(Tensor(a!) gradient, Tensor grad, Tensor stats, Tensor "
        "logits, " MMIX_LOSS_SCHEMA ") -> ()");
  m.def("cpu_isa() -> str");
}

static struct PyModuleDef module_def = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C(void) { return PyModule_Create(&module_def); }
