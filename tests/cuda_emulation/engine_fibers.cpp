// Each CUDA thread is a fiber. One runs at a time, chosen at random among those that are ready,
// until its next barrier or warp operation. setjmp switches, since ucontext makes system calls.
#include "engine.h"
#include <algorithm>
#include <csetjmp>
#include <memory>
#include <numeric>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

namespace emu {
namespace {

enum Wait { kReady, kBlock, kCluster, kWarp, kExchange, kBallot, kDone };
constexpr size_t kStack = 128 * 1024, kGuard = 4096, kGuarded = 8192;

struct Fiber {
  ucontext_t start;
  jmp_buf jump;
  bool started = false;
  char *stack = nullptr;
  unsigned linear;
  Index index, block;
  unsigned rank, number; // of its block in the cluster and in the grid
  Wait wait;
  unsigned mask;
  uint64_t value;  // given to a warp operation, then its result
  unsigned source; // the lane whose value is wanted
  const char *file;
  int line;
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber *> ready;
Fiber *current;
jmp_buf scheduler;
const std::function<void()> *job;
std::string failure;
unsigned threads, in_block; // in the cluster that runs; in each of its blocks
unsigned at_cluster_barrier;
std::vector<unsigned> at_barrier; // of each block
std::vector<bool> lent;           // to other blocks, since the last barrier of the cluster

void leave() {
  if (!_setjmp(current->jump)) _longjmp(scheduler, 1);
}

void fiber_main() {
  for (;;) {
    try {
      (*job)();
    } catch (const std::exception &e) {
      failure = e.what();
    }
    current->wait = kDone;
    leave();
  }
}

void resume(Fiber *f) {
  current = f;
  threadIdx = f->index;
  blockIdx = f->block;
  block_number = f->number;
  t_linear = f->linear;
  if (_setjmp(scheduler)) return;
  if (f->started) _longjmp(f->jump, 1);
  f->started = true;
  setcontext(&f->start);
}

void create(Fiber &f) {
  if (!f.stack) {
    f.stack = static_cast<char *>(mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    // A process may have few mappings: the many fibers of a cooperative launch share theirs.
    if (fibers.size() <= kGuarded) mprotect(f.stack, kGuard, PROT_NONE);
  }
  getcontext(&f.start);
  f.start.uc_stack.ss_sp = f.stack;
  f.start.uc_stack.ss_size = kStack;
  f.start.uc_link = nullptr;
  makecontext(&f.start, fiber_main, 0);
  f.started = false;
}

void release(Fiber *f) {
  f->wait = kReady;
  ready.push_back(f);
}

unsigned warp_lanes(unsigned warp) {
  const unsigned lanes = std::min(32u, threads - warp * 32);
  return lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
}

// If every lane of the mask waits in the same operation, it takes place.
void try_warp(Fiber *f) {
  const unsigned warp = f->linear / 32, mask = f->mask & warp_lanes(warp);
  const auto lane = [&](unsigned l) { return fibers[warp * 32 + l].get(); };
  unsigned votes_yes = 0;
  for (unsigned l = 0; l < 32; ++l) {
    if (!(mask >> l & 1)) continue;
    if (lane(l)->wait != f->wait || lane(l)->mask != f->mask) return;
    votes_yes |= unsigned(lane(l)->value & 1) << l;
  }
  uint64_t given[32];
  for (unsigned l = 0; l < 32; ++l)
    if (mask >> l & 1) given[l] = lane(l)->value;
  for (unsigned l = 0; l < 32; ++l) {
    if (!(mask >> l & 1)) continue;
    Fiber *g = lane(l);
    if (f->wait == kBallot) g->value = votes_yes;
    if (f->wait == kExchange) {
      if (g->source >= 32 || !(mask >> g->source & 1)) {
        failure = "a shuffle reads lane " + std::to_string(g->source) + ", outside its mask";
        return;
      }
      g->value = given[g->source];
    }
    if (g != f) release(g);
  }
  release(f);
}

uint64_t wait_warp(Wait kind, unsigned mask, uint64_t value, unsigned source, const char *file,
                   int line) {
  if (!(mask >> lane_id() & 1)) fail("a lane calls a warp operation without being in its mask");
  Fiber *f = current;
  f->wait = kind;
  f->mask = mask;
  f->value = value;
  f->source = source;
  f->file = file;
  f->line = line;
  try_warp(f);
  leave();
  return f->value;
}

std::string describe_deadlock() {
  unsigned gone = 0, blocked = 0, warps = 0;
  const Fiber *sample = nullptr;
  for (unsigned t = 0; t < threads; ++t) {
    const Fiber *f = fibers[t].get();
    gone += f->wait == kDone;
    blocked += f->wait == kBlock || f->wait == kCluster;
    warps += f->wait == kWarp || f->wait == kExchange || f->wait == kBallot;
    if (f->wait != kDone && (!sample || f->wait == kBlock)) sample = f;
  }
  return "divergent barrier: " + std::to_string(blocked) + " threads wait for their block, " +
         std::to_string(warps) + " for their warp, " + std::to_string(gone) +
         " have left the kernel; one waits at " + sample->file + ":" + std::to_string(sample->line);
}

void run_block() {
  ready.clear();
  at_barrier.assign(threads / in_block, 0);
  at_cluster_barrier = 0;
  lent.assign(threads / in_block, false);
  std::vector<unsigned> left(threads / in_block, 0);
  for (unsigned t = 0; t < threads; ++t) release(fibers[t].get());
  unsigned done = 0;
  while (!ready.empty() && failure.empty()) {
    const size_t pick = random_number() % ready.size();
    Fiber *f = ready[pick];
    ready[pick] = ready.back();
    ready.pop_back();
    resume(f);
    if (f->wait != kDone) continue;
    ++done;
    if (++left[f->rank] == in_block && lent[f->rank])
      failure = "a block leaves while others of its cluster may read its shared memory";
  }
  if (failure.empty() && done != threads) failure = describe_deadlock();
}

} // namespace

void fail(const std::string &message) { throw std::runtime_error(message); }

void sync_block(const char *file, int line) {
  barrier_sites.insert({file, line});
  if (skips_barrier(file, line)) return;
  current->wait = kBlock;
  current->file = file;
  current->line = line;
  const unsigned rank = current->rank;
  if (++at_barrier[rank] == in_block) {
    at_barrier[rank] = 0;
    for (unsigned t = 0; t < in_block; ++t) release(fibers[rank * in_block + t].get());
  }
  leave();
}

void sync_cluster(const char *file, int line) {
  barrier_sites.insert({file, line});
  if (skips_barrier(file, line)) return;
  current->wait = kCluster;
  current->file = file;
  current->line = line;
  if (++at_cluster_barrier == threads) {
    at_cluster_barrier = 0;
    lent.assign(lent.size(), false);
    if (threads == in_block * gridDim.x) forget_races(); // the barrier orders all blocks
    for (unsigned t = 0; t < threads; ++t) release(fibers[t].get());
  }
  leave();
}

unsigned cluster_rank() { return current->rank; }
void lend_shared(unsigned rank) { lent[rank] = true; }

int vote_block(int vote, const char *file, int line, int how) {
  static unsigned count; // all threads of a block vote before any of them votes again
  if (threads != in_block) fail("votes of a block in a cluster are not emulated");
  if (at_barrier[0] == 0) count = 0;
  count += vote != 0;
  sync_block(file, line);
  const unsigned yes = count;
  sync_block(file, line);
  return how == 0 ? yes != 0 : how == 1 ? yes == threads : int(yes);
}

void sync_warp(unsigned mask, const char *file, int line) {
  barrier_sites.insert({file, line});
  if (!skips_barrier(file, line)) wait_warp(kWarp, mask, 0, 0, file, line);
}
uint64_t exchange(unsigned mask, uint64_t value, unsigned source) {
  return wait_warp(kExchange, mask, value, source, "a shuffle", 0);
}
unsigned ballot(unsigned mask, bool vote) {
  return unsigned(wait_warp(kBallot, mask, vote, 0, "a vote", 0));
}

void run_blocks(Index grid, Index block, unsigned cluster, const std::function<void()> &body) {
  job = &body;
  in_block = block.x * block.y * block.z;
  threads = in_block * cluster;
  while (fibers.size() < threads) {
    fibers.push_back(std::make_unique<Fiber>());
    create(*fibers.back());
  }
  for (unsigned t = 0; t < threads; ++t) {
    const unsigned i = t % in_block;
    fibers[t]->linear = t;
    fibers[t]->rank = t / in_block;
    fibers[t]->index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
  }
  std::vector<unsigned> order(size_t{grid.x} * grid.y * grid.z / cluster);
  std::iota(order.begin(), order.end(), 0u);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_number() % i]);
  failure.clear();
  for (const unsigned first : order) {
    for (unsigned t = 0; t < threads; ++t) {
      const unsigned n = fibers[t]->number = first * cluster + fibers[t]->rank;
      fibers[t]->block = {n % grid.x, n / grid.x % grid.y, n / (grid.x * grid.y)};
    }
    begin_block();
    run_block();
    end_block_memory();
    if (failure.empty()) continue;
    for (unsigned t = 0; t < threads; ++t) create(*fibers[t]); // some stopped in mid-kernel
    throw std::runtime_error("emulator: " + running + ": " + failure);
  }
}

} // namespace emu
