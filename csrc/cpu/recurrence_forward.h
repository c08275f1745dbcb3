// A recurrence forward; what it shares with backward stands in recurrence_plan.h.
//
// What bounds it: G N H^2 multiply-adds a step of a cell with G gates where samples are many; where they are
// few, reading 4 G H^2 bytes of weights (in float32) from the caches. Error: H roundings of a sum's partial
// sums, those of the activations, and those of the steps before.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv_patches.h"
#include "conv_transpose.h"
#include "parallel.h"
#include "recurrence_plan.h"
#include "step_team.h"

namespace fastnn::FASTNN_BACKEND::recurrence {

// Of layers whose steps keep fewer threads busy than there are, x is multiplied before the first step, by all
// of them, where the products are no more than this.
inline constexpr int64_t kAheadBytes = 16 << 20;

// kPlain: an LSTM without options.
template <typename scalar_t, CellKind kKind, bool kPlain = false>
class Forward {
 public:
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;
  using M = VectorMath<acc_t>;
  static constexpr int64_t L = kLanes<acc_t>;
  static constexpr bool kReset = kKind == CellKind::kReset;
  // For which gates are fetched: runs of a sample are too short for the processor to see them coming.
  static constexpr int64_t kSamplesAhead = 2;

  explicit Forward(const RecurrenceForwardParams& p)
      : p_(p),
        s_(p.in),
        cell_(p.in.cell),
        rows_{p.in},
        plan_(p.in),
        weights_(static_cast<acc_t*>(p.workspace)) {
    acc_t* next = weights_ + cell_.recurrent_blocks() * plan_.units * s_.H;
    for (acc_t** buffer : {&h_[0], &h_[1], &c_, &z_, &reset_h_, &tanh_h_}) {
      *buffer = next;
      if (is_used(buffer)) next += s_.N * plan_.pitch;
    }
    sums_ = next;
    next += std::min(s_.N, kSampleBlock) * sums_pitch();
    if (multiplies_x()) {
      const int64_t bytes = s_.T * s_.N * x_sums_pitch() * static_cast<int64_t>(sizeof(acc_t));
      ahead_ = plan_.threads < at::get_num_threads() && !p.norm.any() && bytes <= kAheadBytes;
      const int64_t rows = ahead_ ? s_.T * x_samples() : std::max(x_samples(), kSampleBlock);
      const int64_t threads = ahead_ ? at::get_num_threads() : plan_.threads;
      for (const auto& [buffer, size] : {std::pair{&weights_x_, cell_.gates() * plan_.units * p.I},
                                         {&bias_, cell_.gates() * plan_.units},
                                         {&x_sums_, rows * x_sums_pitch()},
                                         {&x_, threads * kSampleBlock * apart<acc_t>(p.I)}}) {
        *buffer = next;
        next += size;
      }
      x_steps_ = reinterpret_cast<int64_t*>(next);
      x_first_ = x_steps_ + s_.T;
      next += ceil_div(2 * s_.T, kLine<int64_t>) * kLine<acc_t>;
    }
    end_ = next;
  }

  int64_t bytes() const {
    return reinterpret_cast<const char*>(end_) - reinterpret_cast<const char*>(weights_);
  }

