// A permutation as mixing walks it.
#pragma once
#include "checks.h"
#include <cstdint>
#include <vector>

namespace mmix {

// The rows in the order in which cycles of the permutation meet them. Row i of the mix needs row
// index[i], so that each row is read from memory once: as a partner, then, from cache, as itself.
// 16 bytes a row at most; checks on the way that index is a permutation.
struct Cycles {
  Cycles(const int64_t *index, int64_t n) {
    std::vector<bool> seen(n, false);
    row.reserve(n);
    for (int64_t i = 0; i < n; ++i) {
      if (seen[i]) continue;
      const int64_t first = static_cast<int64_t>(row.size());
      for (int64_t j = i; j >= 0 && j < n && !seen[j]; j = index[j]) {
        seen[j] = true;
        row.push_back(j);
        head.push_back(first);
      }
      if (index[row.back()] != i) refuse_permutation(index, n);
    }
  }
  bool ends_cycle(int64_t k) const { return k + 1 == size() || head[k + 1] == k + 1; }
  int64_t size() const { return static_cast<int64_t>(row.size()); }

  std::vector<int64_t> row;  // the k-th row to visit
  std::vector<int64_t> head; // where the cycle of the k-th row begins in `row`
};

} // namespace mmix
