// Runs the emulator's self tests on a device: emulator_selftest --list | --device | NAME...
//
// Says of each case named, one a line, "NAME: right" or "NAME: " and what the case returned; ends with 1 when
// one returned something. A kernel that traps leaves the process without a device: one faulty case a process.
#include <cstdio>
#include <cstring>

#include "selftest.h"

using namespace fastnn::selftest;

namespace {

int list() {
  for (const Case& entry : cases()) {
    std::printf("%s\t%s\t%s\n", entry.name, entry.tool, entry.expected == nullptr ? "" : entry.expected);
  }
  return 0;
}

int describe_device() {
  cudaDeviceProp device;
  const cudaError_t error = cudaGetDeviceProperties(&device, 0);
  if (error != cudaSuccess) {
    std::fprintf(stderr, "no CUDA device: %s\n", cudaGetErrorString(error));
    return 2;
  }
  int driver = 0;
  cudaDriverGetVersion(&driver);
  std::printf("%s\t%d.%d\t%d.%d\n", device.name, device.major, device.minor, driver / 1000, driver % 1000 / 10);
  return 0;
}

// 2 when there is no such case.
int run(const char* name) {
  for (const Case& entry : cases()) {
    if (std::strcmp(entry.name, name) != 0) continue;
    const char* const said = entry.run();
    std::printf("%s: %s\n", name, said == nullptr ? "right" : said);
    std::fflush(stdout);
    return said == nullptr ? 0 : 1;
  }
  std::fprintf(stderr, "there is no case %s; --list names them\n", name);
  return 2;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    std::fprintf(stderr, "usage: %s --list | --device | NAME...\n", arguments[0]);
    return 2;
  }
  if (std::strcmp(arguments[1], "--list") == 0) return list();
  if (std::strcmp(arguments[1], "--device") == 0) return describe_device();
  int result = 0;
  for (int i = 1; i < count && result != 2; ++i) {
    const int outcome = run(arguments[i]);
    result = outcome > result ? outcome : result;
  }
  return result;
}