  void run() const {
    if (multiplies_x()) group_steps();
    if (ahead_) multiply_x_ahead();
    run_team(plan_.threads, [this](int64_t member, int64_t members, StepBarrier& barrier) {
      const int64_t first = plan_.first(member, members), last = plan_.first(member + 1, members);
      for_each_product([&](int64_t block, int64_t gates) {
        pack(static_cast<const scalar_t*>(p_.w_hh) + block * s_.H * s_.H, gates, first, last, s_.H,
             weights(block, gates, 0));
      });
      if (multiplies_x()) {
        if (!ahead_) pack_x(first, last);
        pack_bias(first, last);
      }
      for (int64_t vec = first; vec < last; ++vec) load_states(vec);
      barrier.wait();
      int64_t active = s_.N;
      for (int64_t step = 0; step < s_.T; ++step) {
        active = rows_.active(step, active);
        const auto for_samples = [&](const auto& f) {
          for (int64_t n = 0; n < active; n += kSampleBlock) f(n, std::min(kSampleBlock, active - n));
        };
        const auto multiply_x = [&](int64_t n, int64_t samples) {
          if (begins_group(step)) this->multiply_x(member, first, last, step, n, samples);
        };
        if constexpr (kReset) {
          for_samples([&](int64_t n, int64_t samples) {
            multiply_x(n, samples);
            reset(first, last, step, n, samples);
          });
          barrier.wait();
          for_samples([&](int64_t n, int64_t samples) { blend(first, last, step, n, samples); });
        } else {
          for_samples([&](int64_t n, int64_t samples) {
            multiply_x(n, samples);
            compute(first, last, step, n, samples);
          });
        }
        barrier.wait();
      }
    });
  }

 protected:
  bool is_used(acc_t* const* buffer) const {
    if (buffer == &c_) return cell_.has_c();
    if (buffer == &z_ || buffer == &reset_h_) return kReset;
    if (buffer == &tanh_h_) return cell_.z_sees_tanh_h;
    return true;
  }
  int64_t sums_pitch() const { return apart<acc_t>((kReset ? 2 : cell_.gates()) * plan_.units); }
  int64_t x_sums_pitch() const { return apart<acc_t>(cell_.gates() * plan_.units); }

  // Of each product of a step the first block of W_hh and how many it takes.
  template <typename F>
  void for_each_product(const F& f) const {
    if constexpr (kReset) {
      for (int64_t block = 0; block < cell_.recurrent_blocks(); ++block) f(block, int64_t{1});
    } else {
      f(int64_t{0}, cell_.gates());
    }
  }

  // The weights of a product: by panels of a thread's vectors, [k][unit vector][gate][lane].
  acc_t* weights(int64_t block, int64_t gates, int64_t vec) const {
    return weights_ + (block * plan_.units + vec * gates * L) * s_.H;
  }

  // A thread's rows of w [gates * H, depth], to where those of the first vector of all lie.
  void pack(const scalar_t* w, int64_t gates, int64_t first, int64_t last, int64_t depth, acc_t* all) const {
    const int64_t H = s_.H;
    constexpr int64_t kColumns = 64;
    alignas(64) acc_t square[L * kColumns];
    plan_.for_each_panel(first, last, gates, [&](int64_t panel, int64_t vecs) {
      acc_t* const packed = all + panel * gates * L * depth;
      const int64_t width = vecs * gates * L;
      for (int64_t v = 0; v < vecs; ++v) {
        const int64_t unit = (panel + v) * L, count = std::min(L, H - unit);
        for (int64_t gate = 0; gate < gates; ++gate) {
          const scalar_t* const rows = w + (gate * H + unit) * depth;
          acc_t* const to = packed + (v * gates + gate) * L;
          for (int64_t k = 0; k < depth; k += kColumns) {
            const int64_t columns = std::min(kColumns, depth - k);
            for (int64_t lane = 0; lane < count; ++lane)
              copy_run(square + lane * kColumns, rows + lane * depth + k, columns);
            copy_transposed(square, kColumns, count, columns, to + k * width, width);
            for (int64_t d = k; count < L && d < k + columns; ++d)
              std::fill(to + d * width + count, to + d * width + L, acc_t(0));
          }
        }
      }
    });
  }

  void pack_x(int64_t first, int64_t last) const {
    pack(static_cast<const scalar_t*>(p_.w_ih), cell_.gates(), first, last, p_.I, weights_x_);
  }

  // [unit vector][gate][lane]
  void pack_bias(int64_t first, int64_t last) const {
    const auto* const bias = static_cast<const scalar_t*>(p_.bias);
    for (int64_t vec = first; vec < last; ++vec) {
      for (int64_t k = 0; k < cell_.gates(); ++k) {
        load_or_zero(bias, k * s_.H + vec * L, std::min(L, s_.H - vec * L))
            .store(bias_ + (vec * cell_.gates() + k) * L);
      }
    }
  }

