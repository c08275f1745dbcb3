// Who did what to memory last, and whether it is ordered before what is done now.
//
// For each word of four bytes (each byte, where parts of a word are accessed) of shared memory: its last
// writer, and all threads that read it since; for each word of global memory its last writer and last reader,
// with a mark where there were several, so that of three parties in a race one may go unnamed or, where parts
// of words are shared, unseen. An access races with another of another thread when one of them writes, not both
// are atomic, and no barrier, fence with atomic operation, or completed asynchronous operation orders them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../runtime.h"
#include "clock.h"

namespace fastnn::emulator {

struct Thread;
struct Block;
struct Region;
class GangRunner;

// A place in the code, as four bytes: an offset into this library, or the number of a source location.
using Site = uint32_t;
Site site_of(uintptr_t pc);
Site site_of(Where where);
std::string describe_site(Site site);

// As SyncClock's, for a given thread.
void release(Thread& thread, SyncClock& clock);
void acquire(Thread& thread, const SyncClock& clock);
// Whether all that `owner` did up to `stamp` is over for the thread.
bool is_over(GangRunner& runner, const Thread& thread, uint32_t owner, uint32_t stamp);

// One for each gang runner.
class SharedShadow {
 public:
  SharedShadow();
  ~SharedShadow();
  SharedShadow(const SharedShadow&) = delete;
  SharedShadow& operator=(const SharedShadow&) = delete;

  void begin_block(unsigned rank, uint32_t birth, size_t used_bytes, unsigned warps);
  // After a barrier of the block: its sets of readers are behind it, and so are never looked at again.
  void end_step(unsigned rank) {
    sets_[rank].clear();
    stamps_[rank].clear();
  }
  // Checks and notes an access of the running thread; does not return when it is wrong. `owner` differs from
  // the thread's own for asynchronous operations, whose stamp is given.
  void access(GangRunner& runner, uintptr_t address, size_t bytes, Access kind, uint32_t owner, uint32_t stamp,
              Site site, Proxy proxy);

 private:
  struct Cell;
  // Of several threads that have read a word since the last barrier those of one warp: their lanes and the
  // stamp that they have in common; or, with stamp 0, one more than the number of their stamps, 0 for nobody.
  struct Readers {
    uint32_t lanes, stamp;
  };
  // Numbered rows, all given back at once.
  template <typename T>
  class Pool {
   public:
    void begin(unsigned width) {
      width_ = width;
      used_ = 0;
    }
    void clear() { used_ = 0; }
    uint32_t take() {
      if ((used_ + 1) * width_ > items_.size())
        items_.resize(std::max(2 * items_.size(), (used_ + 1) * width_));
      std::fill_n(at(used_), width_, T{});
      return static_cast<uint32_t>(used_++);
    }
    T* at(size_t number) { return items_.data() + number * width_; }
    size_t width() const { return width_; }

   private:
    std::vector<T> items_;
    size_t width_ = 1, used_ = 0;
  };
  struct Visit;

  void access_cell(Visit& visit, Cell& cell);
  void note_read(Visit& visit, Cell& cell);
  void check_readers(Visit& visit, const Cell& cell);
  void add_reader(unsigned rank, Cell& cell, uint32_t thread, uint32_t stamp);
  void split(size_t word);
  [[noreturn]] void report_race(const Visit& visit, bool other_writes, uint32_t other, Site other_site);
  [[noreturn]] void report(const Visit& visit, const std::string& what);

  Cell* words_ = nullptr;
  Cell* bytes_ = nullptr;
  uint8_t* split_ = nullptr;            // words whose bytes have cells of their own
  std::vector<Pool<Readers>> sets_;     // by rank: for each warp of the block
  std::vector<Pool<uint32_t>> stamps_;  // by rank: for each lane, 0 for one that has not read
  std::vector<uint32_t> birth_;         // by rank: cells with older stamps are of an earlier block
};

// As SharedShadow::access, of global memory. False for what is none: parameters and constants.
bool global_access(GangRunner& runner, uintptr_t address, size_t bytes, Access kind, uint32_t stamp, Site site,
                   uintptr_t hint);

}  // namespace fastnn::emulator
