// A team of threads that works in step: for recurrences, each step of which takes microseconds, too short for a
// parallel region of its own.
#pragma once

#include <ATen/Parallel.h>
#include <omp.h>
#include <sched.h>

#include <atomic>
#include <cstdint>

#include "parallel.h"

namespace fastnn::FASTNN_BACKEND {

// All threads of a team meet here. A thread that waits looks without rest for about the time that a step takes,
// since waking it would take as long as the step, then lets others have the processor.
class StepBarrier {
 public:
  explicit StepBarrier(int64_t threads) : threads_(threads), missing_(threads) {}

  void wait() {
    if (threads_ == 1) return;
    const int64_t phase = phase_.load(std::memory_order_relaxed);
    if (missing_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      missing_.store(threads_, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int64_t looks = 0; phase_.load(std::memory_order_acquire) == phase; ++looks) {
      if (looks < kLooks) {
        pause();
      } else {
        sched_yield();
      }
    }
  }

 private:
  static constexpr int64_t kLooks = 4000;  // of some 40 cycles

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  const int64_t threads_;
  alignas(64) std::atomic<int64_t> missing_;
  alignas(64) std::atomic<int64_t> phase_{0};
};

// f(member, members, barrier) in each thread of a team of at most `wanted`; in this thread alone where it is
// one of a parallel region's already.
template <typename F>
void run_team(int64_t wanted, const F& f) {
  if (wanted <= 1 || at::in_parallel_region()) {
    StepBarrier alone(1);
    call_compiled_once(f, int64_t{0}, int64_t{1}, std::ref(alone));
    return;
  }
  // OpenMP may give fewer threads than asked for; how many there are is known inside alone.
  std::atomic<StepBarrier*> barrier{nullptr};
#pragma omp parallel num_threads(static_cast<int>(wanted))
  {
    StepBarrier mine(omp_get_num_threads());
#pragma omp master
    barrier.store(&mine, std::memory_order_relaxed);
#pragma omp barrier
    call_compiled_once(f, static_cast<int64_t>(omp_get_thread_num()),
                       static_cast<int64_t>(omp_get_num_threads()),
                       std::ref(*barrier.load(std::memory_order_relaxed)));
#pragma omp barrier
  }
}

}  // namespace fastnn::FASTNN_BACKEND
