// Bulk and tensor copies (sm_90): one thread starts the copy of a whole tile, which an engine of its own then
// makes (TMA; PTX ISA, "cp.async.bulk" and "cp.async.bulk.tensor"). On older devices these functions trap.
//
// Loads report to an mbarrier in shared memory, which must have been told of their bytes and made known to
// copies:
//
//   if (threadIdx.x == 0) {
//     mbarrier_arrive_expect_tx(&full, kTileBytes);
//     tensor_load(tile, &map, {channel, column, row}, &full);
//   }
//   mbarrier_wait(&full, parity);
//
// Stores are collected in groups of the thread that starts them. What threads wrote to shared memory must be
// made known to copies by each of them, before the barrier after which one thread stores it:
//
//   fence_proxy_async();
//   __syncthreads();
//   if (threadIdx.x == 0) {
//     tensor_store(&map, {channel, column, row}, tile);
//     bulk_commit_group();
//     bulk_wait_group_read<0>();  // before the tile is overwritten, and before the thread exits
//   }
//
// Sizes of bulk copies are multiples of 16 bytes, and so are both their addresses. Tensor copies need 128-byte
// aligned shared memory; boxes and layouts are described in tensor_map.cuh. Coordinates are elements, dimension
// 0 first, and may be out of bounds on either side: loads fill, stores leave out (but start at no negative
// coordinate).
//
// Multicast puts the same bytes at the same place of every block of the cluster whose bit is set in `ranks`,
// and reports them to the mbarrier at the same place there.
#pragma once

#include "mbarrier.cuh"
#include "tensor_map.cuh"

#if defined(FASTNN_EMULATOR)

#include "intrinsics/tma.h"

#else

namespace fastnn::cuda {

// Global to shared memory.
__device__ __forceinline__ void bulk_load(void* shared_destination, const void* global_source, uint32_t bytes,
                                          Mbarrier* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address_of(shared_destination)),
               "l"(__cvta_generic_to_global(global_source)), "r"(bytes), "r"(shared_address_of(barrier))
               : "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void bulk_load_multicast(void* shared_destination, const void* global_source,
                                                    uint32_t bytes, Mbarrier* barrier, uint16_t ranks) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, "
      "[%3], "
      "%4;" ::"r"(shared_address_of(shared_destination)),
      "l"(__cvta_generic_to_global(global_source)), "r"(bytes), "r"(shared_address_of(barrier)), "h"(ranks)
      : "memory");
#else
  __trap();
#endif
}

// From shared memory to where block `rank` of the cluster has what this block has at `destination`; reports to
// the mbarrier that is there at `barrier`.
__device__ __forceinline__ void bulk_copy_to_rank(void* destination, const void* source, uint32_t bytes,
                                                  Mbarrier* barrier, uint32_t rank) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n\t.reg .b32 to, bar;\n\t"
      "mapa.shared::cluster.u32 to, %0, %4;\n\t"
      "mapa.shared::cluster.u32 bar, %3, %4;\n\t"
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [to], [%1], %2, [bar];\n\t}" ::
          "r"(shared_address_of(destination)),
      "r"(shared_address_of(source)), "r"(bytes), "r"(shared_address_of(barrier)), "r"(rank)
      : "memory");
#else
  __trap();
#endif
}

// Shared to global memory, as part of the thread's next group.
__device__ __forceinline__ void bulk_store(void* global_destination, const void* shared_source,
                                           uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(
                   __cvta_generic_to_global(global_destination)),
               "r"(shared_address_of(shared_source)), "r"(bytes)
               : "memory");
#else
  __trap();
#endif
}
// As that, adding to what is there, element by element and atomically. The order of additions, and so the
// rounding, is not defined when several blocks add to one place.
__device__ __forceinline__ void bulk_reduce_add(float* global_destination, const float* shared_source,
                                                uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(
                   __cvta_generic_to_global(global_destination)),
               "r"(shared_address_of(shared_source)), "r"(bytes)
               : "memory");
#else
  __trap();
#endif
}

// The thread's stores since the last call become its newest group.
__device__ __forceinline__ void bulk_commit_group() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
  __trap();
#endif
}
// Waits until all of the thread's groups but the newest kPending have been written, and are seen by this
// thread.
template <int kPending>
__device__ __forceinline__ void bulk_wait_group() {
  static_assert(kPending >= 0);
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
#else
  __trap();
#endif
}
// Waits only until they have been read: their shared memory may be written again.
template <int kPending>
__device__ __forceinline__ void bulk_wait_group_read() {
  static_assert(kPending >= 0);
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
#else
  __trap();
#endif
}