  void load_states(int64_t vec) const {
    const int64_t H = s_.H, unit = vec * L, count = std::min(L, H - unit);
    for (int64_t n = 0; n < s_.N; ++n) {
      const int64_t from = rows_.state_row(n) * H + unit, to = n * plan_.pitch + unit;
      const V h = load_acc(static_cast<const scalar_t*>(p_.h0) + from, count);
      set_h(0, to, h);
      V c(0);
      if (cell_.has_c()) {
        c = load_acc(static_cast<const scalar_t*>(p_.c0) + from, count);
        c.store(c_ + to);
      }
      if (rows_.length(n) == 0) store_last(n, unit, count, h, c);
    }
  }

  void set_h(int64_t step, int64_t state, const V& h) const {
    h.store(h_[step % 2] + state);
    if (kReset && cell_.z_sees_tanh_h) M::tanh(h).store(tanh_h_ + state);
  }

  void store_last(int64_t n, int64_t unit, int64_t count, const V& h, const V& c) const {
    const int64_t to = rows_.state_row(n) * s_.H + unit;
    store_acc(static_cast<scalar_t*>(p_.h_n) + to, h, count);
    if (cell_.has_c()) store_acc(static_cast<scalar_t*>(p_.c_n) + to, c, count);
  }

  bool multiplies_x() const { return p_.x != nullptr; }
  int64_t place(int64_t row) const { return p_.places == nullptr ? row : p_.places[row]; }

  // Samples whose products with x are kept of a step, and where those of one are: where threads meet between
  // the samples' products and their cells all are wanted.
  bool keeps_all_x() const { return kReset || p_.norm.any() || ahead_; }
  int64_t x_samples() const { return keeps_all_x() ? s_.N : std::min(s_.N, kSampleBlock); }
  int64_t x_row(int64_t step, int64_t n) const {
    return x_first_[step] + (keeps_all_x() ? n : n % kSampleBlock);
  }

  // Steps follow each other in groups of which x is multiplied at a time, kSampleBlock rows of samples that are
  // under way: the weights are met once for all of them. Where not all groups are kept they take turns.
  void group_steps() const {
    int64_t active = s_.N, begin = 0, first = 0, row = 0;
    for (int64_t step = 0; step < s_.T; ++step) {
      active = rows_.active(step, active);
      if (step == 0 || row - first + active > kSampleBlock) {
        begin = step;
        if (!ahead_) row = 0;
        first = row;
      }
      x_first_[step] = row;
      x_steps_[step] = 0;
      ++x_steps_[begin];
      row += active;
    }
  }
  // Whether x is to be multiplied before this step.
  bool begins_group(int64_t step) const { return multiplies_x() && !ahead_ && x_steps_[step] > 0; }

