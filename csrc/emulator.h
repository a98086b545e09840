// Runs kernels on the CPU: blocks one after another, with a fibre for each thread of a block.
//
// It finds mistakes and is not fast. To expose missing barriers, a warp runs for as long as it can,
// the order of lanes and warps is random, and shared memory is NaN when a block begins. A barrier or
// shuffle that only some threads reach is an error. AddressSanitizer finds accesses out of bounds.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define MZ_ALIGNED(pointer, bytes) metazoo::emulator::check_aligned(pointer, bytes)
#define MZ_SHARED(type, name, count) auto& name = metazoo::emulator::shared<type, count, __COUNTER__>()
#define MZ_LAUNCH(kernel, blocks, threads, place, ...) \
  metazoo::emulator::launch(blocks, threads, [=] { kernel(__VA_ARGS__); })
#define __syncthreads() metazoo::emulator::wait_for_block(__LINE__)
#define __syncwarp() metazoo::emulator::wait_for_warp(__LINE__)
#define __shfl_xor_sync(mask, value, lanes) metazoo::emulator::shuffle_xor(mask, value, lanes, __LINE__)
#define threadIdx (*metazoo::emulator::thread_index())
#define blockIdx (*metazoo::emulator::block_index())
#define blockDim (*metazoo::emulator::block_size())
#define gridDim (*metazoo::emulator::grid_size())

namespace metazoo::emulator {

struct Index {
  unsigned x;
};

constexpr unsigned LANES = 32;
constexpr size_t STACK = 128 * 1024;

enum class State { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK]};
  State state = State::DONE;
  int line = 0;  // source line of the barrier it waits at
  uint64_t slots[2];
  unsigned shuffles = 0;
};

struct Machine {
  std::mutex one_at_a_time;
  ucontext_t scheduler;
  std::vector<std::unique_ptr<Fibre>> fibres;
  const std::function<void()>* kernel = nullptr;
  Index thread{}, block{}, threads{}, grid{};
  std::mt19937 random{0};
  std::string complaint;
  uint64_t blocks_run = 0;
  uint64_t launches = 0;
};

// One instance for all sources of the library.
inline Machine& machine() {
  static Machine it;
  return it;
}

inline const Index* thread_index() { return &machine().thread; }
inline const Index* block_index() { return &machine().block; }
inline const Index* block_size() { return &machine().threads; }
inline const Index* grid_size() { return &machine().grid; }

template <typename T, int COUNT, int PLACE>
auto& shared() {
  alignas(16) static T memory[COUNT];
  static uint64_t block = 0;
  if (block != machine().blocks_run) {
    block = machine().blocks_run;
    std::memset(static_cast<void*>(memory), 0xff, sizeof memory);
  }
  return memory;
}

// Checks the limits of a GPU, which a CPU does not have.
inline void check_aligned(const void* pointer, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes) machine().complaint = "a load or store that is not aligned";
}

inline Fibre& self() { return *machine().fibres[machine().thread.x]; }

inline void pause(State state, int line) {
  Fibre& fibre = self();
  fibre.state = state;
  fibre.line = line;
  swapcontext(&fibre.context, &machine().scheduler);
}

inline void wait_for_block(int line) { pause(State::AT_BLOCK_BARRIER, line); }
inline void wait_for_warp(int line) { pause(State::AT_WARP_BARRIER, line); }

template <typename T>
T shuffle_xor(unsigned mask, T value, int lanes, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves one number");
  if (mask != 0xffffffffu) machine().complaint = "a shuffle of some lanes only";
  // Two alternating slots, because a lane may be one shuffle ahead of a lane that has not read yet.
  const unsigned turn = self().shuffles++ % 2;
  std::memcpy(&self().slots[turn], &value, sizeof value);
  wait_for_warp(line);
  std::memcpy(&value, &machine().fibres[machine().thread.x ^ lanes]->slots[turn], sizeof value);
  return value;
}

inline void run_fibre() {
  (*machine().kernel)();
  self().state = State::DONE;
}

inline void resume(unsigned thread) {
  Machine& m = machine();
  m.thread.x = thread;
  swapcontext(&m.scheduler, &m.fibres[thread]->context);
}

// Releases these threads if all of them wait at the same barrier, and returns whether it did.
inline bool release(unsigned first, unsigned last, State barrier) {
  Machine& m = machine();
  const Fibre& one = *m.fibres[first];
  for (unsigned i = first; i < last; ++i)
    if (m.fibres[i]->state != barrier || m.fibres[i]->line != one.line) return false;
  for (unsigned i = first; i < last; ++i) m.fibres[i]->state = State::READY;
  return true;
}

inline void run_block() {
  Machine& m = machine();
  const unsigned count = m.threads.x;
  if (count % LANES) throw std::logic_error("a block of unfinished warps");
  ++m.blocks_run;
  while (m.fibres.size() < count) m.fibres.push_back(std::make_unique<Fibre>());
  for (unsigned i = 0; i < count; ++i) {
    Fibre& fibre = *m.fibres[i];
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = STACK;
    fibre.context.uc_link = &m.scheduler;
    makecontext(&fibre.context, run_fibre, 0);
    fibre.state = State::READY;
    fibre.shuffles = 0;
  }
  std::vector<unsigned> warps, lanes;
  for (unsigned warp = 0; warp < count / LANES; ++warp) warps.push_back(warp);
  for (unsigned lane = 0; lane < LANES; ++lane) lanes.push_back(lane);
  for (bool moved = true; moved;) {
    moved = false;
    std::shuffle(warps.begin(), warps.end(), m.random);
    for (unsigned warp : warps) {
      const unsigned first = warp * LANES;
      do {
        std::shuffle(lanes.begin(), lanes.end(), m.random);
        for (unsigned lane : lanes)
          if (m.fibres[first + lane]->state == State::READY) {
            resume(first + lane);
            moved = true;
          }
      } while (release(first, first + LANES, State::AT_WARP_BARRIER));
    }
    moved = release(0, count, State::AT_BLOCK_BARRIER) || moved;
  }
  if (!m.complaint.empty()) throw std::logic_error(std::exchange(m.complaint, ""));
  for (unsigned i = 0; i < count; ++i)
    if (m.fibres[i]->state != State::DONE)
      throw std::logic_error("a barrier that not all threads reach, at line " + std::to_string(m.fibres[i]->line));
}

inline void launch(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  Machine& m = machine();
  const std::lock_guard<std::mutex> lock(m.one_at_a_time);
  ++m.launches;
  m.kernel = &kernel;
  m.grid.x = blocks;
  m.threads.x = threads;
  for (m.block.x = 0; m.block.x < blocks; ++m.block.x) run_block();
}

}  // namespace metazoo::emulator
