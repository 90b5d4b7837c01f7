// Label smoothing. Shared by the CPU and CUDA ops.
#pragma once
#include <cstdint>

namespace mmix {

// The smoothed target of a class: keep*t + base. Of labels: `hot` at the label, else base.
struct Smoothing {
  Smoothing(double eps, int64_t classes)
      : keep(1.0 - eps), base(eps / static_cast<double>(classes)), hot(keep + base) {}
  double keep, base, hot;
};

} // namespace mmix