  // All gates of all steps. Every sum is the same chain as where the step's threads multiply.
  void multiply_x_ahead() const {
    const int64_t panel = plan_.panel(cell_.gates());
    parallel_for(ceil_div(plan_.unit_vecs, panel), 1, [&](int64_t begin, int64_t end) {
      pack_x(begin * panel, std::min(end * panel, plan_.unit_vecs));
    });
    const int64_t blocks = ceil_div(s_.N, kSampleBlock);
    parallel_for(s_.T * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t step = i / blocks, n = i % blocks * kSampleBlock;
        const int64_t samples = std::min(rows_.active(step, s_.N), n + kSampleBlock) - n;
        if (x_steps_[step] > 0 && samples > 0)
          multiply_x(at::get_thread_num(), 0, plan_.unit_vecs, step, n, samples);
      }
    });
  }

  // A thread's gates of some samples and of the steps of a group: x W_ih^T. Their rows follow each other: a
  // group of several steps has no more samples than a block.
  void multiply_x(int64_t member, int64_t first, int64_t last, int64_t begin, int64_t sample,
                  int64_t samples) const {
    const int64_t gates = cell_.gates(), pitch = x_sums_pitch(), x_pitch = apart<acc_t>(p_.I);
    acc_t* const x = x_ + member * kSampleBlock * x_pitch;
    int64_t count = 0;
    for (int64_t step = begin; step < begin + x_steps_[begin]; ++step) {
      const int64_t active = rows_.active(step, sample + samples);
      for (int64_t n = sample; n < active; ++n, ++count) {
        copy_run(x + count * x_pitch, static_cast<const scalar_t*>(p_.x) + place(rows_.row(n, step)) * p_.I,
                 p_.I);
      }
    }
    plan_.for_each_panel(first, last, gates, [&](int64_t vec, int64_t vecs) {
      multiply_block(count, vecs * gates, x, x_pitch, weights_x_ + vec * gates * L * p_.I, p_.I,
                     x_sums_ + x_row(begin, sample) * pitch + vec * gates * L, pitch);
    });
  }

  // ---- one step -----------------------------------------------------------------------------------------

  // Sums of some samples from a thread's first vector on: [sample][vector][gate][lane] of the product that they
  // are given for.
  struct Sums {
    acc_t* at;
    int64_t pitch;
  };
  Sums sums_of(int64_t first) const { return {sums_ + first * (kReset ? 1 : cell_.gates()) * L, sums_pitch()}; }

  void multiply(int64_t block, int64_t gates, int64_t first, int64_t last, const acc_t* operand,
                int64_t samples, const Sums& sums, int64_t offset = 0) const {
    plan_.for_each_panel(first, last, gates, [&](int64_t vec, int64_t vecs) {
      multiply_block(samples, vecs * gates, operand, plan_.pitch, weights(block, gates, vec), s_.H,
                     sums.at + offset + (vec - first) * gates * L, sums.pitch);
    });
  }

  // f(vector, sample, place of its gates' row, sums of its first gate) for a block of samples. All products
  // come first, so that this goes through the gates in memory by runs and not by single lines.
  template <typename F>
  void for_each_cell(int64_t first, int64_t last, int64_t step, int64_t sample, int64_t samples,
                     const Sums& sums, int64_t sums_step, const F& f) const {
    for (int64_t m = 0; m < samples; ++m) {
      const int64_t next = std::min(sample + m + kSamplesAhead, sample + samples - 1);
      const int64_t ahead = rows_.row(next, step), row = rows_.row(sample + m, step);
      for (int64_t vec = first; vec < last; ++vec) {
        fetch(p_.gates, ahead, vec);
        f(vec, sample + m, row, sums.at + m * sums.pitch + (vec - first) * sums_step);
      }
    }
  }

  // Of a tensor [rows, G H], which may be null: gates are in inference, where the kernel multiplies x.
  void fetch(void* of_gates, int64_t row, int64_t vec) const {
    if (of_gates == nullptr) return;
    scalar_t* const at = static_cast<scalar_t*>(of_gates) + row * cell_.gates() * s_.H + vec * L;
    for (int64_t gate = 0; gate < cell_.gates(); ++gate) __builtin_prefetch(at + gate * s_.H, 1);
  }

  // Of a vector of units of one sample.
  struct Cell {
    int64_t n, row, unit, count, state;
    scalar_t* gates;
    const acc_t *x_sums, *bias;
  };
  Cell cell_at(int64_t vec, int64_t n, int64_t row, int64_t step) const {
    const int64_t unit = vec * L, blocks = cell_.gates();
    Cell at{n,
            row,
            unit,
            std::min(L, s_.H - unit),
            n * plan_.pitch + unit,
            static_cast<scalar_t*>(p_.gates) + row * blocks * s_.H + unit,
            nullptr,
            nullptr};
    if (multiplies_x()) {
      at.x_sums = x_sums_ + x_row(step, n) * x_sums_pitch() + vec * blocks * L;
      at.bias = bias_ + vec * blocks * L;
    }
    return at;
  }
  // What x and the biases give a gate.
  V gate(const Cell& at, int64_t k) const {
    if (at.x_sums != nullptr) return V::loadu(at.x_sums + k * L) + V::loadu(at.bias + k * L);
    return load_acc(static_cast<const scalar_t*>(at.gates + k * s_.H), at.count);
  }
  void save(const Cell& at, int64_t k, const V& value) const {
    store_acc(at.gates + k * s_.H, value, at.count);
  }
  void save_record(const Cell& at, const V& value) const {
    if (p_.record != nullptr)
      store_acc(static_cast<scalar_t*>(p_.record) + at.row * s_.H + at.unit, value, at.count);
  }

  void finish(const Cell& at, int64_t step, const V& made, const V& c) const {
    V h = made;
    if (!kPlain && cell_.zoneout_h) {
      h = zoned_out(true, load_share<scalar_t>(p_.zoneout_h, at.row, at.unit, at.count),
                    V::loadu(h_[step % 2] + at.state), made);
    }
    scalar_t* const y = static_cast<scalar_t*>(p_.y) + place(at.row) * s_.H + at.unit;
    store_acc(y, h, at.count);
    // What the next step multiplies is what the caller sees.
    set_h(step + 1, at.state,
          std::is_same_v<scalar_t, acc_t> ? h : load_acc(static_cast<const scalar_t*>(y), at.count));
    if (step == rows_.length(at.n) - 1) store_last(at.n, at.unit, at.count, h, c);
  }

  void compute(int64_t first, int64_t last, int64_t step, int64_t sample, int64_t samples) const {
    const Sums sums = sums_of(first);
    const int64_t gates = cell_.gates();
    multiply(0, gates, first, last, h_[step % 2] + sample * plan_.pitch, samples, sums);
    for_each_cell(first, last, step, sample, samples, sums, gates * L,
                  [&](int64_t vec, int64_t n, int64_t row, const acc_t* products) {
                    const Cell at = cell_at(vec, n, row, step);
                    if constexpr (kKind == CellKind::kLstm) {
                      step_lstm(at, step, products);
                    } else if constexpr (kKind == CellKind::kGru) {
                      step_gru(at, step, products);
                    } else {
                      const V made = activate<M>(cell_.candidate, V::loadu(products) + gate(at, 0));
                      if (p_.save) save(at, 0, made);
                      finish(at, step, made, made);
                    }
                  });
  }

  void step_lstm(const Cell& at, int64_t step, const acc_t* products) const {
    V a[4], c;
    const int64_t skipped = kPlain ? 0 : 4 - cell_.gates();
    for (int64_t k = skipped; k < 4; ++k) a[k] = V::loadu(products + (k - skipped) * L) + gate(at, k - skipped);
    const auto v = activate_lstm(at, a, c);
    finish(at, step, v.gates[3] * v.squashed, c);
  }

  // From pre-activations to what a cell keeps of the step, but h; c is its state afterwards.
  auto activate_lstm(const Cell& at, const V (&a)[4], V& c, bool squashes = true) const {
    LstmFormula<M, kPlain> formula{cell_};
    if constexpr (!kPlain) load_peephole<scalar_t>(cell_, p_.peephole, s_.H, at.unit, at.count, formula.p);
    typename LstmFormula<M, kPlain>::Values v;
    formula.activate_gates(a, V::loadu(c_ + at.state), v, squashes);
    c = v.c_made;
    if (!kPlain && cell_.zoneout_c) {
      c = zoned_out(true, load_share<scalar_t>(p_.zoneout_c, at.row, at.unit, at.count), v.c, v.c_made);
    }
    c.store(c_ + at.state);
    save_record(at, c);
    if (p_.save) {
      const int64_t skipped = kPlain ? 0 : 4 - cell_.gates();
      for (int64_t k = skipped; k < 4; ++k) save(at, k - skipped, v.gates[k]);
    }
    return v;
  }

  void step_gru(const Cell& at, int64_t step, const acc_t* products) const {
    const GruFormula<M> formula{cell_};
    const V u_n =
        V::loadu(products + 2 * L) + load_or_zero(static_cast<const scalar_t*>(p_.b_n), at.unit, at.count);
    const auto v =
        formula.activate_gates(V::loadu(products) + gate(at, 0), V::loadu(products + L) + gate(at, 1),
                               gate(at, 2), u_n, V::loadu(h_[step % 2] + at.state));
    if (p_.save) {
      save(at, 0, v.r);
      save(at, 1, v.z);
      save(at, 2, v.n);
      save_record(at, u_n);
    }
    finish(at, step, formula.made(v), u_n);
  }

  // The first half of a step that resets before its product.
  void reset(int64_t first, int64_t last, int64_t step, int64_t sample, int64_t samples) const {
    const Sums sums = sums_of(first);
    const int64_t from = sample * plan_.pitch, z_offset = plan_.units;
    const acc_t* const h = h_[step % 2];
    multiply(0, 1, first, last, h + from, samples, sums);
    if (cell_.z_sees_h) {
      multiply(1, 1, first, last, (cell_.z_sees_tanh_h ? tanh_h_ : h) + from, samples, sums, z_offset);
    }
    for_each_cell(first, last, step, sample, samples, sums, L,
                  [&](int64_t vec, int64_t n, int64_t row, const acc_t* products) {
                    const Cell at = cell_at(vec, n, row, step);
                    V a_z = gate(at, 1);
                    if (cell_.z_sees_h) a_z = a_z + V::loadu(products + z_offset);
                    const V r = activate<M>(cell_.gate, V::loadu(products) + gate(at, 0));
                    const V z = activate<M>(cell_.gate, a_z), reset_h = r * V::loadu(h + at.state);
                    z.store(z_ + at.state);
                    reset_h.store(reset_h_ + at.state);
                    if (p_.save) {
                      save(at, 0, r);
                      save(at, 1, z);
                      save_record(at, reset_h);
                    }
                  });
  }

  void blend(int64_t first, int64_t last, int64_t step, int64_t sample, int64_t samples) const {
    const Sums sums = sums_of(first);
    multiply(cell_.recurrent_blocks() - 1, 1, first, last, reset_h_ + sample * plan_.pitch, samples, sums);
    for_each_cell(first, last, step, sample, samples, sums, L,
                  [&](int64_t vec, int64_t n, int64_t row, const acc_t* products) {
                    const Cell at = cell_at(vec, n, row, step);
                    const V made = activate<M>(cell_.candidate, V::loadu(products) + gate(at, 2));
                    if (p_.save) save(at, 2, made);
                    const BlendFormula<M> formula{cell_};
                    const V h = formula.made(made, V::loadu(z_ + at.state), V::loadu(h_[step % 2] + at.state));
                    finish(at, step, h, h);
                  });
  }

  const RecurrenceForwardParams& p_;
  const Recurrence& s_;
  const RecurrentCell& cell_;
  const Rows rows_;
  const Plan<acc_t> plan_;
  acc_t* const weights_;
  acc_t *h_[2], *c_, *z_, *reset_h_, *tanh_h_;  // [N][whole vectors of units]
  acc_t *sums_, *end_;
  acc_t *weights_x_ = nullptr, *bias_ = nullptr;
  acc_t* x_sums_ = nullptr;  // [rows at a time][unit vector][gate][lane]
  acc_t* x_ = nullptr;       // of each thread [rows at a time][I]
  int64_t *x_steps_ = nullptr,
          *x_first_ = nullptr;  // of each step: how many its group has, if it begins one; its first row
  bool ahead_ = false;          // whether they are of all rows, and there before the first step
};

}  // namespace fastnn::FASTNN_BACKEND::recurrence
