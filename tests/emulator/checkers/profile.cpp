#include "profile.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <map>
#include <tuple>

#include "places.h"
#include "symbols.h"

namespace fastnn::emulator {
namespace {

constexpr uintptr_t kSectorBytes = 32;
constexpr unsigned kBanks = 32, kBankBytes = 4;
constexpr unsigned kWidestAccess = 16;
constexpr uint64_t kMostBlocks = 64;  // profiled of a launch

std::atomic<bool>& profiling_flag() {
  static std::atomic<bool> flag = [] {
    const char* const text = std::getenv("FASTNN_EMULATOR_PROFILE");
    return text != nullptr && std::strcmp(text, "1") == 0;
  }();
  return flag;
}

// Sites of one place: what profile_json() tells them apart by.
using PlaceKey = std::tuple<std::string, Space, bool, uint32_t>;

struct KernelTotals {
  uint64_t launches = 0, blocks = 0, profiled_blocks = 0;
  bool whole = true;  // every block of every launch was profiled
  uint64_t distinct_bytes = 0;
  std::unordered_map<AccessSite, AccessCounts, AccessSiteHash> sites;
};

// Of the process, by kernel. Never destroyed: a launch may come while the process ends.
struct Totals {
  std::mutex mutex;
  std::map<std::string, KernelTotals> kernels;
};
Totals& totals() {
  static auto& instance = *new Totals;
  return instance;
}

uint64_t ceiling(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

// The most words of one bank that some lanes want. Each wants `bytes` at its address.
unsigned count_wavefronts(const uintptr_t* addresses, uint32_t lanes, unsigned bytes) {
  uintptr_t words[2 * kBanks];  // 32, or up to twice that when they are misaligned
  uintptr_t* end = words;
  for (; lanes != 0; lanes &= lanes - 1) {
    const uintptr_t first = addresses[std::countr_zero(lanes)];
    for (uintptr_t word = first / kBankBytes; word <= (first + bytes - 1) / kBankBytes; ++word) *end++ = word;
  }
  if (!std::is_sorted(words, end)) std::sort(words, end);
  end = std::unique(words, end);
  unsigned of_bank[kBanks] = {};
  unsigned most = 0;
  for (const uintptr_t* word = words; word != end; ++word) most = std::max(most, ++of_bank[*word % kBanks]);
  return most;
}

void count_shared(AccessCounts& counts, const uintptr_t* addresses, uint32_t lanes, unsigned bytes) {
  const unsigned part = bytes <= kBankBytes ? 32 : 32 * kBankBytes / bytes;  // lanes that go at once
  for (unsigned first = 0; first < 32; first += part) {
    const uint32_t mask = part == 32 ? ~0u : ((1u << part) - 1) << first;
    if ((lanes & mask) == 0) continue;
    ++counts.ideal_wavefronts;
    counts.wavefronts += count_wavefronts(addresses, lanes & mask, bytes);
  }
}

void scale(uint64_t& count, double factor) {
  count = static_cast<uint64_t>(static_cast<double>(count) * factor + 0.5);
}

}  // namespace

bool profiling() { return profiling_flag().load(std::memory_order_relaxed); }
bool set_profiling(bool on) { return profiling_flag().exchange(on); }

void AccessCounts::add(const AccessCounts& other) {
  requests += other.requests;
  lanes += other.lanes;
  asked_bytes += other.asked_bytes;
  moved_bytes += other.moved_bytes;
  ideal_wavefronts += other.ideal_wavefronts;
  wavefronts += other.wavefronts;
}

size_t AccessSiteHash::operator()(const AccessSite& site) const {
  const uint64_t rest =
      uint64_t{site.bytes} << 2 | uint64_t{site.write} << 1 | static_cast<uint64_t>(site.space);
  return (site.pc ^ rest << 48) * 0x9e3779b97f4a7c15ull >> 16;  // Fibonacci hashing (Knuth, vol. 3, 6.4)
}

// --- sectors ---

void Footprint::insert(uintptr_t sector, bool write) {
  const uintptr_t number = sector / kPageSectors;
  if (number != last_number_) {
    last_ = &pages_[number];  // elements of the map stay where they are
    last_number_ = number;
  }
  (*last_)[write] |= uint64_t{1} << sector % kPageSectors;
}

void Footprint::add(const Footprint& other) {
  for (const auto& [number, page] : other.pages_) {
    Page& mine = pages_[number];
    for (size_t i = 0; i < page.size(); ++i) mine[i] |= page[i];
  }
}

uint64_t Footprint::sectors() const {
  uint64_t sum = 0;
  for (const auto& [number, page] : pages_) {
    for (const uint64_t bits : page) sum += static_cast<unsigned>(std::popcount(bits));
  }
  return sum;
}

// --- one OS thread ---

uint32_t AccessProfile::find(const AccessSite& site) {
  uint32_t found = last_ < sites_.size() ? sites_[last_].next : 0;
  if (found >= sites_.size() || !(sites_[found].site == site)) {
    const auto [entry, is_new] = index_.try_emplace(site, static_cast<uint32_t>(sites_.size()));
    found = entry->second;
    if (is_new) sites_.push_back({.site = site, .counts = {}, .next = found + 1});
    sites_[last_].next = found;
  }
  last_ = found;
  return found;
}

void AccessProfile::record(unsigned warp, unsigned lane, uintptr_t pc, uintptr_t address, unsigned bytes,
                           bool write, Space space) {
  if (bytes > kWidestAccess || !std::has_single_bit(bytes)) {
    const uintptr_t together = bytes | address | kWidestAccess;
    const auto piece = static_cast<unsigned>(together & -together);
    for (unsigned done = 0; done < bytes; done += piece)
      record(warp, lane, pc, address + done, piece, write, space);
    return;
  }
  const uint32_t site = find({.pc = pc, .bytes = bytes, .write = write, .space = space});
  if (warp >= warps_.size()) warps_.resize(warp + 1);
  Warp& of_warp = warps_[warp];
  if (site >= of_warp.sites.size()) of_warp.sites.resize(sites_.size());
  Pending& pending = of_warp.sites[site];
  if (!pending.listed) {
    pending.listed = true;
    of_warp.listed.push_back(site);
  }
  const uint32_t k = pending.occurrences[lane]++;
  if (k >= pending.requests.size()) pending.requests.resize(k + 1);
  Request& request = pending.requests[k];
  request.addresses[lane] = address;
  request.lanes |= 1u << lane;
  if (request.lanes != ~0u) return;
  count(sites_[site], request);
  request.lanes = 0;
  // When all are counted every lane has been here equally often.
  if (++pending.counted == pending.requests.size()) pending.clear();
}

void AccessProfile::Pending::clear() {
  occurrences.fill(0);
  counted = 0;
  constexpr size_t kWorthKeeping = 256;
  if (requests.capacity() > kWorthKeeping) {
    requests = {};
  } else {
    requests.clear();
  }
}

void AccessProfile::record_bulk(uintptr_t pc, uintptr_t address, size_t bytes, bool write, Space space) {
  if (bytes == 0) return;
  AccessCounts& counts = sites_[find({.pc = pc, .bytes = 0, .write = write, .space = space})].counts;
  ++counts.requests;
  counts.asked_bytes += bytes;
  if (space == Space::kShared) {
    counts.ideal_wavefronts += ceiling(bytes, kBanks * kBankBytes);
    counts.wavefronts += ceiling(bytes, kBanks * kBankBytes);
    return;
  }
  const uintptr_t first = address / kSectorBytes, last = (address + bytes - 1) / kSectorBytes;
  counts.moved_bytes += (last - first + 1) * kSectorBytes;
  for (uintptr_t sector = first; sector <= last; ++sector) footprint_.insert(sector, write);
}

void AccessProfile::meet(unsigned warp) {
  if (warp >= warps_.size()) return;
  Warp& of_warp = warps_[warp];
  for (const uint32_t site : of_warp.listed) {
    Pending& pending = of_warp.sites[site];
    for (const Request& request : pending.requests) {
      if (request.lanes != 0) count(sites_[site], request);
    }
    pending.clear();
    pending.listed = false;
  }
  of_warp.listed.clear();
}

void AccessProfile::end_block() {
  for (unsigned warp = 0; warp < warps_.size(); ++warp) meet(warp);
  ++blocks_;
}

void AccessProfile::count(Site& site, const Request& request) {
  ++site.counts.requests;
  site.counts.lanes += static_cast<unsigned>(std::popcount(request.lanes));
  if (site.site.space == Space::kGlobal) {
    count_global(site, request);
  } else {
    site.counts.asked_bytes += uint64_t{site.site.bytes} * static_cast<unsigned>(std::popcount(request.lanes));
    count_shared(site.counts, request.addresses.data(), request.lanes, site.site.bytes);
  }
}

void AccessProfile::count_global(Site& site, const Request& request) {
  const unsigned bytes = site.site.bytes;
  uintptr_t sorted[32];
  unsigned n = 0;
  for (uint32_t lanes = request.lanes; lanes != 0; lanes &= lanes - 1) {
    sorted[n++] = request.addresses[std::countr_zero(lanes)];
  }
  if (!std::is_sorted(sorted, sorted + n)) std::sort(sorted, sorted + n);
  uintptr_t asked_up_to = 0, next_sector = 0;  // below these everything is counted
  for (unsigned i = 0; i < n; ++i) {
    const uintptr_t end = sorted[i] + bytes, begin = std::max(sorted[i], asked_up_to);
    if (begin < end) site.counts.asked_bytes += end - begin;
    asked_up_to = std::max(asked_up_to, end);
    for (uintptr_t s = std::max(sorted[i] / kSectorBytes, next_sector); s <= (end - 1) / kSectorBytes; ++s) {
      site.counts.moved_bytes += kSectorBytes;
      footprint_.insert(s, site.site.write);
      next_sector = s + 1;
    }
  }
}

// --- a launch ---

bool LaunchProfile::samples(uint64_t block) const {
  if (blocks_ <= kMostBlocks) return true;
  // Stretch s begins with the first block b of which 64 b >= s blocks; products may have more than 64 bits.
  using Wide = unsigned __int128;
  const auto stretch = static_cast<uint64_t>(Wide{block} * kMostBlocks / blocks_);
  const auto begin_of = [this](uint64_t s) {
    return static_cast<uint64_t>((Wide{s} * blocks_ + kMostBlocks - 1) / kMostBlocks);
  };
  const uint64_t begin = begin_of(stretch), size = begin_of(stretch + 1) - begin;
  // Multiples of the golden ratio spread evenly whatever the size.
  return block == begin + static_cast<uint64_t>(Wide{(stretch + 1) * 0x9e3779b97f4a7c15ull} * size >> 64);
}

void LaunchProfile::add(const AccessProfile& profile) {
  const std::lock_guard lock(mutex_);
  profiled_ += profile.blocks_;
  footprint_.add(profile.footprint_);
  for (const AccessProfile::Site& site : profile.sites_) sites_[site.site].add(site.counts);
}

void LaunchProfile::finish() {
  const std::lock_guard lock(mutex_);
  if (profiled_ == 0) return;
  const double factor = static_cast<double>(blocks_) / static_cast<double>(profiled_);
  Totals& all = totals();
  const std::lock_guard lock_all(all.mutex);
  KernelTotals& kernel = all.kernels[kernel_];
  ++kernel.launches;
  kernel.blocks += blocks_;
  kernel.profiled_blocks += profiled_;
  kernel.whole &= profiled_ == blocks_;
  kernel.distinct_bytes += footprint_.sectors() * kSectorBytes;
  for (auto& [site, counts] : sites_) {
    if (profiled_ != blocks_) {
      for (uint64_t* count : {&counts.requests, &counts.lanes, &counts.asked_bytes, &counts.moved_bytes,
                              &counts.ideal_wavefronts, &counts.wavefronts}) {
        scale(*count, factor);
      }
    }
    kernel.sites[site].add(counts);
  }
}

// --- the process ---

namespace {

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + '"';
}

std::map<PlaceKey, AccessCounts> by_place(const KernelTotals& kernel) {
  std::vector<uintptr_t> addresses;
  for (const auto& [site, counts] : kernel.sites) addresses.push_back(site.pc);
  const std::vector<std::string> found = locate(addresses);
  std::map<PlaceKey, AccessCounts> result;
  size_t i = 0;
  for (const auto& [site, counts] : kernel.sites) {
    const bool is_place = (site.pc & kPlaceBit) != 0;  // an intrinsic made the access, and was told for whom
    const std::string place = is_place ? describe_place(site.pc) : found[i];
    result[{place, site.space, site.write, site.bytes}].add(counts);
    ++i;
  }
  return result;
}

std::string json(const PlaceKey& key, const AccessCounts& counts) {
  const auto& [place, space, write, bytes] = key;
  std::string text = "{\"place\": " + quoted(place);
  text += space == Space::kGlobal ? ", \"space\": \"global\"" : ", \"space\": \"shared\"";
  text += write ? ", \"kind\": \"write\"" : ", \"kind\": \"read\"";
  const auto number = [&text](const char* name, uint64_t value) {
    text += std::string(", \"") + name + "\": " + std::to_string(value);
  };
  number("bytes", bytes);
  number("requests", counts.requests);
  number("lanes", counts.lanes);
  number("asked_bytes", counts.asked_bytes);
  number("moved_bytes", counts.moved_bytes);
  number("ideal_wavefronts", counts.ideal_wavefronts);
  number("wavefronts", counts.wavefronts);
  return text + "}";
}

}  // namespace

std::string profile_json() {
  Totals& all = totals();
  const std::lock_guard lock(all.mutex);
  std::string text = "{\"kernels\": [";
  const char* before_kernel = "";
  for (const auto& [name, kernel] : all.kernels) {
    text += before_kernel + ("{\"name\": " + quoted(name));
    text +=
        ", \"launches\": " + std::to_string(kernel.launches) + ", \"blocks\": " + std::to_string(kernel.blocks);
    text += ", \"profiled_blocks\": " + std::to_string(kernel.profiled_blocks);
    text += ", \"distinct_bytes\": " + (kernel.whole ? std::to_string(kernel.distinct_bytes) : "null");
    text += ", \"sites\": [";
    const char* before_site = "";
    for (const auto& [key, counts] : by_place(kernel)) {
      text += before_site + json(key, counts);
      before_site = ", ";
    }
    text += "]}";
    before_kernel = ", ";
  }
  return text + "]}";
}

void reset_profile() {
  Totals& all = totals();
  const std::lock_guard lock(all.mutex);
  all.kernels.clear();
}

}  // namespace fastnn::emulator
