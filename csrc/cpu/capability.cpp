#include "capability.h"

#include <cstdlib>
#include <stdexcept>

#include "processor.h"

namespace fastnn {

namespace cpu_baseline {
const Backend& table();
}
#if defined(FASTNN_HAVE_AVX2)
namespace cpu_avx2 {
const Backend& table();
}
#endif
#if defined(FASTNN_HAVE_AVX512)
namespace cpu_avx512 {
const Backend& table();
}
namespace cpu_avx512_bf16 {
const Backend& table();
}
#endif

namespace cpu {

namespace {

struct Capability {
  const char* name;
  bool supported;
  const Backend& (*table)();
};

// Best first. What each needs is what CMakeLists.txt compiles it with.
const Capability* capabilities(size_t& count) {
  static const Capability all[] = {
#if defined(FASTNN_HAVE_AVX512)
      {"avx512_bf16", has_avx512_bf16(), cpu_avx512_bf16::table},
      {"avx512", has_avx512(), cpu_avx512::table},
#endif
#if defined(FASTNN_HAVE_AVX2)
      {"avx2", has_avx2(), cpu_avx2::table},
#endif
      {"baseline", true, cpu_baseline::table},
  };
  count = sizeof(all) / sizeof(all[0]);
  return all;
}

const Capability& choose() {
  size_t count;
  const Capability* all = capabilities(count);
  const char* wanted = std::getenv("FASTNN_CPU_CAPABILITY");
  if (wanted != nullptr && *wanted != '\0') {
    for (size_t i = 0; i < count; ++i) {
      if (std::string(wanted) != all[i].name) continue;
      if (all[i].supported) return all[i];
      throw std::runtime_error(std::string("FASTNN_CPU_CAPABILITY=") + wanted +
                               ": this processor lacks those instructions; unset it or choose another of: " +
                               compiled_capabilities());
    }
    throw std::runtime_error(std::string("FASTNN_CPU_CAPABILITY=") + wanted +
                             " is not in this build; choose one of: " + compiled_capabilities());
  }
  for (size_t i = 0; i < count; ++i) {
    if (all[i].supported) return all[i];
  }
  return all[count - 1];
}

const Capability& chosen() {
  static const Capability& capability = choose();
  return capability;
}

}  // namespace

const Backend& backend() {
  static const Backend& table = chosen().table();
  return table;
}

const char* capability() { return chosen().name; }

std::string compiled_capabilities() {
  size_t count;
  const Capability* all = capabilities(count);
  std::string names;
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) names += ' ';
    names += all[i].name;
  }
  return names;
}

}  // namespace cpu
}  // namespace fastnn