// The box of the tensor that begins at the coordinates.
template <int kRank>
__device__ __forceinline__ void tensor_load(void* shared_destination, const TensorMap* map,
                                            const int (&coordinates)[kRank], Mbarrier* barrier) {
  static_assert(kRank >= 1 && kRank <= 5);
#if __CUDA_ARCH__ >= 900
  const uint32_t shared = shared_address_of(shared_destination), reports = shared_address_of(barrier);
  if constexpr (kRank == 1) {
    asm volatile(
        "cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3}], [%2];" ::"r"(shared),
        "l"(map), "r"(reports), "r"(coordinates[0])
        : "memory");
  } else if constexpr (kRank == 2) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared),
        "l"(map), "r"(reports), "r"(coordinates[0]), "r"(coordinates[1])
        : "memory");
  } else if constexpr (kRank == 3) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared),
        "l"(map), "r"(reports), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2])
        : "memory");
  } else if constexpr (kRank == 4) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared),
        "l"(map), "r"(reports), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2]),
        "r"(coordinates[3])
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared),
        "l"(map), "r"(reports), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2]),
        "r"(coordinates[3]), "r"(coordinates[4])
        : "memory");
  }
#else
  __trap();
#endif
}

template <int kRank>
__device__ __forceinline__ void tensor_load_multicast(void* shared_destination, const TensorMap* map,
                                                      const int (&coordinates)[kRank], Mbarrier* barrier,
                                                      uint16_t ranks) {
  static_assert(kRank >= 1 && kRank <= 5);
#if __CUDA_ARCH__ >= 900
  const uint32_t shared = shared_address_of(shared_destination), reports = shared_address_of(barrier);
  if constexpr (kRank == 1) {
    asm volatile(
        "cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%4}], [%2], %3;" ::"r"(shared),
        "l"(map), "r"(reports), "h"(ranks), "r"(coordinates[0])
        : "memory");
  } else if constexpr (kRank == 2) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%4, %5}], [%2], %3;" ::"r"(shared),
        "l"(map), "r"(reports), "h"(ranks), "r"(coordinates[0]), "r"(coordinates[1])
        : "memory");
  } else if constexpr (kRank == 3) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(shared),
        "l"(map), "r"(reports), "h"(ranks), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2])
        : "memory");
  } else if constexpr (kRank == 4) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%4, %5, %6, %7}], [%2], %3;" ::"r"(shared),
        "l"(map), "r"(reports), "h"(ranks), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2]),
        "r"(coordinates[3])
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%4, %5, %6, %7, %8}], [%2], %3;" ::"r"(shared),
        "l"(map), "r"(reports), "h"(ranks), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2]),
        "r"(coordinates[3]), "r"(coordinates[4])
        : "memory");
  }
#else
  __trap();
#endif
}

// Pixels of an im2col map: coordinates C, W, H, D, N of the first, offsets W, H, D that are added to each, at
// least 0.
template <int kRank>
__device__ __forceinline__ void tensor_load_im2col(void* shared_destination, const TensorMap* map,
                                                   const int (&coordinates)[kRank],
                                                   const int (&offsets)[kRank - 2], Mbarrier* barrier) {
  static_assert(kRank >= 3 && kRank <= 5);
#if __CUDA_ARCH__ >= 900
  const uint32_t shared = shared_address_of(shared_destination), reports = shared_address_of(barrier);
  if constexpr (kRank == 3) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2], {%6};" ::"r"(shared),
        "l"(map), "r"(reports), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2]),
        "h"(static_cast<uint16_t>(offsets[0]))
        : "memory");
  } else if constexpr (kRank == 4) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared),
        "l"(map), "r"(reports), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2]),
        "r"(coordinates[3]), "h"(static_cast<uint16_t>(offsets[0])), "h"(static_cast<uint16_t>(offsets[1]))
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6, %7}], [%2], {%8, %9, %10};" ::"r"(shared),
        "l"(map), "r"(reports), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2]),
        "r"(coordinates[3]), "r"(coordinates[4]), "h"(static_cast<uint16_t>(offsets[0])),
        "h"(static_cast<uint16_t>(offsets[1])), "h"(static_cast<uint16_t>(offsets[2]))
        : "memory");
  }
#else
  __trap();
#endif
}

