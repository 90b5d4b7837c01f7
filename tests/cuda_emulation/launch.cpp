// What both engines share: launches, dynamic shared memory, the seed, the disabled barrier.
#include "engine.h"
#include <algorithm>
#include <cstring>
#include <cxxabi.h>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <sys/mman.h>

MMIX_EMU_LOCAL emu::Index threadIdx{}, blockIdx{};
emu::Index blockDim{}, gridDim{};

namespace emu {

MMIX_EMU_LOCAL unsigned t_linear = 0;
int device_sms = 132, device_shared = 227 * 1024, device_clusters = 1; // an H100
int device_number = 0;
uint64_t seed = 0;
unsigned long long failed_launches = 0;
std::string disabled_file, running;
int disabled_line = 0;
std::set<std::string> executed;
std::vector<Launch> launched;
bool plans_only = false;
std::set<std::pair<std::string, int>> barrier_sites;

static constexpr size_t kMostShared = 256 * 256 * 1024; // of blocks that run at the same time
static std::map<const void *, int> allowed_shared;
static unsigned char *shared_end = nullptr; // a page that faults begins here
static size_t shared_bytes = 0;             // of a block
static unsigned cluster_blocks = 1;

uint64_t random_number() { // splitmix64
  uint64_t z = (seed += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

bool skips_barrier(const char *file, int line) {
  if (line != disabled_line || disabled_file.empty()) return false;
  const size_t n = std::strlen(file), m = disabled_file.size();
  return n >= m && disabled_file == file + n - m;
}

void allow_shared(const void *kernel, int bytes) { allowed_shared[kernel] = bytes; }

static unsigned char *shared_of(unsigned rank) {
  return shared_end - (cluster_blocks - rank) * shared_bytes;
}
void *dynamic_shared() { return shared_of(cluster_blocks == 1 ? 0 : cluster_rank()); }
void *cluster_shared(void *mine, unsigned rank) {
  if (rank != cluster_rank()) lend_shared(rank);
  return shared_of(rank) + (static_cast<unsigned char *>(mine) - shared_of(cluster_rank()));
}

// All bits set is a NaN in every dtype, and -1 as an integer.
void begin_block() {
  if (shared_bytes) std::memset(shared_of(0), 0xff, cluster_blocks * shared_bytes);
}

static void find_names(Launch &l) {
  Dl_info info;
  l.name = "a kernel without a name";
  if (!dladdr(const_cast<void *>(l.kernel), &info) || !info.dli_sname) return;
  l.symbol = info.dli_sname;
  int status = 0;
  char *text = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  l.name = status == 0 ? text : info.dli_sname;
  std::free(text);
}

void launch(Launch l, const std::function<void()> &body) {
  static std::mutex one_launch;
  const std::lock_guard<std::mutex> lock(one_launch);
  find_names(l);
  running = l.name;
  const auto &[kernel, grid, block, cluster, shared, parameters, name, symbol] = l;
  const auto refuse = [&](bool bad, const char *why) {
    if (bad) throw std::runtime_error("emulator: " + running + ": " + why);
  };
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  refuse(threads == 0 || threads > 1024 || block.z > 64, "a block must have 1 to 1024 threads");
  refuse(!grid.x || !grid.y || !grid.z, "an empty grid");
  refuse(grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535, "the grid is too large");
  const bool all = cluster == grid.x; // a cooperative launch
  refuse(cluster == 0 || (cluster > 8 && !all) || grid.x % cluster,
         "the grid is not made of clusters");
  refuse(all && cluster > 8 && grid.x > unsigned(device_sms),
         "not all blocks run at the same time");
  refuse(cluster > 1 && threads % 32, "a block of a cluster must be made of whole warps");
  const auto allowed = allowed_shared.find(kernel);
  const size_t limit = allowed == allowed_shared.end() ? 48 * 1024 : allowed->second;
  refuse(shared > std::max<size_t>(limit, 48 * 1024), "more shared memory than was allowed");
  refuse(shared > static_cast<size_t>(device_shared), "more shared memory than the device has");
  if (!shared_end) {
    auto *base = static_cast<unsigned char *>(mmap(
        nullptr, kMostShared + 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base + kMostShared, 65536, PROT_NONE);
    shared_end = base + kMostShared;
  }
  shared_bytes = (shared + 15) / 16 * 16;
  cluster_blocks = cluster;
  launched.push_back(l);
  if (plans_only) return;
  executed.insert(running);
  blockDim = block;
  gridDim = grid;
  begin_launch_memory();
  ++failed_launches;
  run_blocks(grid, block, cluster, body); // throws if it fails
  --failed_launches;
}

} // namespace emu
