// Value checks of the CPU kernels. Each error message is written once, here. std::out_of_range
// becomes Python's IndexError, std::invalid_argument becomes ValueError. Throw before parallel_for:
// inside it, the message is lost.
#pragma once
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace mmix {

[[noreturn]] inline void refuse_permutation(const int64_t *perm, int64_t n) {
  std::ostringstream text;
  text << "perm must be a permutation of 0.." << n - 1 << ", got [";
  for (int64_t k = 0; k < n && k < 8; ++k) text << (k ? ", " : "") << perm[k];
  text << (n > 8 ? ", ...]" : "]");
  throw std::invalid_argument(text.str());
}

inline void check_permutation(const int64_t *perm, int64_t n) {
  std::vector<bool> seen(n, false);
  for (int64_t i = 0; i < n; ++i) {
    if (perm[i] < 0 || perm[i] >= n || seen[perm[i]]) refuse_permutation(perm, n);
    seen[perm[i]] = true;
  }
}

// For a second batch of n samples: repeats are allowed.
inline void check_indices(const int64_t *perm, int64_t rows, int64_t n) {
  for (int64_t i = 0; i < rows; ++i) {
    if (perm[i] >= 0 && perm[i] < n) continue;
    std::ostringstream text;
    text << "perm must hold indices of other in [0, " << n - 1 << "], got " << perm[i];
    throw std::out_of_range(text.str());
  }
}

// ignore_index: the label that needs no class; the binary cross-entropy has none.
inline void check_label(const char *name, int64_t y, int64_t classes,
                        std::optional<int64_t> ignore_index) {
  if (y == ignore_index || (y >= 0 && y < classes)) return;
  std::ostringstream text;
  text << name << " must hold labels in [0, " << classes - 1 << "]";
  if (ignore_index) text << " or ignore_index=" << *ignore_index;
  text << ", got " << y;
  throw std::out_of_range(text.str());
}

inline void check_box(int64_t top, int64_t bottom, int64_t left, int64_t right, int64_t height,
                      int64_t width) {
  if (top >= 0 && bottom >= top && height >= bottom && left >= 0 && right >= left && width >= right)
    return;
  std::ostringstream text;
  text << "box must hold 0 <= top <= bottom <= " << height << " and 0 <= left <= right <= " << width
       << ", got (" << top << ", " << bottom << ", " << left << ", " << right << ")";
  throw std::invalid_argument(text.str());
}

} // namespace mmix
