// Pooling whose places are explicit: the switches of Zeiler and Fergus 2014 and Noh et al. 2015, int64
// positions in the flattened [D, H, W] of a plane, as torch has them.
//
//   switch_pool     y[o] = max of x over window o, adaptive or fractional, and where it was; ties and NaN as in
//                   max_pool.h
//   switch_gather   to[o] = from[switch of o]
//   switch_sum      to[i] = sum of from[o] over the o whose switch is i: gather's transpose and derivative
//   switch_place    to[i] = from[o] of the last o whose switch is i, 0 where there is none: unpooling
//
// Planes are (n, c) pairs and dense. Sums and choices go in ascending order of o, so there are no atomics and
// the same bits on every run, switches that repeat included.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "pool.h"
#include "status.h"
#include "stream.h"

namespace fastnn {

struct SwitchPoolParams {
  DType dtype;
  PoolGeometry geometry;  // channels first
  const void* x;
  const void* samples;  // of fractional windows: [N * C, rank] in x's type, in [0, 1), depth first; or null
  int rank;
  void* y;
  int64_t* indices;  // shape of y
};

struct SwitchParams {
  DType dtype;
  int64_t planes;
  int64_t count;           // switches of a plane
  int64_t size;            // positions that they choose from
  const int64_t* indices;  // [planes, count]
  const void* from;        // gather: [planes, size]; sum and place: [planes, count]
  void* to;                // gather: [planes, count]; sum and place: [planes, size], written whole
  // Switches outside of [0, size) have no effect, and gather 0. The CPU writes here which is the first of them,
  // -1 for none; on CUDA, where nobody could read it without waiting, it is null.
  int64_t* first_invalid;
};

FASTNN_DECLARE_OP(switch_pool, SwitchPoolParams)
FASTNN_DECLARE_OP(switch_gather, SwitchParams)
FASTNN_DECLARE_OP(switch_sum, SwitchParams)
FASTNN_DECLARE_OP(switch_place, SwitchParams)

}  // namespace fastnn
