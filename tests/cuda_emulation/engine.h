// The emulator's interface between the language (cuda_emulator.h) and what runs it (engine_*.cpp,
// memory.cpp). No CUDA name is defined here.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace emu {

struct Index {
  unsigned x, y, z;
};

#ifdef MMIX_EMULATE_THREADS
#define MMIX_EMU_LOCAL thread_local
#else
#define MMIX_EMU_LOCAL
#endif
} // namespace emu

extern MMIX_EMU_LOCAL emu::Index threadIdx, blockIdx;
extern emu::Index blockDim, gridDim;

namespace emu {
extern MMIX_EMU_LOCAL unsigned t_linear; // of the thread in its block, or cluster of blocks

inline unsigned lane_id() { return t_linear % 32; }

// engine_fibers.cpp or engine_threads.cpp
void run_blocks(Index grid, Index block, unsigned cluster, const std::function<void()> &body);
void sync_block(const char *file, int line);
void sync_cluster(const char *file, int line);
unsigned cluster_rank();         // of the block that runs
void lend_shared(unsigned rank); // another block looks into this one's shared memory
void sync_warp(unsigned mask, const char *file, int line);
uint64_t exchange(unsigned mask, uint64_t value, unsigned source_lane);
unsigned ballot(unsigned mask, bool vote);                     // the lanes that vote yes
int vote_block(int vote, const char *file, int line, int how); // 0 or, 1 and, 2 count
[[noreturn]] void fail(const std::string &message);            // ends the launch

// launch.cpp
struct Launch {
  const void *kernel;
  Index grid, block;
  unsigned cluster; // blocks
  size_t shared;    // bytes
  std::string parameters;
  std::string name, symbol; // of the kernel, demangled and as the linker knows it
};
void launch(Launch launch, const std::function<void()> &body);
void allow_shared(const void *kernel, int bytes);
void *dynamic_shared();
void *cluster_shared(void *mine, unsigned rank); // the same place in another block's memory
void begin_block();                              // shared memory becomes NaN
bool skips_barrier(const char *file, int line);
uint64_t random_number();
extern int device_sms, device_shared, device_clusters, device_number;
extern uint64_t seed;
extern unsigned long long failed_launches;
extern std::string disabled_file, running;
extern int disabled_line;
extern std::set<std::string> executed; // kernels since the library was loaded
extern std::vector<Launch> launched;   // since Python asked last
extern bool plans_only;                // launches are noted, and not run
extern std::set<std::pair<std::string, int>> barrier_sites;

// memory.cpp
enum class Access { kRead, kWrite, kAtomic };
// x86-64 and aarch64 fault on any address with this bit set and the ones above it clear.
constexpr uintptr_t kFalse = uintptr_t{1} << 52;
void begin_operation(); // forgets the buffers of the previous operation
void register_buffer(uintptr_t begin, size_t bytes, bool writable);
void check_access(uintptr_t at, size_t bytes, Access access, const void *site);
void begin_launch_memory();
void forget_races();     // all accesses until now come before all from now on
void end_block_memory(); // folds the block's accesses into the traffic of each buffer
extern unsigned block_number;

template <class T> T *device_pointer(T *p, size_t bytes, bool writable) {
  if (p == nullptr) return p;
  register_buffer(reinterpret_cast<uintptr_t>(p), bytes, writable);
  return reinterpret_cast<T *>(reinterpret_cast<uintptr_t>(p) | kFalse);
}

// The true address of a fake pointer, after all checks. Shared-memory pointers are not changed.
template <class T> __attribute__((noinline)) T *global(T *p, Access access) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(p);
  if (!(at & kFalse)) return p;
  check_access(at & ~kFalse, sizeof(T), access, __builtin_return_address(0));
  return reinterpret_cast<T *>(at & ~kFalse);
}

} // namespace emu
