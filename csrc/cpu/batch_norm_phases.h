// Several passes over one tensor in one parallel region.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

#include "parallel.h"

namespace fastnn::FASTNN_BACKEND::bn {

// Values below which the calling thread works alone: about 5 us, what sharing with another thread costs.
constexpr int64_t kGrainElements = 16 * 1024;

// What one thread does of a pass: shares [begin, end) of `of`.
struct Share {
  int64_t begin, end, of;

  // Of tasks [0, tasks), this share's are [first, last).
  int64_t first(int64_t tasks) const { return tasks * begin / of; }
  int64_t last(int64_t tasks) const { return tasks * end / of; }
};

// Into how many shares work over so many values is divided.
inline int64_t shares_of(int64_t values) {
  return std::clamp<int64_t>(values / kGrainElements, 1, at::get_num_threads());
}

// phase(Share) of each phase, in their order: no share of one begins before all shares of those before it have
// ended. One region with a wait in between (0.2 us) costs less than a region for each (2 us).
template <typename... Phases>
void run_phases(int64_t shares, const Phases&... phases) {
#if AT_PARALLEL_OPENMP
  // Every share is under way at once: OpenMP gives each to a thread of its own, or all of them to this one.
  std::atomic<int64_t> arrived{0};
  parallel_for(shares, 1, [&](int64_t begin, int64_t end) {
    int64_t expected = 0, left = sizeof...(phases);
    const auto meet = [&] {
      expected += shares;
      arrived.fetch_add(end - begin, std::memory_order_acq_rel);
      for (int spins = 0; arrived.load(std::memory_order_acquire) < expected; ++spins) {
        // Spinning is for threads that run: one that was put aside needs the processor.
        if (spins > 10000) std::this_thread::yield();
      }
    };
    ((call_compiled_once(phases, Share{begin, end, shares}), --left > 0 ? meet() : void()), ...);
  });
#else
  (parallel_for(shares, 1,
                [&](int64_t begin, int64_t end) { call_compiled_once(phases, Share{begin, end, shares}); }),
   ...);
#endif
}

}  // namespace fastnn::FASTNN_BACKEND::bn
