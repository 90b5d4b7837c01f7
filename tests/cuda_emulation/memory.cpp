// Global memory: bounds, alignment, const, races between blocks, and the traffic in sectors.
#include "memory.h"
#include "engine.h"
#include <algorithm>
#include <bit>
#include <cstdlib>
#include <memory>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace emu {

unsigned block_number = 0;

namespace {

constexpr unsigned kNobody = 0, kMany = 0xffffffffu; // else the number of a block, from 1 on
constexpr size_t kGrain = 2;                         // the smallest element

// The block that touched each grain of a buffer in this launch. A buffer may have more bytes than
// the machine: pages that are not touched take no memory.
class Grains {
public:
  bool empty() const { return !first_; }
  void make(size_t count) {
    first_.reset(static_cast<unsigned *>(std::calloc(count, sizeof(unsigned))));
    if (!first_) fail("no memory for " + std::to_string(count) + " records of a buffer");
  }
  void clear() { first_.reset(); }
  unsigned &operator[](size_t i) { return first_.get()[i]; }

private:
  struct Free {
    void operator()(unsigned *p) const { std::free(p); }
  };
  std::unique_ptr<unsigned, Free> first_;
};

struct Buffer {
  uintptr_t begin, end;
  bool writable;
  Grains writer, reader;
};
std::vector<Buffer> buffers;

struct Touch {
  unsigned warp;
  const void *site;
  unsigned ordinal; // accesses of the thread at this site so far; equal for the lanes of one access
  uintptr_t buffer;
  bool store;
  uintptr_t first, last; // sectors
};
bool counting = false;
std::vector<Touch> touches;
std::unordered_map<uint64_t, unsigned> ordinals;
std::map<uintptr_t, Traffic> counted;
std::unordered_set<uintptr_t> moved[2]; // sectors that were loaded, and stored

Buffer *find(uintptr_t at) {
  for (auto &b : buffers)
    if (at >= b.begin && at < b.end) return &b;
  return nullptr;
}

std::string place(uintptr_t at, size_t bytes) {
  std::string text = std::to_string(bytes) + " bytes by thread " + std::to_string(t_linear) +
                     " of block (" + std::to_string(blockIdx.x) + ", " +
                     std::to_string(blockIdx.y) + ")";
  const Buffer *nearest = nullptr;
  uintptr_t distance = ~uintptr_t{0};
  for (const auto &b : buffers) {
    const uintptr_t d = at < b.begin ? b.begin - at : at < b.end ? 0 : at - b.end;
    if (d < distance) nearest = &b, distance = d;
  }
  if (nearest)
    text += ", at byte " + std::to_string(static_cast<int64_t>(at - nearest->begin)) +
            " of a buffer of " + std::to_string(nearest->end - nearest->begin);
  return text;
}

void check_race(Buffer &b, uintptr_t at, size_t bytes, Access access) {
  if (b.writer.empty()) {
    b.writer.make((b.end - b.begin) / kGrain + 1);
    b.reader.make((b.end - b.begin) / kGrain + 1);
  }
  for (size_t g = (at - b.begin) / kGrain; g < (at + bytes - b.begin + kGrain - 1) / kGrain; ++g) {
    unsigned &w = b.writer[g], &r = b.reader[g];
    const bool write = access == Access::kWrite;
    const unsigned block = block_number + 1;
    if ((w != kNobody && w != block) || (write && r != kNobody && r != block))
      fail("two blocks race for " + place(at, bytes));
    if (write)
      w = block;
    else
      r = r == kNobody || r == block ? block : kMany;
  }
}

void count(const Buffer &b, uintptr_t at, size_t bytes, Access access, const void *site) {
  const uint64_t key = reinterpret_cast<uint64_t>(site) << 17 | t_linear;
  touches.push_back({t_linear / 32, site, ordinals[key]++, b.begin, access != Access::kRead,
                     at / 32, (at + bytes - 1) / 32});
  Traffic &t = counted[b.begin];
  auto &widths = access == Access::kRead ? t.loads : t.stores;
  ++widths[std::min<size_t>(std::bit_width(bytes) - 1, widths.size() - 1)];
  for (uintptr_t sector = at / 32; sector <= (at + bytes - 1) / 32; ++sector)
    t.distinct_sectors += moved[access != Access::kRead].insert(sector).second;
}

} // namespace

void begin_operation() { buffers.clear(); }

void register_buffer(uintptr_t begin, size_t bytes, bool writable) {
  for (auto &b : buffers)
    if (b.begin == begin && b.end == begin + bytes) {
      b.writable |= writable;
      return;
    }
  Buffer &b = buffers.emplace_back();
  b.begin = begin, b.end = begin + bytes, b.writable = writable;
}

void forget_races() {
  for (auto &b : buffers) b.writer.clear(), b.reader.clear();
}

void begin_launch_memory() {
  forget_races();
  touches.clear();
  ordinals.clear();
}

void check_access(uintptr_t at, size_t bytes, Access access, const void *site) {
  if (at % bytes) fail("misaligned access: " + place(at, bytes));
  Buffer *b = find(at);
  if (!b || at + bytes > b->end) fail("out of bounds: " + place(at, bytes));
  if (access != Access::kRead && !b->writable) fail("write to a const tensor: " + place(at, bytes));
#ifndef MMIX_EMULATE_THREADS
  if (access != Access::kAtomic) check_race(*b, at, bytes, access);
  if (counting) count(*b, at, bytes, access, site);
#else
  (void)site;
#endif
}

void end_block_memory() {
  if (touches.empty()) return;
  std::sort(touches.begin(), touches.end(), [](const Touch &a, const Touch &b) {
    return std::tie(a.warp, a.site, a.ordinal, a.buffer, a.store, a.first, a.last) <
           std::tie(b.warp, b.site, b.ordinal, b.buffer, b.store, b.first, b.last);
  });
  const Touch *before = nullptr;
  uintptr_t seen = 0; // the sectors of this access below it are counted
  for (const Touch &t : touches) {
    const bool same = before && std::tie(t.warp, t.site, t.ordinal, t.buffer, t.store) ==
                                    std::tie(before->warp, before->site, before->ordinal,
                                             before->buffer, before->store);
    if (!same) seen = 0;
    const uintptr_t first = std::max(t.first, seen);
    if (t.last + 1 > first) {
      Traffic &total = counted[t.buffer];
      (t.store ? total.stored_sectors : total.loaded_sectors) += t.last + 1 - first;
      seen = t.last + 1;
    }
    before = &t;
  }
  touches.clear();
  ordinals.clear();
}

void count_traffic(bool on) {
  counting = on;
  counted.clear();
  for (auto &sectors : moved) sectors.clear();
}

std::map<uintptr_t, Traffic> traffic() { return counted; }

} // namespace emu
