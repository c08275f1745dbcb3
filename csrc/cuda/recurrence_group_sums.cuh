// What a normalised cell asks of all units of a sample: their moments, or sums of two products of them. An item
// puts what it has; a warp of each block adds up the block's units and tells the group; when that has met, a
// warp of each block adds up the blocks. Always in the same order, so that bits do not depend on a run.
//
// Of a step this costs two reductions of a warp, some 500 cycles each of moments, whose parts are combined by a
// division, and the meeting between them.
#pragma once

#include "recurrence_steps.cuh"

namespace fastnn::cuda::recurrence {

// The two norms of a cell have places of their own: a block may tell of the one while another reads the other.
enum NormIndex { kOfProducts, kOfCell };

// T is Moments or two Sums.
template <typename T>
class GroupSums {
 public:
  using acc_t = typename NumberOf<T>::type;
  static_assert(sizeof(T) <= kNormNumbers * sizeof(acc_t));

  __device__ __forceinline__ GroupSums(const Plan& plan, const Member& member, unsigned char* shared,
                                       NormIndex norm)
      : plan_(plan),
        member_(member),
        items_(reinterpret_cast<T*>(shared + plan.items_at)),
        totals_(reinterpret_cast<T*>(shared + plan.totals_at)),
        parts_(reinterpret_cast<T*>(member.exchanged + plan.parts_at) +
               int64_t{norm} * plan.slots * plan.blocks) {}

  __device__ __forceinline__ void put(const Item& item, const T& value) const {
    items_[item.in_pass * plan_.units + item.own] = value;
  }
  // Tells the group of a pass. All threads, when items have been put.
  __device__ __forceinline__ void tell(int first, int samples, int H) const {
    __syncthreads();
    const int left = H - member_.first_unit, units = left < plan_.units ? left : plan_.units;
    for (int i = warp(); i < samples; i += kWarps) {
      const T sum =
          shuffled(added(items_ + i * plan_.units, units), [](auto v) { return __shfl_sync(kFullWarp, v, 0); });
      T* const part = parts_ + int64_t{first + i} * plan_.blocks + member_.rank;
      if (plan_.exchange == Exchange::kL2) {
        if (lane() == 0) *part = sum;
      } else if (lane() < plan_.blocks) {
        *(lane() == member_.rank ? part : map_shared_rank(part, static_cast<unsigned>(lane()))) = sum;
      }
    }
  }
  // Adds up the blocks, for the first `slots` samples. All threads, when the group has met.
  __device__ __forceinline__ void total(int slots) const {
    for (int slot = warp(); slot < slots; slot += kWarps) {
      const T sum = added(parts_ + int64_t{slot} * plan_.blocks, plan_.blocks);
      if (lane() == 0) totals_[slot] = sum;
    }
    __syncthreads();
  }
  __device__ __forceinline__ T of(const Item& item) const { return totals_[item.slot]; }

 private:
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / kWarpSize; }
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }
  // The warp's; lane 0 has it.
  static __device__ __forceinline__ T added(const T* parts, int count) {
    T sum{};
    for (int i = lane(); i < count; i += kWarpSize) sum = combine(sum, parts[i]);
    return warp_reduce(sum);
  }

  const Plan& plan_;
  const Member& member_;
  T* const items_;
  T* const totals_;
  T* const parts_;
};

}  // namespace fastnn::cuda::recurrence
