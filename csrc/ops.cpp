// Every schema of the library, and the Python module that holds nothing: importing it loads them.
// A raw in-place op does not bump the version counter, so these stay private to mmix_fast/.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#define MMIX_CE_ARGS                                                                               \
  "Tensor target, Tensor? perm, Tensor? target_b, Tensor lam, Tensor? weight, int ignore_index, "  \
  "str reduction, float label_smoothing, float z_loss, float softcap"

STABLE_TORCH_LIBRARY(mmix_fast, m) {
  // out[i] = lam[i]*x[i] + (1-lam[i])*x[perm[i]]; adjoint: lam[i]*x[i] + (1-lam[j])*x[j], perm[j] =
  // i
  m.def("mix(Tensor x, Tensor perm, Tensor lam, int dim, bool adjoint) -> Tensor");
  m.def("mix_(Tensor(a!) x, Tensor perm, Tensor lam, int dim) -> ()");
  m.def(
      "mix_targets(Tensor target, Tensor perm, Tensor lam, int num_classes, float label_smoothing, "
      "int ignore_index, ScalarType dtype) -> Tensor");
  // stats: (rows, 2), the max and the log of the sum of exponentials of each row
  m.def("cross_entropy(Tensor logits, " MMIX_CE_ARGS ") -> (Tensor, Tensor)");
  m.def("cross_entropy_backward(Tensor grad, Tensor stats, Tensor logits, " MMIX_CE_ARGS
        ") -> Tensor");
  m.def("cross_entropy_backward_(Tensor grad, Tensor stats, Tensor(a!) logits, " MMIX_CE_ARGS
        ") -> ()");
  m.def("cpu_isa() -> str");
}

static struct PyModuleDef module_def = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
extern "C" PyMODINIT_FUNC PyInit__C(void) { return PyModule_Create(&module_def); }
