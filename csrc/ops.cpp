// The schemas of all ops, and an empty Python module. Importing the module registers the schemas. A
// raw in-place op does not bump the version counter, so these ops stay private to mmix_fast/.
#include "loss_args.h"
#include <Python.h>
#include <torch/csrc/stable/library.h>

#ifndef MMIX_NAMESPACE // the emulator of tests/cuda_emulation registers its own copy
#define MMIX_NAMESPACE mmix_fast
#endif

STABLE_TORCH_LIBRARY(MMIX_NAMESPACE, m) {
  // out[i] = lam[i]*x[i] + (1-lam[i])*x[perm[i]].
  // Adjoint: out[i] = lam[i]*x[i] + (1-lam[j])*x[j], where perm[j] = i.
  m.def("mix(Tensor x, Tensor perm, Tensor lam, int dim, bool adjoint) -> Tensor");
  m.def("mix_(Tensor(a!) x, Tensor perm, Tensor lam, int dim) -> ()");
  // Inside a box (top, bottom, left, right), the same as mix_. Outside it, nothing changes. box is
  // (4,), one box for all rows, or (B, 4), one box for each row.
  m.def("cutmix_(Tensor(a!) x, Tensor perm, Tensor box, Tensor lam) -> ()");
  m.def(
      "mix_targets(Tensor target, Tensor perm, Tensor lam, int num_classes, float label_smoothing, "
      "int ignore_index, ScalarType dtype) -> Tensor");
  // mix_ of x and mix_targets of target. On the CPU, all values are checked before x is written.
  m.def("mix_batch_(Tensor(a!) x, Tensor target, Tensor perm, Tensor lam, int num_classes, "
        "float label_smoothing, int ignore_index, ScalarType dtype) -> Tensor");
  // stats: (rows, 2), for each row the max of the logits z and log(sum(exp(z - max))). gradient:
  // the gradient of the loss times `upstream`, written in the same pass. It is empty without an
  // upstream. On a GPU it is also empty for any upstream other than 1.
  m.def("cross_entropy(Tensor logits, " MMIX_LOSS_SCHEMA
        ", float? upstream) -> (Tensor loss, Tensor stats, Tensor gradient)");
  m.def("cross_entropy_backward(Tensor grad, Tensor stats, Tensor logits, " MMIX_LOSS_SCHEMA
        ") -> Tensor");
  m.def("cross_entropy_backward_(Tensor grad, Tensor stats, Tensor(a!) logits, " MMIX_LOSS_SCHEMA
        ") -> ()");
  // Corrects the gradient that cross_entropy wrote for an upstream of 1, so that it is right for
  // `grad`. Rows whose upstream gradient is exactly 1 stay as they are. The others are computed
  // again from the logits.
  m.def("cross_entropy_rescale_(Tensor(a!) gradient, Tensor grad, Tensor stats, Tensor "
        "logits, " MMIX_LOSS_SCHEMA ") -> ()");
  m.def("cpu_isa() -> str");
}

static struct PyModuleDef module_def = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C(void) { return PyModule_Create(&module_def); }
