#include "places.h"

#include <mutex>
#include <vector>

#include "../memory/shared_arena.h"

namespace fastnn::emulator {
namespace {

struct Places {
  std::mutex mutex;
  std::vector<Where> list;
};
Places& places() {
  static auto& instance = *new Places;
  return instance;
}

}  // namespace

uintptr_t place_in_code(Where where) {
  Places& all = places();
  const std::lock_guard lock(all.mutex);
  size_t i = 0;
  while (i < all.list.size() &&
         (all.list[i].line() != where.line() || all.list[i].file_name() != where.file_name())) {
    ++i;
  }
  if (i == all.list.size()) all.list.push_back(where);
  return kPlaceBit | i;
}

std::string describe_place(uintptr_t place) {
  Places& all = places();
  const std::lock_guard lock(all.mutex);
  return describe(all.list[place & ~kPlaceBit]);
}

}  // namespace fastnn::emulator
