// Loops over constants.
#pragma once

#include <type_traits>
#include <utility>

namespace fastnn::FASTNN_BACKEND {

// Calls f(integral_constant<int, i>) for i in [0, n). A loop that is unrolled after the compiler has decided
// which arrays become registers leaves them in memory; this one is gone before.
template <int n, typename F>
inline __attribute__((always_inline)) void for_each_constant(const F& f) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, i>{}), ...);
  }(std::make_integer_sequence<int, n>{});
}

}  // namespace fastnn::FASTNN_BACKEND
