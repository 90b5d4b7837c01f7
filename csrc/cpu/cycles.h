// A permutation as mixing walks it.
#pragma once
#include "checks.h"
#include <cstdint>
#include <memory>
#include <vector>

namespace mmix {

// The rows in the order in which cycles of the permutation meet them. Row i of the mix needs row
// index[i], so that each row is read from memory once: as a partner, then, from cache, as itself.
// 17 bytes a row at most; checks on the way that index is a permutation.
struct Cycles {
  Cycles(const int64_t *index, int64_t n) : row(new int64_t[n]), size(n) {
    // Bytes, since a row is marked and asked for in turn: a bit would have to wait for its word.
    const std::unique_ptr<bool[]> seen(new bool[n]());
    begin.reserve(n + 1);
    int64_t k = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (seen[i]) continue;
      begin.push_back(k);
      int64_t j = i;
      do {
        if (j < 0 || j >= n || seen[j]) refuse_permutation(index, n);
        seen[j] = true;
        row[k++] = j;
        j = index[j];
      } while (j != i);
    }
    begin.push_back(n);
  }
  int64_t count() const { return static_cast<int64_t>(begin.size()) - 1; }

  std::unique_ptr<int64_t[]> row; // the k-th row to visit
  std::vector<int64_t> begin;     // where in `row` each cycle begins; n at the end
  int64_t size;
};

} // namespace mmix
