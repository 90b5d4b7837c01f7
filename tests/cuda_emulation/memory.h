// What the traffic counter tells of one buffer: 32-byte sectors, counted per warp access.
#pragma once
#include <array>
#include <cstdint>
#include <map>

namespace emu {

struct Traffic {
  uint64_t loaded_sectors = 0, stored_sectors = 0;
  uint64_t distinct_sectors = 0; // of loads, plus of stores: what an unlimited cache would move
  std::array<uint64_t, 5> loads{}, stores{}; // requests of a thread for 1, 2, 4, 8, 16 bytes
};

void count_traffic(bool on); // also clears
std::map<uintptr_t, Traffic> traffic();

} // namespace emu
