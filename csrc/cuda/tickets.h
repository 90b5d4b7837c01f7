// Tickets of launches whose last block has work left (see last_block.cuh). Launches of one stream
// follow each other, so they share a ticket. A launch that is captured into a graph gets a ticket
// of its own: the graph may be replayed on any stream. It cannot overlap itself, since all its
// replays write the same tensors.
#pragma once
#include "cuda/kernels/last_block.cuh"
#include "cuda/launch.h"
#include <atomic>

namespace mmix {

// -1 if there are none left.
inline int ticket_of(const OnDevice &device) {
  static std::atomic<int> given{0};
  static Once<std::pair<int, unsigned long long>, int> of_streams;
  const auto next = [] {
    const int ticket = given < kTickets ? given++ : kTickets;
    return ticket < kTickets ? ticket : -1;
  };
  return device.capturing() ? next() : of_streams.of(device.stream(), next);
}

} // namespace mmix
