// Chooses the instruction set, once per process, by the CPU and ATEN_CPU_CAPABILITY.
#include "cpu/kernels.h"
#include <cstdlib>
#include <string_view>

namespace mmix {

static const RowKernels &choose() {
#ifdef MMIX_X86_KERNELS
  const char *wish = std::getenv("ATEN_CPU_CAPABILITY"); // torch's own variable and values
  const std::string_view cap = wish ? wish : "";
  if (cap == "default") return kPortable;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && cap != "avx2")
    return cap != "avx512" && __builtin_cpu_supports("avx512bf16") ? kAvx512Bf16 : kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return kAvx2;
#endif
  return kPortable;
}

const RowKernels &row_kernels() {
  static const RowKernels &chosen = choose();
  return chosen;
}

} // namespace mmix
