// Runs grids: checks the launch as the device would, and spreads its blocks over OS threads.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "../intrinsics/atomics.h"
#include "gang.h"
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

// Of the device that is played; few, so that grids which fill it are small.
constexpr unsigned kDefaultMultiprocessors = 4;
constexpr unsigned kDefaultComputeCapability = 90;

struct Options {
  std::atomic<uint64_t> seed{from_environment("FASTNN_EMULATOR_SEED", 0)};
  std::atomic<unsigned> workers{
      static_cast<unsigned>(from_environment("FASTNN_EMULATOR_THREADS", std::thread::hardware_concurrency()))};
  std::atomic<unsigned> multiprocessors{
      static_cast<unsigned>(from_environment("FASTNN_EMULATOR_MULTIPROCESSORS", kDefaultMultiprocessors))};
  std::atomic<unsigned> compute_capability{
      static_cast<unsigned>(from_environment("FASTNN_EMULATOR_COMPUTE_CAPABILITY", kDefaultComputeCapability))};
  std::atomic<unsigned> shared_bytes{
      static_cast<unsigned>(from_environment("FASTNN_EMULATOR_SHARED_BYTES", kMaxSharedBytes))};
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
  std::unique_ptr<GangRunner> take() {
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        auto runner = std::move(idle_.back());
        idle_.pop_back();
        return runner;
      }
    }
    return std::make_unique<GangRunner>();
  }
  void put(std::unique_ptr<GangRunner> runner) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(runner));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<GangRunner>> idle_;
};

// What the device refuses; empty when it does not.
std::string check_launch(const LaunchShape& shape) {
  const dim3 grid = shape.grid, block = shape.block, cluster = shape.cluster;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0) return "a block of " + triple(block) + " has no threads";
  if (block.x > kMaxThreads || block.y > kMaxThreads || block.z > 64 || threads > kMaxThreads) {
    return "a block of " + triple(block) + " is larger than 1024 threads or (1024, 1024, 64)";
  }
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return "a grid of " + triple(grid) + " is larger than (2147483647, 65535, 65535)";
  }
  if (shape.dynamic_shared_bytes > shared_bytes()) {
    return "dynamic shared memory of " + std::to_string(shape.dynamic_shared_bytes) +
           " bytes; a block may have " + std::to_string(shared_bytes());
  }
  const uint64_t blocks = uint64_t{cluster.x} * cluster.y * cluster.z;
  if (blocks == 0 || blocks > 16) return "a cluster of " + triple(cluster) + " has not 1 to 16 blocks";
  if (blocks > 1 && compute_capability() < 90)
    return "a cluster of " + triple(cluster) + "; this device launches none";
  if (grid.x % cluster.x != 0 || grid.y % cluster.y != 0 || grid.z % cluster.z != 0) {
    return "a grid of " + triple(grid) + " is no multiple of its clusters of " + triple(cluster);
  }
  const uint64_t resident =
      uint64_t{multiprocessors()} * resident_blocks(static_cast<unsigned>(threads), shape.dynamic_shared_bytes);
  const uint64_t all = uint64_t{grid.x} * grid.y * grid.z;
  if (shape.cooperative && all > std::min<uint64_t>(resident, kMaxGang)) {
    return "a cooperative grid of " + std::to_string(all) + " blocks; " + std::to_string(resident) +
           " can be resident at once";
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
        gang_(launch.cooperative ? launch.grid : launch.cluster),
        gang_size_(uint64_t{gang_.x} * gang_.y * gang_.z),
        gangs_(launch.grid.x / gang_.x, launch.grid.y / gang_.y, launch.grid.z / gang_.z),
        gang_count_(uint64_t{gangs_.x} * gangs_.y * gangs_.z),
        order_(gang_count_, launch.seed) {}

  std::string run(unsigned max_workers) {
    Worker self(launch_);
    const auto begin = std::chrono::steady_clock::now();
    if (!run_next(self)) return error_;
    const auto elapsed = std::chrono::steady_clock::now() - begin;
    const auto left = gang_count_ - 1;
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
    ~Worker() {
      runner->end_launch();
      RunnerPool::instance().put(std::move(runner));
    }
    std::unique_ptr<GangRunner> runner;
    std::vector<uint3> indices;
  };

  // False when nothing is left to do.
  bool run_next(Worker& worker) {
    const uint64_t i = next_.fetch_add(1, std::memory_order_relaxed);
    // Gangs before the first that failed are run, so that the report does not depend on the workers.
    if (i >= gang_count_ || i > first_failed_.load(std::memory_order_relaxed)) return false;
    const uint64_t gang = order_[i];
    const auto x = static_cast<unsigned>(gang % gangs_.x) * gang_.x;
    const auto y = static_cast<unsigned>(gang / gangs_.x % gangs_.y) * gang_.y;
    const auto z = static_cast<unsigned>(gang / gangs_.x / gangs_.y) * gang_.z;
    worker.indices.clear();
    for (unsigned k = 0; k < gang_.z; ++k) {
      for (unsigned j = 0; j < gang_.y; ++j) {
        for (unsigned h = 0; h < gang_.x; ++h) worker.indices.push_back({x + h, y + j, z + k});
      }
    }
    const auto number = static_cast<uint32_t>(gang * gang_size_);
    const bool fine = worker.runner->run(worker.indices, number, mix(launch_.seed ^ mix(gang + 1)));
    launch_.finished->fetch_add(1, std::memory_order_relaxed);
    if (fine) return true;
    const std::lock_guard lock(mutex_);
    if (i < first_failed_) {
      first_failed_ = i;
      error_ = worker.runner->error();
    }
    return false;
  }

  const Launch& launch_;
  const dim3 gang_;
  const uint64_t gang_size_;
  const dim3 gangs_;
  const uint64_t gang_count_;
  const BlockOrder order_;
  std::atomic<uint64_t> next_{0};
  std::atomic<uint64_t> first_failed_{UINT64_MAX};
  std::mutex mutex_;
  std::string error_;
};

