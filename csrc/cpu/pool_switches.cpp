// Pooling with switches on the CPU; the rules stand in ops/pool_switches.h.
//
// What bounds it: memory; switches are 8 bytes each. A thread owns planes, and within one goes through its
// switches in ascending order, so that the last one wins and sums have one order for every number of threads.
// Pooling takes W columns of the rows of a window at a time, and then the columns of each window one by one:
// with places, as the winner of each column may lie in another row.
//
// Error: exact, but of sums, which have one rounding an addition in acc_t and one to the element type.
#include "../ops/pool_switches.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include "dispatch.h"
#include "max_pool_forward.h"

namespace fastnn::FASTNN_BACKEND {
namespace {

using namespace pool;

// Columns whose maxima lie on the stack, with their rows.
constexpr int64_t kSwitchColumns = 2048;

// The windows of one plane.
template <typename scalar_t>
class PlaneWindows {
 public:
  using acc_t = acc_type<scalar_t>;

  PlaneWindows(const SwitchPoolParams& p, int64_t plane) : g_(p.geometry) {
    if (p.samples == nullptr) return;
    for (int d = 0; d < p.rank; ++d) {
      const auto sample = static_cast<const scalar_t*>(p.samples)[plane * p.rank + d];
      samples_[kSpatialDims - p.rank + d] = static_cast<acc_t>(sample);
    }
  }

  PoolRange of(int d, int64_t o) const {
    if (g_.windows == Windows::kAdaptive) return pool_window(g_, d, o);
    const int64_t begin = fractional_start(g_, d, o, samples_[d]);
    return {begin, begin + g_.kernel[d]};
  }

 private:
  const PoolGeometry& g_;
  acc_t samples_[kSpatialDims]{};
};

template <typename scalar_t>
void switch_pool_typed(const SwitchPoolParams& p) {
  using acc_t = acc_type<scalar_t>;
  using B = Best<acc_t>;
  const PoolGeometry& g = p.geometry;
  const acc_t lowest = -std::numeric_limits<acc_t>::infinity();

  parallel_for(g.N * g.C * g.out[0] * g.out[1], grain(volume(g.in) / (g.out[0] * g.out[1]) + g.out[2]),
               [&](int64_t begin, int64_t end) {
                 alignas(64) acc_t values[kSwitchColumns + kLanes<acc_t>];
                 alignas(64) typename B::place_t rows[kSwitchColumns + kLanes<acc_t>];
                 OutputRow row(g, begin);
                 for (int64_t r = begin; r < end; ++r, row.next(g)) {
                   const PlaneWindows<scalar_t> windows(p, row.plane);
                   const PoolRange ds = windows.of(0, row.d), hs = windows.of(1, row.h);
                   const scalar_t* const x = static_cast<const scalar_t*>(p.x) + row.plane * volume(g.in);
                   // The maxima of columns [from, to) and the rows of x that they are in.
                   const auto take_columns = [&](int64_t from, int64_t to) {
                     for_each_vector<acc_t>(from, to, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
                       B best{Vec<acc_t>(lowest), B::as_lanes(ds.begin * g.in[1] + hs.begin)};
                       for (int64_t d = ds.begin; d < ds.end; ++d) {
                         for (int64_t h = hs.begin; h < hs.end; ++h) {
                           const int64_t line = d * g.in[1] + h;
                           best.offer(load_acc(x + line * g.in[2] + c, n), B::as_lanes(line));
                         }
                       }
                       best.value.store(values + c - from);
                       best.place.store(rows + c - from);
                     });
                   };
                   for (int64_t ow = 0; ow < g.out[2];) {
                     const PoolRange first = windows.of(2, ow);
                     // As many windows as have their columns in one piece, or one that is taken piece by piece.
                     int64_t last = first.end, held = first.begin;
                     int64_t next = ow + 1;
                     while (next < g.out[2] && windows.of(2, next).end - first.begin <= kSwitchColumns) {
                       last = windows.of(2, next++).end;
                     }
                     for (int64_t piece = first.begin; piece < last; piece += kSwitchColumns) {
                       const int64_t piece_end = std::min(piece + kSwitchColumns, last);
                       take_columns(piece, piece_end);
                       for (int64_t o = ow; o < next; ++o) {
                         const PoolRange w = windows.of(2, o);
                         const int64_t at = r * g.out[2] + o;
                         WindowBest<acc_t> best{lowest, (ds.begin * g.in[1] + hs.begin) * g.in[2] + w.begin};
                         if (piece > held) best = {static_cast<acc_t>(x[p.indices[at]]), p.indices[at]};
                         for (int64_t c = std::max(w.begin, piece); c < std::min(w.end, piece_end); ++c)
                           best.merge(values[c - piece], rows[c - piece] * g.in[2] + c);
                         static_cast<scalar_t*>(p.y)[at] = static_cast<scalar_t>(best.value);
                         p.indices[at] = best.place;
                       }
                     }
                     ow = next;
                   }
                 }
               });
}

// The first switch that names no position, found by any thread.
class FirstInvalid {
 public:
  explicit FirstInvalid(int64_t* result) : result_(result) {}
  ~FirstInvalid() {
    if (result_ != nullptr) *result_ = first_ == kNone ? -1 : first_.load();
  }
  void note(int64_t at) {
    int64_t before = first_;
    while (at < before && !first_.compare_exchange_weak(before, at)) {
    }
  }

