// The cycles of a permutation, as mixing walks them.
#pragma once
#include "checks.h"
#include <cstdint>
#include <memory>
#include <vector>

namespace mmix {

// The rows, cycle by cycle. Row i of the mix needs row index[i], which comes next in its cycle. So
// each row is read from memory once, as the partner of a row, and then from cache as itself. Takes
// at most 17 bytes for each row. The constructor checks that index is a permutation.
struct Cycles {
  Cycles(const int64_t *index, int64_t n) : row(new int64_t[n]), size(n) {
    // One byte for each row, not one bit: each store is followed by a load for another row, and
    // with bits the load would wait for the store to the same word.
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

  std::unique_ptr<int64_t[]> row; // row[k]: the k-th row to visit
  std::vector<int64_t> begin;     // where in `row` each cycle begins; n as the last element
  int64_t size;
};

} // namespace mmix
