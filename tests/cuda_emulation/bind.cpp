// The emulator's controls for Python; the ops themselves are registered by csrc, as torch.ops.
#include "cuda/kernels/shuffle.cuh"
#include "engine.h"
#include "memory.h"
#include "row_layout.h"
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t, void **stream) {
  *stream = nullptr;
  return 0;
}

namespace {

using torch::stable::Tensor;

std::vector<int64_t> flat(std::vector<int64_t> numbers, const std::vector<mmix::Dim> &dims) {
  for (const mmix::Dim &d : dims) numbers.insert(numbers.end(), {d.size, d.stride, d.out_stride});
  return numbers;
}
std::vector<int64_t> sample_layout(Tensor x, Tensor out, int64_t dim) {
  const mmix::SampleLayout sample(x, out, dim);
  return flat({sample.run, sample.runs}, sample.dims);
}
std::vector<unsigned> philox(std::array<unsigned, 2> key, std::array<unsigned, 4> counter) {
  const auto [x, y, z, w] = counter;
  const uint4 bits = mmix::Philox(key[0], key[1])(make_uint4(x, y, z, w));
  return {bits.x, bits.y, bits.z, bits.w};
}
// Shuffle and its inverse, for a batch of any size.
std::vector<std::pair<unsigned, unsigned>> shuffle(std::array<unsigned, 2> key, unsigned batch) {
  const mmix::Philox draw(key[0], key[1]);
  const mmix::Shuffle shuffle(mmix::Grid(batch), draw);
  std::vector<std::pair<unsigned, unsigned>> both;
  for (unsigned row = 0; row < batch; ++row) both.push_back({shuffle(row), shuffle.inverse(row)});
  return both;
}
std::vector<int64_t> class_rows(Tensor t) {
  const mmix::ClassRows rows(t);
  return flat({rows.class_stride}, rows.dims);
}

} // namespace

// Two functions of csrc/row_layout.h as ops, for test_row_layout.py.
STABLE_TORCH_LIBRARY_FRAGMENT(MMIX_NAMESPACE, m) {
  m.def("sample_layout(Tensor x, Tensor out, int dim) -> int[]");
  m.def("class_rows(Tensor t) -> int[]");
}
STABLE_TORCH_LIBRARY_IMPL(MMIX_NAMESPACE, CPU, m) {
  m.impl("sample_layout", TORCH_BOX(&sample_layout));
  m.impl("class_rows", TORCH_BOX(&class_rows));
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  pybind11::class_<emu::Traffic>(m, "Traffic")
      .def_readonly("loaded_sectors", &emu::Traffic::loaded_sectors)
      .def_readonly("stored_sectors", &emu::Traffic::stored_sectors)
      .def_readonly("distinct_sectors", &emu::Traffic::distinct_sectors)
      .def_readonly("loads", &emu::Traffic::loads)
      .def_readonly("stores", &emu::Traffic::stores);
  m.def("set_seed", [](uint64_t seed) { emu::seed = seed; });
  m.def(
      "set_device",
      [](int sms, int shared, int clusters) {
        emu::device_sms = sms;
        emu::device_shared = shared;
        emu::device_clusters = clusters;
        ++emu::device_number; // what is known of the device before is forgotten
      },
      pybind11::arg("sms") = 132, pybind11::arg("shared") = 227 * 1024,
      pybind11::arg("clusters") = 1);
  m.def("disable_barrier", [](std::string file, int line) {
    emu::disabled_file = file;
    emu::disabled_line = line;
  });
  // See cudaStreamGetId. Returns the stream before.
  m.def("set_stream",
        [](unsigned long long id) { return std::exchange(emu::failed_launches, id); });
  m.def("barriers", [] { return emu::barrier_sites; });
  m.def("kernels", [] { return emu::executed; });
  pybind11::class_<emu::Launch>(m, "Launch")
      .def_readonly("name", &emu::Launch::name)
      .def_readonly("symbol", &emu::Launch::symbol)
      .def_readonly("cluster", &emu::Launch::cluster)
      .def_readonly("shared", &emu::Launch::shared)
      .def_property_readonly("blocks", [](const emu::Launch &l) { return l.grid.x; })
      .def_property_readonly("threads", [](const emu::Launch &l) { return l.block.x; })
      .def_property_readonly("parameters",
                             [](const emu::Launch &l) { return pybind11::bytes(l.parameters); });
  m.def("only_plan", [](bool on) { emu::plans_only = on; });
  m.def("launched", [] { return std::exchange(emu::launched, {}); });
  m.def("launches", [] {
    std::vector<std::string> names;
    for (const auto &l : std::exchange(emu::launched, {})) names.push_back(l.name);
    return names;
  });
  m.def("philox", &philox);
  m.def("shuffle", &shuffle);
  m.def("count_traffic", &emu::count_traffic);
  m.def("traffic", &emu::traffic);
}
