// For CMakeLists.txt: the best instruction set of the machine that builds.
#include <cstdio>

#include "processor.h"

int main() {
  using namespace fastnn::cpu;
  std::puts(has_avx512() ? "avx512" : has_avx2() ? "avx2" : "baseline");
}
