// What follows a normalisation in the same pass, and its derivative (ops/batch_norm.h has the formulas).
//
// Each is a policy of the passes in batch_norm_apply.h and batch_norm_sums.h, called for one vector. Which of
// their tensors are there is tested each time: the tests always fall the same way, and cost less than kernels
// for each.
#pragma once

#include <cstdint>
#include <cstring>

#include "../ops/batch_norm.h"
#include "activation.h"
#include "batch_norm_plan.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND::bn {

// A bit for each value. Lines of the plan, planes of S or rows of C, begin at a byte each: no two threads write
// to one byte.
template <typename acc_t>
class MaskBits {
 public:
  MaskBits(const Plan& plan, uint8_t* bits)
      : bits_(bits),
        line_(plan.rows ? plan.C : plan.S),
        line_bytes_(ceil_div(line_, 8)),
        inverse_(line_ > 1 ? ~uint64_t{0} / static_cast<uint64_t>(line_) + 1 : 0) {}

  explicit operator bool() const { return bits_ != nullptr; }

  // Of the `count` values from `at` on, which lie in one line, from a whole vector of its beginning.
  __attribute__((always_inline)) uint32_t load(int64_t at, int64_t count) const {
    const Place place = place_of(at);
    uint32_t bits = 0;
    std::memcpy(&bits, place.byte, bytes(count));
    return bits >> place.bit;
  }

  __attribute__((always_inline)) void store(int64_t at, int64_t count, uint32_t bits) const {
    const Place place = place_of(at);
    if constexpr (kLanes<acc_t> < 8) {
      // A vector is half of a byte, whose other half may have been written before: runs that are walked side by
      // side meet in a byte.
      const uint32_t mine = ((1u << count) - 1) << place.bit;
      *place.byte = static_cast<uint8_t>((*place.byte & ~mine) | (bits << place.bit & mine));
    } else {
      std::memcpy(place.byte, &bits, bytes(count));
    }
  }

 private:
  struct Place {
    uint8_t* byte;
    int bit;
  };

  static constexpr size_t bytes(int64_t count) {
    return kLanes<acc_t> <= 8 ? 1 : static_cast<size_t>(count + 7) / 8;
  }

  // A division for each vector, by a product: right up to 2^64 / line_ values.
  __attribute__((always_inline)) Place place_of(int64_t at) const {
    const auto line =
        static_cast<int64_t>(static_cast<unsigned __int128>(inverse_) * static_cast<uint64_t>(at) >> 64);
    const int64_t within = at - line * line_;
    return {bits_ + line * line_bytes_ + within / 8, kLanes<acc_t> < 8 ? static_cast<int>(within % 8) : 0};
  }

  uint8_t* bits_;
  int64_t line_, line_bytes_;
  uint64_t inverse_;
};

// The values of a pass as they are.
template <typename scalar_t>
struct NoActivation {
  using V = Vec<acc_type<scalar_t>>;
  struct Channel {};
  template <typename Load>
  Channel channel(const Load&) const {
    return {};
  }
  NoActivation from(int64_t) const { return *this; }
  V activated(const V& z, int64_t, int64_t) const { return z; }
  V gradient(const V& gy, const V&, int64_t, int64_t, const Channel&) const { return gy; }
};

// Forward: y of z.
template <typename scalar_t>
struct Activated : NoActivation<scalar_t> {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;

  Activation kind;
  const scalar_t* residual;
  MaskBits<acc_t> mask;
  acc_t alpha;

  Activated(const Plan& plan, const BatchNormActivation& a)
      : kind(a.kind),
        residual(static_cast<const scalar_t*>(a.residual)),
        mask(plan, static_cast<uint8_t*>(a.mask)),
        alpha(static_cast<acc_t>(a.alpha)) {}

  __attribute__((always_inline)) V activated(V z, int64_t at, int64_t count) const {
    if (residual != nullptr) z = z + load_acc(residual + at, count);
    const auto positive = PositiveLanes<acc_t>::of(z);
    if (mask) mask.store(at, count, positive.bits());
    return activation_of(z, positive, kind, alpha);
  }
};

// Backward: grad_y * y', from bits, or from d = x - mean and the residual.
template <typename scalar_t>
struct ActivationGradient : NoActivation<scalar_t> {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;

  Activation kind;
  const scalar_t* residual;
  MaskBits<acc_t> mask;
  const acc_t *scale, *shift;
  acc_t alpha;
  int64_t c0 = 0;  // values are counted from this channel on

  ActivationGradient(const Plan& plan, const BatchNormActivation& a)
      : kind(a.kind),
        residual(static_cast<const scalar_t*>(a.residual)),
        mask(plan, static_cast<uint8_t*>(a.mask)),
        scale(static_cast<const acc_t*>(a.scale)),
        shift(static_cast<const acc_t*>(a.shift)),
        alpha(static_cast<acc_t>(a.alpha)) {}

  ActivationGradient from(int64_t c) const {
    ActivationGradient moved = *this;
    moved.c0 += c;
    moved.scale += c;
    moved.shift += c;
    return moved;
  }

  struct Channel {
    V scale, shift;
  };
  template <typename Load>
  __attribute__((always_inline)) Channel channel(const Load& load) const {
    return {load(scale), load(shift)};
  }

  __attribute__((always_inline)) V gradient(const V& gy, const V& d, int64_t at, int64_t count,
                                            const Channel& k) const {
    if (mask) return rectified(gy, PositiveLanes<acc_t>::of_bits(mask.load(c0 + at, count)), alpha);
    V z = at::vec::fmadd(d, k.scale, k.shift);
    if (residual != nullptr) z = z + load_acc(residual + c0 + at, count);
    if (kind == Activation::kRectify) return rectified(gy, PositiveLanes<acc_t>::of(z), alpha);
    return curved_gradient_at(kind, alpha, gy, z);
  }
};

}  // namespace fastnn::FASTNN_BACKEND::bn
