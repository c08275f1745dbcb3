// How well kernels access memory, in counts that need no device: bytes asked for against bytes moved, and the
// wavefronts of shared memory against those that would do.
//
// Lanes run one after another here, so a warp's accesses are put together afterwards: the k-th execution of an
// access by each lane, counted from the last place where all lanes of the warp met, is one request. Where lanes
// execute an access in different turns of a loop without meeting (`if (valid) x = p[i]`), requests of a device
// hold other lanes than these; sums are near, not equal.
//
// Global memory moves in sectors of 32 bytes. A request asks for the distinct bytes that its lanes want, so
// that a broadcast cannot seem better than perfect, and moves every sector that one of them lies in, once.
// Asked over moved is the efficiency of the request; what the caches keep for the next request is not seen.
//
// Shared memory has 32 banks of 4 bytes. Lanes that want the same word share it; different words of a bank need
// a wavefront each. Accesses of 8 bytes go by half warps and those of 16 by quarter warps (so does ldmatrix,
// whose lanes ask for a row of 16 bytes each): a wavefront for each part with an active lane is ideal, and what
// goes beyond it is conflicts. Devices have been seen to serve two parts at once where their lanes want the
// same words, and serialise atomics on one address; neither is counted. (CUDA C++ Programming Guide, "Shared
// Memory" of the compute capabilities; Nsight Compute's metrics of the same names.)
//
// The size of an access is that of the callback which g++ put there, so what g++ splits or merges is counted
// so. nvcc decides for itself: it makes one vector access of neighbouring loads whose alignment it can prove,
// and several of a structure's copy whose alignment it cannot. Copies of another size than 1, 2, 4, 8 or 16
// bytes are split as their alignment allows.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace fastnn::emulator {

// Whether launches that begin now are profiled. FASTNN_EMULATOR_PROFILE=1 makes it so from the start.
bool profiling();
// Returns what it was.
bool set_profiling(bool on);

enum class Space : uint8_t { kGlobal, kShared };

struct AccessCounts {
  uint64_t requests = 0, lanes = 0;
  uint64_t asked_bytes = 0;                       // of shared memory: the sum over the lanes
  uint64_t moved_bytes = 0;                       // of global memory
  uint64_t ideal_wavefronts = 0, wavefronts = 0;  // of shared memory

  void add(const AccessCounts& other);
};

// One access in the code.
struct AccessSite {
  uintptr_t pc;  // or what place_in_code() gives
  uint32_t bytes;
  bool write;
  Space space;
  bool operator==(const AccessSite&) const = default;
};
struct AccessSiteHash {
  size_t operator()(const AccessSite& site) const;
};

// The sectors of global memory that were read and written, as a bit each.
class Footprint {
 public:
  Footprint() = default;
  Footprint(const Footprint&) = delete;
  Footprint& operator=(const Footprint&) = delete;
  void insert(uintptr_t sector, bool write);
  void add(const Footprint& other);
  // A sector that was read and written counts twice, as it would on its way from and to memory.
  uint64_t sectors() const;

 private:
  static constexpr uintptr_t kPageSectors = 64;
  using Page = std::array<uint64_t, 2>;  // read, written
  std::unordered_map<uintptr_t, Page> pages_;
  uintptr_t last_number_ = ~uintptr_t{0};
  Page* last_ = nullptr;
};

// What one OS thread sees of a launch, from its first block to its last. Not locked.
class AccessProfile {
 public:
  // An access by one lane. Warps are numbered within what runs until end_block(); in shared memory the address
  // is the offset in the block's window.
  void record(unsigned warp, unsigned lane, uintptr_t pc, uintptr_t address, unsigned bytes, bool write,
              Space space);
  // A copy that a unit beside the lanes makes, of whole rows: no bank conflicts, no lanes.
  void record_bulk(uintptr_t pc, uintptr_t address, size_t bytes, bool write, Space space);
  // All lanes of the warp that have not exited wait at one place and none has gone on: a barrier, or a function
  // that the whole warp runs together.
  void meet(unsigned warp);
  // Every thread of the block (of the gang, where blocks run together) has ended.
  void end_block();

 private:
  friend class LaunchProfile;
  struct Request {
    uint32_t lanes = 0;  // mask; 0 once it has been counted
    std::array<uintptr_t, 32> addresses;
  };
  struct Site {
    AccessSite site;
    AccessCounts counts;
    uint32_t next;  // the site that followed the last time: programs repeat themselves
  };
  // What a warp has done at a site since its lanes met.
  struct Pending {
    std::array<uint32_t, 32> occurrences{};  // by lane
    std::vector<Request> requests;
    size_t counted = 0;
    bool listed = false;  // in Warp::listed
    void clear();
  };
  struct Warp {
    std::vector<Pending> sites;  // as sites_
    std::vector<uint32_t> listed;
  };

  uint32_t find(const AccessSite& site);
  void count(Site& site, const Request& request);
  void count_global(Site& site, const Request& request);

  std::vector<Site> sites_;
  std::unordered_map<AccessSite, uint32_t, AccessSiteHash> index_;
  uint32_t last_ = 0;
  std::vector<Warp> warps_;
  Footprint footprint_;
  uint64_t blocks_ = 0;
};

// What all of them see of it.
class LaunchProfile {
 public:
  // `blocks`: how often end_block() would be called if every block were profiled.
  LaunchProfile(const char* kernel, uint64_t blocks) : kernel_(kernel), blocks_(blocks) {}
  // Whether to profile this one. Of a large grid it is one block from each of 64 stretches, at places that
  // follow no period: every 64th might always lie at the border of an image.
  bool samples(uint64_t block) const;
  // By any thread.
  void add(const AccessProfile& profile);
  // Adds the launch, once it has succeeded, to what profile_json() tells. Counts are scaled from the blocks
  // that were profiled to all.
  void finish();

 private:
  const char* kernel_;
  uint64_t blocks_;
  std::mutex mutex_;
  uint64_t profiled_ = 0;
  Footprint footprint_;
  std::unordered_map<AccessSite, AccessCounts, AccessSiteHash> sites_;
};

// {"kernels": [{"name", "launches", "blocks", "profiled_blocks", "distinct_bytes", "sites": [{"place", "space",
// "kind", "bytes", "requests", "lanes", "asked_bytes", "moved_bytes", "ideal_wavefronts", "wavefronts"}]}]} of
// every launch since the last reset. Sites on one line are one, for a template or an unrolled loop has many
// there. distinct_bytes counts the sectors that a launch touches, each once when read and once when written; it
// is null where some launch was not profiled whole.
std::string profile_json();
void reset_profile();

}  // namespace fastnn::emulator