template <int kRank>
__device__ __forceinline__ void tensor_load_im2col_multicast(void* shared_destination, const TensorMap* map,
                                                             const int (&coordinates)[kRank],
                                                             const int (&offsets)[kRank - 2], Mbarrier* barrier,
                                                             uint16_t ranks) {
  static_assert(kRank >= 3 && kRank <= 5);
#if __CUDA_ARCH__ >= 900
  const uint32_t shared = shared_address_of(shared_destination), reports = shared_address_of(barrier);
  if constexpr (kRank == 3) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%4, %5, %6}], [%2], {%7}, %3;" ::"r"(shared),
        "l"(map), "r"(reports), "h"(ranks), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2]),
        "h"(static_cast<uint16_t>(offsets[0]))
        : "memory");
  } else if constexpr (kRank == 4) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%4, %5, %6, %7}], [%2], {%8, %9}, %3;" ::"r"(shared),
        "l"(map), "r"(reports), "h"(ranks), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2]),
        "r"(coordinates[3]), "h"(static_cast<uint16_t>(offsets[0])), "h"(static_cast<uint16_t>(offsets[1]))
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%4, %5, %6, %7, %8}], [%2], {%9, %10, %11}, %3;" ::"r"(shared),
        "l"(map), "r"(reports), "h"(ranks), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2]),
        "r"(coordinates[3]), "r"(coordinates[4]), "h"(static_cast<uint16_t>(offsets[0])),
        "h"(static_cast<uint16_t>(offsets[1])), "h"(static_cast<uint16_t>(offsets[2]))
        : "memory");
  }
#else
  __trap();
#endif
}

// The box to the tensor, as part of the thread's next group. Coordinates may not be negative.
template <int kRank>
__device__ __forceinline__ void tensor_store(const TensorMap* map, const int (&coordinates)[kRank],
                                             const void* shared_source) {
  static_assert(kRank >= 1 && kRank <= 5);
#if __CUDA_ARCH__ >= 900
  const uint32_t shared = shared_address_of(shared_source);
  if constexpr (kRank == 1) {
    asm volatile("cp.async.bulk.tensor.1d.global.shared::cta.tile.bulk_group [%0, {%2}], [%1];" ::"l"(map),
                 "r"(shared), "r"(coordinates[0])
                 : "memory");
  } else if constexpr (kRank == 2) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
                 "r"(shared), "r"(coordinates[0]), "r"(coordinates[1])
                 : "memory");
  } else if constexpr (kRank == 3) {
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
        "r"(shared), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2])
        : "memory");
  } else if constexpr (kRank == 4) {
    asm volatile(
        "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
        "r"(shared), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2]), "r"(coordinates[3])
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(
            map),
        "r"(shared), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2]), "r"(coordinates[3]),
        "r"(coordinates[4])
        : "memory");
  }
#else
  __trap();
#endif
}

// As that, adding as bulk_reduce_add() does; of int32, fp32, fp16 and bf16 tensors.
template <int kRank>
__device__ __forceinline__ void tensor_reduce_add(const TensorMap* map, const int (&coordinates)[kRank],
                                                  const void* shared_source) {
  static_assert(kRank >= 1 && kRank <= 5);
#if __CUDA_ARCH__ >= 900
  const uint32_t shared = shared_address_of(shared_source);
  if constexpr (kRank == 1) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.1d.global.shared::cta.add.tile.bulk_group [%0, {%2}], [%1];" ::"l"(map),
        "r"(shared), "r"(coordinates[0])
        : "memory");
  } else if constexpr (kRank == 2) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(
            map),
        "r"(shared), "r"(coordinates[0]), "r"(coordinates[1])
        : "memory");
  } else if constexpr (kRank == 3) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
            map),
        "r"(shared), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2])
        : "memory");
  } else if constexpr (kRank == 4) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.4d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::
            "l"(map),
        "r"(shared), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2]), "r"(coordinates[3])
        : "memory");
  } else {
    asm volatile(
        "cp.reduce.async.bulk.tensor.5d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], "
        "[%1];" ::"l"(map),
        "r"(shared), "r"(coordinates[0]), "r"(coordinates[1]), "r"(coordinates[2]), "r"(coordinates[3]),
        "r"(coordinates[4])
        : "memory");
  }
#else
  __trap();
#endif
}

// Saves the first copy the wait for the map. The map is a kernel's parameter (const __grid_constant__) or in
// constant memory.
__device__ __forceinline__ void prefetch_tensor_map(const TensorMap* map) {
#if __CUDA_ARCH__ >= 900
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#else
  __trap();
#endif
}

}  // namespace fastnn::cuda

#endif
