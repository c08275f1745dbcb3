// Runs grids: checks the launch as the device would, and spreads its blocks over OS threads.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "block.h"
#include "launch.h"
#include "options.h"

namespace fastnn::emulator {
namespace {

// A runner has a thousand stacks at most, each two mappings; a process has 65530 by default.
constexpr unsigned kMaxWorkers = 16;
// The first block's time tells what is worth another OS thread, which costs some 30 microseconds to start.
constexpr std::chrono::duration<double, std::micro> kMinHelperTime{100};

uint64_t from_environment(const char* name, uint64_t otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr || *text == '\0' ? otherwise : std::strtoull(text, nullptr, 10);
}

struct Options {
  std::atomic<uint64_t> seed{from_environment("FASTNN_EMULATOR_SEED", 0)};
  std::atomic<unsigned> workers{
      static_cast<unsigned>(from_environment("FASTNN_EMULATOR_THREADS", std::thread::hardware_concurrency()))};
};

Options& options() {
  static Options instance;
  return instance;
}

// A Status holds its message by pointer, so messages are kept; there are as many as there are mistakes.
// `where` is the kernel's name.
Status failure(std::string message, const char* where) {
  static std::mutex mutex;
  static auto& messages = *new std::set<std::string>;
  const std::lock_guard lock(mutex);
  return Status::error(messages.insert(std::move(message)).first->c_str(), where);
}

// Runners that no launch is using. Never destroyed: a launch may come while the process ends.
class RunnerPool {
 public:
  static RunnerPool& instance() {
    static auto& pool = *new RunnerPool;
    return pool;
  }
  std::unique_ptr<BlockRunner> take() {
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        auto runner = std::move(idle_.back());
        idle_.pop_back();
        return runner;
      }
    }
    return std::make_unique<BlockRunner>();
  }
  void put(std::unique_ptr<BlockRunner> runner) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(runner));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<BlockRunner>> idle_;
};

// What the device refuses; empty when it does not.
std::string check_launch(dim3 grid, dim3 block, size_t dynamic_shared_bytes) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0) return "a block of " + triple(block) + " has no threads";
  if (block.x > kMaxThreads || block.y > kMaxThreads || block.z > 64 || threads > kMaxThreads) {
    return "a block of " + triple(block) + " is larger than 1024 threads or (1024, 1024, 64)";
  }
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return "a grid of " + triple(grid) + " is larger than (2147483647, 65535, 65535)";
  }
  if (dynamic_shared_bytes > kMaxSharedBytes) {
    return "dynamic shared memory of " + std::to_string(dynamic_shared_bytes) + " bytes; a block may have " +
           std::to_string(kMaxSharedBytes);
  }
  return {};
}

uint64_t mix(uint64_t v) {  // the finaliser of splitmix64 (Steele, Lea and Flood 2014)
  v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9ull;
  v = (v ^ v >> 27) * 0x94d049bb133111ebull;
  return v ^ v >> 31;
}

// Visits each of count blocks once: in natural order without a seed, else i -> (factor i + shift) mod count.
class BlockOrder {
 public:
  BlockOrder(uint64_t count, uint64_t seed) : count_(count) {
    if (seed == 0) return;
    shift_ = mix(seed) % count;
    factor_ = mix(seed + 1) % count;
    while (std::gcd(factor_, count) != 1) ++factor_;
  }
  uint64_t operator[](uint64_t i) const {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(factor_) * i + shift_) % count_);
  }

 private:
  uint64_t count_, factor_ = 1, shift_ = 0;
};

class GridRun {
 public:
  explicit GridRun(const Launch& launch)
      : launch_(launch),
        block_count_(uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z),
        order_(block_count_, launch.seed) {}

  std::string run(unsigned max_workers) {
    Worker self(launch_);
    const auto begin = std::chrono::steady_clock::now();
    if (!run_next(self)) return error_;
    const auto elapsed = std::chrono::steady_clock::now() - begin;
    const auto left = block_count_ - 1;
    const auto worthwhile = static_cast<uint64_t>(static_cast<double>(left) * (elapsed / kMinHelperTime));
    const uint64_t helper_count = std::min({left, uint64_t{max_workers} - 1, worthwhile});
    std::vector<std::thread> helpers;
    try {
      while (helpers.size() < helper_count) {
        helpers.emplace_back([this] {
          Worker helper(launch_);
          while (run_next(helper)) {
          }
        });
      }
    } catch (const std::system_error&) {
      // The system allows no more: those that there are do the work.
    }
    while (run_next(self)) {
    }
    for (std::thread& helper : helpers) helper.join();
    return error_;
  }

 private:
  // A runner for as long as an OS thread works on this grid.
  struct Worker {
    explicit Worker(const Launch& launch) : runner(RunnerPool::instance().take()) {
      runner->begin_launch(launch);
    }
    ~Worker() { RunnerPool::instance().put(std::move(runner)); }
    std::unique_ptr<BlockRunner> runner;
  };

  // False when nothing is left to do.
  bool run_next(Worker& worker) {
    const uint64_t i = next_.fetch_add(1, std::memory_order_relaxed);
    // Blocks before the first that failed are run, so that the report does not depend on the workers.
    if (i >= block_count_ || i > first_failed_.load(std::memory_order_relaxed)) return false;
    const uint64_t block = order_[i];
    const auto x = static_cast<unsigned>(block % launch_.grid.x);
    const auto y = static_cast<unsigned>(block / launch_.grid.x % launch_.grid.y);
    const auto z = static_cast<unsigned>(block / launch_.grid.x / launch_.grid.y);
    if (worker.runner->run({x, y, z}, mix(launch_.seed ^ mix(block + 1)))) return true;
    const std::lock_guard lock(mutex_);
    if (i < first_failed_) {
      first_failed_ = i;
      error_ = worker.runner->error();
    }
    return false;
  }

  const Launch& launch_;
  const uint64_t block_count_;
  const BlockOrder order_;
  std::atomic<uint64_t> next_{0};
  std::atomic<uint64_t> first_failed_{UINT64_MAX};
  std::mutex mutex_;
  std::string error_;
};

}  // namespace

void set_seed(uint64_t seed) { options().seed = seed; }
uint64_t seed() { return options().seed; }
void set_workers(unsigned count) { options().workers = count; }
unsigned workers() { return std::clamp(options().workers.load(), 1u, kMaxWorkers); }

Status run_grid(const char* name, dim3 grid, dim3 block, size_t dynamic_shared_bytes,
                void (*run_thread)(const void* arguments), const void* arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return Status::success();
  std::string error = check_launch(grid, block, dynamic_shared_bytes);
  if (!error.empty()) return failure(std::move(error), name);
  const Launch launch{.grid = grid,
                      .block = block,
                      .dynamic_shared_bytes = dynamic_shared_bytes,
                      .run_thread = run_thread,
                      .arguments = arguments,
                      .seed = seed()};
  error = GridRun(launch).run(workers());
  return error.empty() ? Status::success() : failure(std::move(error), name);
}

}  // namespace fastnn::emulator
