// Each CUDA thread is an OS thread, for ThreadSanitizer, which knows pthread barriers. Nothing here
// may lock a mutex while a kernel runs: that would order what the kernel leaves unordered.
#include "engine.h"
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <pthread.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace emu {
namespace {

std::vector<pthread_barrier_t> block_barriers; // of the blocks of the cluster that runs
pthread_barrier_t cluster_barrier;
thread_local unsigned t_rank; // of the block in its cluster
struct Warp {
  pthread_barrier_t whole;
  uint64_t slots[32];
};
std::vector<std::unique_ptr<Warp>> warps;
unsigned threads;
std::vector<int> votes;

Warp &warp_of(unsigned mask) {
  const unsigned warp = t_linear / 32;
  const unsigned lanes = std::min(32u, threads - warp * 32);
  const unsigned all = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
  if ((mask & all) != all) fail("the thread engine knows whole warps only, got a part of one");
  return *warps[warp];
}

} // namespace

void fail(const std::string &message) {
  std::fprintf(stderr, "emulator: %s: %s\n", running.c_str(), message.c_str());
  std::abort();
}

void sync_block(const char *file, int line) {
  if (!skips_barrier(file, line)) pthread_barrier_wait(&block_barriers[t_rank]);
}
void sync_cluster(const char *file, int line) {
  if (!skips_barrier(file, line)) pthread_barrier_wait(&cluster_barrier);
}
unsigned cluster_rank() { return t_rank; }
void lend_shared(unsigned) {} // a read after the other block has ended is not detected here
void sync_warp(unsigned mask, const char *file, int line) {
  if (!skips_barrier(file, line)) pthread_barrier_wait(&warp_of(mask).whole);
}
uint64_t exchange(unsigned mask, uint64_t value, unsigned source) {
  Warp &w = warp_of(mask);
  w.slots[lane_id()] = value;
  pthread_barrier_wait(&w.whole);
  const uint64_t result = w.slots[source];
  pthread_barrier_wait(&w.whole);
  return result;
}
unsigned ballot(unsigned mask, bool vote) {
  Warp &w = warp_of(mask);
  w.slots[lane_id()] = vote;
  pthread_barrier_wait(&w.whole);
  unsigned result = 0;
  for (unsigned l = 0; l < 32 && t_linear / 32 * 32 + l < threads; ++l)
    result |= unsigned(w.slots[l] != 0) << l;
  pthread_barrier_wait(&w.whole);
  return result;
}
int vote_block(int vote, const char *file, int line, int how) {
  votes[t_linear] = vote != 0;
  sync_block(file, line);
  const int yes = std::accumulate(votes.begin(), votes.end(), 0);
  sync_block(file, line);
  return how == 0 ? yes != 0 : how == 1 ? yes == int(threads) : yes;
}

void run_blocks(Index grid, Index block, unsigned cluster, const std::function<void()> &body) {
  const unsigned in_block = block.x * block.y * block.z;
  threads = in_block * cluster;
  votes.assign(threads, 0);
  block_barriers.resize(cluster);
  for (auto &b : block_barriers) pthread_barrier_init(&b, nullptr, in_block);
  pthread_barrier_init(&cluster_barrier, nullptr, threads);
  warps.clear();
  for (unsigned w = 0; w * 32 < threads; ++w) {
    warps.push_back(std::make_unique<Warp>());
    pthread_barrier_init(&warps.back()->whole, nullptr, std::min(32u, threads - w * 32));
  }
  std::vector<unsigned> order(size_t{grid.x} * grid.y * grid.z / cluster);
  std::iota(order.begin(), order.end(), 0u);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_number() % i]);
  alarm(240); // ends the process if a barrier waits for ever because some thread never reaches it
  std::vector<std::thread> team;
  for (unsigned t = 0; t < threads; ++t)
    team.emplace_back([&, t] {
      const unsigned i = t % in_block;
      t_linear = t;
      t_rank = t / in_block;
      threadIdx = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
      for (const unsigned first : order) {
        const unsigned n = first * cluster + t_rank;
        blockIdx = {n % grid.x, n / grid.x % grid.y, n / (grid.x * grid.y)};
        if (t == 0) begin_block();
        pthread_barrier_wait(&cluster_barrier);
        body();
        pthread_barrier_wait(&cluster_barrier);
      }
    });
  for (auto &t : team) t.join();
  alarm(0);
  for (auto &b : block_barriers) pthread_barrier_destroy(&b);
  pthread_barrier_destroy(&cluster_barrier);
  for (auto &w : warps) pthread_barrier_destroy(&w->whole);
}

} // namespace emu