 private:
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  int64_t* result_;
  std::atomic<int64_t> first_{kNone};
};

// f(at, switch) for a plane's switches in ascending order, and `otherwise` for those that are not valid.
template <typename F, typename G>
inline void for_each_switch(const SwitchParams& p, int64_t plane, FirstInvalid& invalid, const F& f,
                            const G& otherwise) {
  for (int64_t at = plane * p.count; at < (plane + 1) * p.count; ++at) {
    const int64_t place = p.indices[at];
    if (static_cast<uint64_t>(place) < static_cast<uint64_t>(p.size)) {
      f(at, place);
    } else {
      invalid.note(at);
      otherwise(at);
    }
  }
}
template <typename F>
inline void for_each_switch(const SwitchParams& p, int64_t plane, FirstInvalid& invalid, const F& f) {
  for_each_switch(p, plane, invalid, f, [](int64_t) {});
}

template <typename scalar_t>
void switch_gather_typed(const SwitchParams& p) {
  FirstInvalid invalid(p.first_invalid);
  parallel_for(p.planes, grain(2 * p.count), [&](int64_t begin, int64_t end) {
    scalar_t* const to = static_cast<scalar_t*>(p.to);
    for (int64_t plane = begin; plane < end; ++plane) {
      const scalar_t* const from = static_cast<const scalar_t*>(p.from) + plane * p.size;
      for_each_switch(
          p, plane, invalid, [&](int64_t at, int64_t place) { to[at] = from[place]; },
          [&](int64_t at) { to[at] = scalar_t(0); });
    }
  });
}

template <typename scalar_t>
void switch_place_typed(const SwitchParams& p) {
  FirstInvalid invalid(p.first_invalid);
  parallel_for(p.planes, grain(p.size + 2 * p.count), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      scalar_t* const to = static_cast<scalar_t*>(p.to) + plane * p.size;
      std::fill(to, to + p.size, scalar_t(0));
      const scalar_t* const from = static_cast<const scalar_t*>(p.from);
      for_each_switch(p, plane, invalid, [&](int64_t at, int64_t place) { to[place] = from[at]; });
    }
  });
}

// Of halves a piece of a plane at a time, whose sums lie on the stack in float32; large planes go through their
// switches once a piece.
template <typename scalar_t>
void switch_sum_typed(const SwitchParams& p) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t kPiece = 8 * 1024;
  FirstInvalid invalid(p.first_invalid);
  parallel_for(p.planes, grain(p.size + 2 * p.count), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      scalar_t* const to = static_cast<scalar_t*>(p.to) + plane * p.size;
      const scalar_t* const from = static_cast<const scalar_t*>(p.from);
      if constexpr (std::is_same_v<scalar_t, acc_t>) {
        std::fill(to, to + p.size, scalar_t(0));
        for_each_switch(p, plane, invalid, [&](int64_t at, int64_t place) { to[place] += from[at]; });
      } else {
        alignas(64) acc_t sums[kPiece];
        for (int64_t piece = 0; piece < p.size; piece += kPiece) {
          const int64_t size = std::min(kPiece, p.size - piece);
          std::fill(sums, sums + size, acc_t(0));
          for_each_switch(p, plane, invalid, [&](int64_t at, int64_t place) {
            if (static_cast<uint64_t>(place - piece) < static_cast<uint64_t>(size))
              sums[place - piece] += static_cast<acc_t>(from[at]);
          });
          for_each_vector<acc_t>(0, size, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
            store_acc(to + piece + i, load_acc(static_cast<const acc_t*>(sums) + i, n), n);
          });
        }
      }
    }
  });
}

}  // namespace

Status switch_pool(const SwitchPoolParams& p, Stream) {
  return dispatch_dtype(p.dtype, [&](auto scalar) {
    switch_pool_typed<typename decltype(scalar)::type>(p);
    return Status::success();
  });
}

Status switch_gather(const SwitchParams& p, Stream) {
  return dispatch_dtype(p.dtype, [&](auto scalar) {
    switch_gather_typed<typename decltype(scalar)::type>(p);
    return Status::success();
  });
}

Status switch_sum(const SwitchParams& p, Stream) {
  return dispatch_dtype(p.dtype, [&](auto scalar) {
    switch_sum_typed<typename decltype(scalar)::type>(p);
    return Status::success();
  });
}

Status switch_place(const SwitchParams& p, Stream) {
  return dispatch_dtype(p.dtype, [&](auto scalar) {
    switch_place_typed<typename decltype(scalar)::type>(p);
    return Status::success();
  });
}

}  // namespace fastnn::FASTNN_BACKEND