// One grid runs at a time, as the stamps of one launch are all older than those of the next.
std::mutex& device() {
  static auto& mutex = *new std::mutex;
  return mutex;
}

}  // namespace

void set_seed(uint64_t seed) { options().seed = seed; }
uint64_t seed() { return options().seed; }
void set_workers(unsigned count) { options().workers = count; }
unsigned workers() { return std::clamp(options().workers.load(), 1u, kMaxWorkers); }

void set_multiprocessors(unsigned count) { options().multiprocessors = count; }
unsigned multiprocessors() { return std::clamp(options().multiprocessors.load(), 1u, 256u); }
void set_shared_bytes(unsigned bytes) { options().shared_bytes = bytes; }
unsigned shared_bytes() { return std::clamp(options().shared_bytes.load(), 1024u, unsigned{kMaxSharedBytes}); }

void set_compute_capability(unsigned capability) { options().compute_capability = capability; }
unsigned compute_capability() { return options().compute_capability; }

unsigned resident_blocks(unsigned threads, size_t shared_bytes) {
  constexpr unsigned kThreads = 2048, kBlocks = 32;
  const auto rounded = (threads + kWarpLanes - 1) / kWarpLanes * kWarpLanes;
  const size_t by_shared = (emulator::shared_bytes() + 1024) / (shared_bytes + 1024);
  return static_cast<unsigned>(
      std::min<size_t>({by_shared, kThreads / std::max(rounded, 1u), size_t{kBlocks}}));
}

Status run_grid(const char* name, const LaunchShape& shape, void (*run_thread)(const void* arguments),
                const void* arguments, size_t argument_bytes) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return Status::success();
  std::string error = check_launch(shape);
  if (!error.empty()) return failure(std::move(error), name);
  const std::lock_guard lock(device());
  constexpr uint32_t kLate = 0xe0000000;
  if (time_now.load() > kLate) {
    forget_accesses();
    time_now = 1;
  }
  forget_published();
  const uint64_t gang_blocks = shape.cooperative
                                   ? uint64_t{shape.grid.x} * shape.grid.y * shape.grid.z
                                   : uint64_t{shape.cluster.x} * shape.cluster.y * shape.cluster.z;
  const uint64_t gangs = uint64_t{shape.grid.x} * shape.grid.y * shape.grid.z / gang_blocks;
  std::atomic<uint64_t> finished{0};
  std::optional<LaunchProfile> profile;
  if (profiling()) profile.emplace(name, gangs);
  const Launch launch{.name = name,
                      .grid = shape.grid,
                      .block = shape.block,
                      .cluster = shape.cluster,
                      .cooperative = shape.cooperative,
                      .dynamic_shared_bytes = shape.dynamic_shared_bytes,
                      .run_thread = run_thread,
                      .arguments = arguments,
                      .argument_bytes = argument_bytes,
                      .seed = seed(),
                      .begin = tick(),
                      .alone = gangs == 1,
                      .finished = &finished,
                      .profile = profile ? &*profile : nullptr};
  error = GridRun(launch).run(workers());
  if (!error.empty()) return failure(std::move(error), name);
  if (profile) profile->finish();
  return Status::success();
}

}  // namespace fastnn::emulator
