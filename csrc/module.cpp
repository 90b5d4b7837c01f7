// An empty Python module. Importing it registers the kernels of the other files; mmix_fast/ops.py
// then defines the ops, by the schemas in mmix_fast/schemas.py.
#include <Python.h>

static struct PyModuleDef module_def = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C(void) { return PyModule_Create(&module_def); }
