"""Plants one deliberate bug at a time in a copy of the sources and demands that the suite goes red.

    python tests/mutations.py                  # all of them, about a minute or two each on two cores
    python tests/mutations.py --list
    python tests/mutations.py --only NAME ...  # names, or parts of names
    python tests/mutations.py --work DIR       # keeps the copy and its build there, so that the next run is quick

A mutation replaces a piece of one file. Its text must occur exactly once there (any run of white space matches any
other), so that a mutation which no longer fits its kernel is an error and not a silent success. Each names the tests
that must catch it; those are first run on the copy as it is, and must pass. Only what the mutation touches is built
again: the CUDA kernels under the emulator, or the extension.

Exit status: 0 when every mutation was caught, 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("csrc", "fastnn", "tests", "CMakeLists.txt", "pyproject.toml")
EXTENSION, EMULATOR = "_C", "fastnn_emulator"
TEST_SECONDS = 900  # a mutation may make a test hang


@dataclass(frozen=True)
class Mutation:
    """One planted bug.

    Attributes:
        name: for the command line.
        what: what the bug is, in words.
        file: path below the repository's root.
        find: text that occurs once in it, whatever its white space.
        replace: what stands there instead.
        target: CMake target to build again.
        tests: files below tests/, with spaces between.
        select: pytest's -k expression: the tests that must catch it.
    """

    name: str
    what: str
    file: str
    find: str
    replace: str
    target: str
    tests: str
    select: str

    def apply(self, text: str) -> str:
        pattern = r"\s+".join(re.escape(word) for word in self.find.split())
        found = re.findall(pattern, text)
        if len(found) != 1:
            raise SystemExit(f"{self.name}: its text occurs {len(found)} times in {self.file}, expected once")
        return re.sub(pattern, lambda _: self.replace, text)


POOLING = "test_pooling.py"
POOL, NORM, CELL, CONV = "test_max_pool2d.py", "test_batch_norm.py", "test_lstm_cell.py", "test_conv2d.py"
LAYERS, VARIANTS = "test_recurrent_layers.py", "test_recurrent_variants.py"
RECURRENCE = "test_recurrence_kernels.py"
GROUP, RESPONSE = "test_group_norm.py", "test_local_response_norm.py"
GEMM = "csrc/cuda/conv_implicit_gemm.cuh"
VALUES = "emulated and test_values_and_gradients and float32"
HOPPER = "emulated and test_hopper and bfloat16 and not three and not sample"
# The matrix product of single elements, which float64 takes; and those of csrc/cuda/conv_product.cuh.
GEMM_VALUES = "emulated and test_values_and_gradients and float64"
PRODUCTS = "emulated and test_products and not large"

CONVOLUTIONS = "test_convolutions.py"
LOCAL = "test_values_and_gradients and float32 and contiguous and"

MUTATIONS = (
    Mutation(
        "transposed_bias_uncovered",
        "positions of a transposed convolution that no tap reaches get no bias",
        "csrc/cpu/conv_gather.h",
        "const bool zeroed = unreached && without && params.bias == nullptr;",
        "const bool zeroed = unreached && without;",
        EXTENSION,
        CONVOLUTIONS,
        "cpu and test_values_and_gradients and float32 and uncovered",
    ),
    Mutation(
        "spread_end_of_band",
        "a transposed convolution to few channels loses what the last row of each band is given",
        "csrc/cpu/conv_spread.h",
        "if (row < first || row >= last) continue;",
        "if (row < first || row >= last - 1) continue;",
        EXTENSION,
        CONVOLUTIONS,
        "cpu and test_values_and_gradients and float32 and to_image",
    ),
    Mutation(
        "spread_tap_rows",
        "products of one row of taps run into the next row's positions",
        "csrc/cpu/conv_spread.h",
        "run_(g_.kernel[2] * g_.C),",
        "run_(round_up(g_.kernel[2] * g_.C, L)),",
        EXTENSION,
        CONVOLUTIONS,
        "cpu and test_values_and_gradients and float32 and to_image",
    ),
    Mutation(
        "transposed_bias_of_depthwise",
        "the general depthwise kernel forgets the bias of a transposed convolution",
        "csrc/cuda/conv_depthwise_general.cuh",
        "if (p.bias != nullptr) sum += to_acc(static_cast<const scalar_t*>(p.bias)[c]);",
        "",
        EMULATOR,
        CONVOLUTIONS,
        "emulated and test_values_and_gradients and float32 and depthwise",
    ),
    Mutation(
        "output_padding_end",
        "output_padding beyond the stride gives the gradients another geometry",
        "csrc/bindings/conv_transpose.cpp",
        "pairs.push_back(pads[d] - more[d]);",
        "pairs.push_back(pads[d]);",
        EXTENSION,
        CONVOLUTIONS,
        "cpu and test_values_and_gradients and float32 and output_padding",
    ),
    Mutation(
        "local_window_begin",
        "a dilated window that begins before the input takes one tap too many",
        "csrc/cpu/locally_connected.cpp",
        "begin[d] < 0 ? ceil_div(-begin[d], step) : 0",
        "begin[d] < 0 ? -begin[d] / step : 0",
        EXTENSION,
        CONVOLUTIONS,
        f"cpu and {LOCAL} dilation",
    ),
    Mutation(
        "local_tail_of_filters",
        "the last vector of a filter's gradient overwrites the next filter",
        "csrc/cpu/locally_connected.cpp",
        "store_acc(grad_w + (k + i) * length + j + v * W, sum, length - j - v * W);",
        "store_acc(grad_w + (k + i) * length + j + v * W, sum, length - j - v * W - 1);",
        EXTENSION,
        CONVOLUTIONS,
        f"cpu and {LOCAL} local",
    ),
    Mutation(
        "local_second_round",
        "the second round of images of the data gradient is written over the first",
        "csrc/cuda/locally_connected.cu",
        "params.grad_x)[(n0 + n) * strides[0]",
        "params.grad_x)[n * strides[0]",
        EMULATOR,
        CONVOLUTIONS,
        f"emulated and {LOCAL} many_images",
    ),
    Mutation(
        "local_filters_of_a_warp",
        "a block's second group of filters is the first again",
        "csrc/cuda/locally_connected.cu",
        "((block - position * filter_blocks) * (threads / kWarpSize) + warp) * kFiltersOfWarp;",
        "warp * kFiltersOfWarp;",
        EMULATOR,
        CONVOLUTIONS,
        f"emulated and {LOCAL} wide",
    ),
    Mutation(
        "depthwise_turned_padding",
        "the data gradient keeps forward's padding where the filter is turned round",
        "csrc/cuda/conv_depthwise_window.cuh",
        "turned ? c.dilation[d] * (c.kernel[d] - 1) - g.pad[d + 1] : g.pad[d + 1];",
        "g.pad[d + 1];",
        EMULATOR,
        CONV,
        "emulated and test_depthwise_variants and float32",
    ),
    Mutation(
        "depthwise_transposed_shift",
        "blocks of a transposed window begin at no multiple of the stride",
        "csrc/cuda/conv_depthwise_window.cuh",
        "a.result_shift = static_cast<int>(pad % Window::kStride);",
        "a.result_shift = 0;",
        EMULATOR,
        CONV,
        "emulated and test_depthwise_variants and float32",
    ),
    Mutation(
        "depthwise_tile_filters",
        "a tile of planes of two images takes its filters from past the last channel",
        "csrc/cuda/conv_depthwise_planes.cuh",
        "const int channel = (first_channel + plane) % c.channels;",
        "const int channel = first_channel + plane;",
        EMULATOR,
        CONV,
        "emulated and test_depthwise_variants and float32",
    ),
    Mutation(
        "depthwise_weight_parts",
        "the weight gradient forgets the last warp that shares a plane",
        "csrc/cuda/conv_depthwise_planes.cuh",
        "for (int q = 0; q < share.parts; ++q)",
        "for (int q = 0; q < share.parts - 1; ++q)",
        EMULATOR,
        CONV,
        "emulated and test_depthwise_variants and float32",
    ),
    Mutation(
        "small_groups_barrier",
        "filters are staged over those that other threads still read",
        "csrc/cuda/conv_small_groups.cuh",
        "if (begin > 0) __syncthreads();",
        "",
        EMULATOR,
        CONV,
        "emulated and test_small_groups and float32",
    ),
    Mutation(
        "pool_tie",
        "the last of equal values wins",
        "csrc/cuda/max_pool_walk.cuh",
        "return v > before || v != v;",
        "return v >= before || v != v;",
        EMULATOR,
        POOL,
        VALUES,
    ),
    Mutation(
        "pool_nan",
        "NaN loses against every number",
        "csrc/cuda/max_pool_walk.cuh",
        "return v > before || v != v;",
        "return v > before;",
        EMULATOR,
        POOL,
        VALUES,
    ),
    Mutation(
        "pool_gather_offset",
        "the gather takes an offset's row for its column",
        "csrc/cuda/max_pool_general.cuh",
        "const int64_t rw = by_kernel_width.digit(rd), rh = by_kernel_height.digit(rd);",
        "const int64_t rh = by_kernel_width.digit(rd), rw = by_kernel_height.digit(rd);",
        EMULATOR,
        POOL,
        "emulated and test_second_derivatives and float32",
    ),
    Mutation(
        "pool_last_window",
        "backward forgets the last of overlapping windows",
        "csrc/cuda/max_pool_general.cuh",
        "c.last = last < out_size ? last : out_size - 1;",
        "c.last = last < out_size ? last : out_size - 2;",
        EMULATOR,
        POOL,
        VALUES,
    ),
    Mutation(
        "pool_last_strip",
        "a tile's backward forgets the last window that covers a cell",
        "csrc/cuda/max_pool_walk.cuh",
        "for (int before = kCovering - 1; before > 0; --before) {",
        "for (int before = kCovering - 1; before > 1; --before) {",
        EMULATOR,
        POOL,
        VALUES,
    ),
    Mutation(
        "average_divisor",
        "what hangs over the end counts in the divisor",
        "csrc/ops/pool.h",
        "return left < g.kernel[d] ? left : g.kernel[d];",
        "return g.kernel[d];",
        EXTENSION,
        POOLING,
        "cpu and test_values and float32 and ceil",
    ),
    Mutation(
        "average_cover",
        "backward forgets the first window over a position",
        "csrc/ops/pool.h",
        "return {before < 0 ? 0 : before / g.stride[d] + 1, end > g.out[d] ? g.out[d] : end};",
        "return {before < 0 ? 0 : before / g.stride[d] + 2, end > g.out[d] ? g.out[d] : end};",
        EXTENSION,
        POOLING,
        "cpu and test_values and float32 and avg",
    ),
    Mutation(
        "average_odd_tap",
        "the last column of a window of odd width at stride 2 is lost",
        "csrc/cpu/average_pool_forward.h",
        "sum = k + 1 < kernel ? sum + (even + odd) : sum + even;",
        "sum = k + 1 < kernel ? sum + (even + odd) : sum;",
        EXTENSION,
        POOLING,
        "cpu and test_every_window",
    ),
    Mutation(
        "average_kept_row",
        "backward keeps a row of gradients for the next plane",
        "csrc/cpu/average_pool_backward.h",
        "const bool held = r > begin && row.d + row.h > 0 &&",
        "const bool held = r > begin &&",
        EXTENSION,
        POOLING,
        "cpu and test_values and float32 and whole",
    ),
    Mutation(
        "lp_zero",
        "windows of zeros have a gradient",
        "csrc/cpu/average_pool_power.h",
        "return V::blendv(slope, V(0), y == V(0));",
        "return slope;",
        EXTENSION,
        POOLING,
        "cpu and test_lp_pool_of_zeros",
    ),
    Mutation(
        "average_cuda_window",
        "adaptive windows end too early on CUDA",
        "csrc/cuda/pool_items.cuh",
        "by_out.divide((o + 1) * in + out - 1)",
        "by_out.divide((o + 1) * in)",
        EMULATOR,
        POOLING,
        "emulated and test_values and float32 and adaptive",
    ),
    Mutation(
        "switches_first_wins",
        "unpooling keeps the first of equal switches",
        "csrc/cuda/pool_switches.cu",
        "(kSum ? other >= lane : other <= lane)",
        "(kSum ? other >= lane : other >= lane)",
        EMULATOR,
        POOLING,
        "emulated and test_the_last_of_equal",
    ),
    Mutation(
        "switches_barrier",
        "the next 32 switches do not wait for the last ones",
        "csrc/cuda/pool_switches.cu",
        "if (writes) tile[place] = kSum ? tile[place] + sum : value; __syncwarp();",
        "if (writes) tile[place] = kSum ? tile[place] + sum : value;",
        EMULATOR,
        POOLING,
        "emulated and test_the_last_of_equal",
    ),
    Mutation(
        "switches_column",
        "a column that wins later takes the place of an equal one before",
        "csrc/cpu/pool_switches.cpp",
        "best.merge(values[c - piece], rows[c - piece] * g.in[2] + c);",
        "best.offer(values[c - piece], rows[c - piece] * g.in[2] + c);",
        EXTENSION,
        POOLING,
        "cpu and test_values and float32 and adaptive_max",
    ),
    Mutation(
        "block_reduce_barrier",
        "a block's reduction reads the warps' sums without a barrier",
        "csrc/cuda/reduce.cuh",
        "if (lane == 0) scratch[warp] = value; __syncthreads();",
        "if (lane == 0) scratch[warp] = value;",
        EMULATOR,
        NORM,
        VALUES,
    ),
    Mutation(
        "column_reduce_barrier",
        "a column's reduction reads the other rows' sums without a barrier",
        "csrc/cuda/reduce.cuh",
        "threadIdx.y < 2 * rows) *mine = value; __syncthreads();",
        "threadIdx.y < 2 * rows) *mine = value;",
        EMULATOR,
        NORM,
        VALUES,
    ),
    Mutation(
        "gemm_reads_beyond",
        "the matrix product reads one element beyond the depth, and multiplies it by zero",
        GEMM,
        "a_next[i] = k < valid ? a[my_row + table[k].a] : zero;",
        "a_next[i] = k <= valid ? a[my_row + table[k].a] : zero;",
        EMULATOR,
        CONV,
        GEMM_VALUES,
    ),
    Mutation(
        "gemm_barrier",
        "the matrix product multiplies a tile while it is being stored",
        GEMM,
        "acc[i][j] = 0; } } in_chunk = 0; first_chunk = false; } __syncthreads();",
        "acc[i][j] = 0; } } in_chunk = 0; first_chunk = false; }",
        EMULATOR,
        CONV,
        GEMM_VALUES,
    ),
    Mutation(
        "gemm_last_column",
        "the last column of every full tile is lost",
        "csrc/cuda/conv_tile_place.cuh",
        "cols - col0 < block_n ? cols - col0 : block_n)",
        "cols - col0 < block_n ? cols - col0 : block_n - 1)",
        EMULATOR,
        CONV,
        VALUES + " and (wide or tile)",
    ),
    Mutation(
        "gemm_depth_edge",
        "the last term of a sum is lost",
        GEMM,
        "left < kBlockK ? left : kBlockK)",
        "left <= kBlockK ? left - 1 : kBlockK)",
        EMULATOR,
        CONV,
        GEMM_VALUES,
    ),
    Mutation(
        "gemm_last_split",
        "the last part of a sum that was split is not added",
        "csrc/cuda/conv_sum_splits.cuh",
        "for (int64_t s = 1; s < splits; ++s)",
        "for (int64_t s = 1; s + 1 < splits; ++s)",
        EMULATOR,
        CONV,
        PRODUCTS,
    ),
    Mutation(
        "group_order",
        "the groups of the input are taken in the wrong order",
        GEMM,
        "b += group * p.b_group;",
        "b += (p.groups - 1 - group) * p.b_group;",
        EMULATOR,
        CONV,
        GEMM_VALUES + " and groups",
    ),
    Mutation(
        "product_chunk",
        "of the chunks before, a tensor-core product keeps the last alone",
        "csrc/cuda/conv_multiply.cuh",
        "before[i][j][e] += sums[i][j][e];",
        "before[i][j][e] = sums[i][j][e];",
        EMULATOR,
        CONV,
        PRODUCTS,
    ),
    Mutation(
        "product_wait",
        "a stage is multiplied while its copies are under way",
        "csrc/cuda/conv_product.cuh",
        "cp_async_wait_group<Tile::kStages - 2>();",
        "cp_async_wait_group<Tile::kStages - 1>();",
        EMULATOR,
        CONV,
        PRODUCTS,
    ),
    Mutation(
        "product_barrier",
        "a stage is multiplied before the other threads' copies are known to have landed",
        "csrc/cuda/conv_product.cuh",
        "cp_async_wait_group<Tile::kStages - 2>(); __syncthreads();",
        "cp_async_wait_group<Tile::kStages - 2>();",
        EMULATOR,
        CONV,
        PRODUCTS,
    ),
    Mutation(
        "product_tap_order",
        "the taps of a column are walked one row too far",
        "csrc/cuda/conv_product_loaders.cuh",
        "if (++tap_[1] == view.depth.spatial[1]) {",
        "if (++tap_[1] > view.depth.spatial[1]) {",
        EMULATOR,
        CONV,
        PRODUCTS,
    ),
    Mutation(
        "product_last_lead",
        "copies of planes read the lead after the last",
        "csrc/cuda/conv_product_loaders.cuh",
        "loads[j] = inside[j] && lead < p.depth.lead;",
        "loads[j] = inside[j] && lead <= p.depth.lead;",
        EMULATOR,
        CONV,
        PRODUCTS,
    ),
    Mutation(
        "product_packed_zeros",
        "packed filters end without the zeros that fill their last vector",
        "csrc/cuda/conv_filter_pack.cuh",
        "if (tap == taps - 1 && beyond < p.pitch) to[beyond] = zero;",
        "",
        EMULATOR,
        CONV,
        PRODUCTS,
    ),
    Mutation(
        "product_split_order",
        "partial sums are read along rows where they were left along columns",
        "csrc/cuda/conv_sum_splits.cuh",
        "const int64_t row = p.out_rows_first ? place : line;",
        "const int64_t row = p.out_rows_first ? line : place;",
        EMULATOR,
        CONV,
        PRODUCTS,
    ),
    Mutation(
        "running_var_biased",
        "the running variance is not unbiased",
        "csrc/cuda/batch_norm_statistics.cuh",
        "count > 1 ? count - 1 : 1)",
        "count)",
        EMULATOR,
        NORM,
        VALUES,
    ),
    Mutation(
        "norm_mean_of_gradient",
        "the gradient of training forgets that the mean depends on x",
        "csrc/ops/batch_norm_math.h",
        "-(sum_gy / count)};",
        "acc_t(0)};",
        EMULATOR,
        NORM,
        VALUES,
    ),
    Mutation(
        "cell_gradient_through_c",
        "the gradient that comes through c is lost",
        "csrc/ops/lstm_cell_math.h",
        "const T dc = grad_cy + grad_hy * v.o * (one - v.tanh_cy * v.tanh_cy);",
        "const T dc = grad_hy * v.o * (one - v.tanh_cy * v.tanh_cy);",
        EMULATOR,
        CELL,
        VALUES + " and through_c",
    ),
    Mutation(
        "cell_second_derivative",
        "a wrong sign in the second derivative by the output gate",
        "csrc/ops/lstm_cell_math.h",
        "(A * dt + u.o * t * (one - two * v.o))",
        "(A * dt - u.o * t * (one - two * v.o))",
        EMULATOR,
        CELL,
        "emulated and test_second_derivatives and float32",
    ),
    Mutation(
        "cuda_recurrence_meeting",
        "a group's blocks go on before the last of them has arrived",
        "csrc/cuda/recurrence_steps.cuh",
        "arrivals += static_cast<unsigned>(plan.blocks);",
        "arrivals += static_cast<unsigned>(plan.blocks) - 1;",
        EMULATOR,
        RECURRENCE,
        "test_values_and_gradients and lstm and float32",
    ),
    Mutation(
        "cuda_recurrence_turns",
        "the new state takes the place of the one that others still multiply",
        "csrc/cuda/recurrence_forward_steps.cuh",
        "give(kOfState, step_ + 1, item, seen);",
        "give(kOfState, step_, item, seen);",
        EMULATOR,
        RECURRENCE,
        "test_values_and_gradients and gru and float32",
    ),
    Mutation(
        "cuda_recurrence_cluster_meeting",
        "a cluster's blocks multiply before the others' state has come",
        "csrc/cuda/recurrence_steps.cuh",
        "cluster_wait();",
        "__syncthreads();",
        EMULATOR,
        RECURRENCE,
        "test_values_and_gradients and tight and gru and float32",
    ),
    Mutation(
        "cuda_recurrence_cluster_gives",
        "the last of a cluster's other blocks is given nothing",
        "csrc/cuda/recurrence_steps.cuh",
        "for (int k = 1; k < plan.blocks; ++k) {",
        "for (int k = 1; k < plan.blocks - 1; ++k) {",
        EMULATOR,
        RECURRENCE,
        "test_values_and_gradients and tight and lstm and float32",
    ),
    Mutation(
        "cuda_recurrence_cluster_leaves",
        "a block ends while others still write to its memory",
        "csrc/cuda/recurrence_steps.cuh",
        "if (plan.exchange == Exchange::kCluster) wait(plan);",
        "",
        EMULATOR,
        RECURRENCE,
        "test_values_and_gradients and tight and rnn and float32",
    ),
    Mutation(
        "cuda_recurrence_depth",
        "all parts of the depth but the first leave a chunk out",
        "csrc/cuda/recurrence_product.cuh",
        "last_chunk = product.chunks * (depth_warp + 1) / product.depth_warps;",
        "last_chunk = product.chunks * (depth_warp + 1) / product.depth_warps - (depth_warp > 0);",
        EMULATOR,
        RECURRENCE,
        "test_values_and_gradients and rnn and bfloat16",
    ),
    Mutation(
        "cuda_recurrence_reset_gradient",
        "the gradient of r * h reaches r alone",
        "csrc/cuda/recurrence_backward_steps.cuh",
        "p_.carry_h[carry_at(item)] = o.carry_h + grad * r;",
        "p_.carry_h[carry_at(item)] = o.carry_h;",
        EMULATOR,
        RECURRENCE,
        "test_values_and_gradients and cho and float32",
    ),
    Mutation(
        "cuda_recurrence_norm_blocks",
        "a norm's sums leave out the group's last block",
        "csrc/cuda/recurrence_group_sums.cuh",
        "added(parts_ + int64_t{slot} * plan_.blocks, plan_.blocks);",
        "added(parts_ + int64_t{slot} * plan_.blocks, plan_.blocks - 1);",
        EMULATOR,
        RECURRENCE,
        "test_values_and_gradients and tight and normalised and float32",
    ),
    Mutation(
        "cuda_recurrence_norm_barrier",
        "a block's units are added up before all have been put",
        "csrc/cuda/recurrence_group_sums.cuh",
        "tell(int first, int samples, int H) const { __syncthreads();",
        "tell(int first, int samples, int H) const {",
        EMULATOR,
        RECURRENCE,
        "test_values_and_gradients and tight and normalised and float32",
    ),
    Mutation(
        "cuda_recurrence_norm_gradient",
        "the gradient of normalised products keeps what is along them",
        "csrc/cuda/recurrence_backward_normalised.cuh",
        "const acc_t grad = scale * (o.kept[k] - mean - to_acc(p_.normalised[at]) * mean_with);",
        "const acc_t grad = scale * (o.kept[k] - mean);",
        EMULATOR,
        RECURRENCE,
        "test_values_and_gradients and tight and normalised and float32",
    ),
    Mutation(
        "cpu_gates_swapped",
        "input and forget gate are exchanged",
        "csrc/cpu/lstm_cell_pointwise.h",
        "v.i = sigmoid(pre_activation(products[0], 0, column, count)); "
        "v.f = sigmoid(pre_activation(products[1], 1, column, count));",
        "v.i = sigmoid(pre_activation(products[1], 1, column, count)); "
        "v.f = sigmoid(pre_activation(products[0], 0, column, count));",
        EXTENSION,
        CELL,
        "cpu and test_values_and_gradients",
    ),
    Mutation(
        "recurrence_reversed_lengths",
        "a reversed direction begins with the batch's last step and not with the sample's own",
        "csrc/cpu/recurrence_plan.h",
        "const int64_t t = s.reverse ? length(sample) - 1 - step : step;",
        "const int64_t t = s.reverse ? s.T - 1 - step : step;",
        EXTENSION,
        LAYERS,
        "cpu and test_lengths_of_padded_batches and lstm",
    ),
    Mutation(
        "recurrence_last_state",
        "the last state is that of the batch's last step",
        "csrc/cpu/recurrence_forward.h",
        "if (step == rows_.length(at.n) - 1) store_last(",
        "if (step == s_.T - 1) store_last(",
        EXTENSION,
        LAYERS,
        "cpu and test_lengths_of_padded_batches and gru",
    ),
    Mutation(
        "recurrence_x_ahead",
        "groups of steps share the rows of their products with x where all are made before the first",
        "csrc/cpu/recurrence_forward.h",
        "if (!ahead_) row = 0;",
        "row = 0;",
        EXTENSION,
        "test_recurrence.py",
        "threads",
    ),
    Mutation(
        "recurrence_x_groups",
        "steps of which x is multiplied at a time share the rows of their products",
        "csrc/cpu/recurrence_forward.h",
        "x_first_[step] = row;",
        "x_first_[step] = 0;",
        EXTENSION,
        "test_recurrence.py",
        "cpu and test_values and lstm",
    ),
    Mutation(
        "recurrence_part_state",
        "a part of the steps begins backward from the state after its first step",
        "csrc/bindings/recurrence_layer_backward.cpp",
        "rows_at(begin - 1)",
        "rows_at(begin)",
        EXTENSION,
        "test_recurrence_parts.py",
        "gradients_are_those",
    ),
    Mutation(
        "recurrence_rectified_slope",
        "an infinite rectified state has the slope 0",
        "csrc/ops/recurrent_cell_math.h",
        "return M::above(y, 0);",
        "return M::within(y, 0, std::numeric_limits<float>::infinity());",
        EXTENSION,
        "test_recurrence.py",
        "cpu and rectified",
    ),
    Mutation(
        "pool_disjoint_rest",
        "what lies behind the last of windows side by side is left as it was",
        "csrc/cpu/max_pool_backward_disjoint.h",
        "std::fill(grad_x + K * width, grad_x + (g.in[1] - row.h * K) * width, scalar_t(0));",
        "",
        EXTENSION,
        POOL,
        "cpu and disjoint_columns and test_values_and_gradients",
    ),
    Mutation(
        "recurrence_reset_gradient",
        "the gradient of h through r * h is lost",
        "csrc/cpu/recurrence_backward.h",
        "(V::loadu(carried_ + at.state) + grad * r).store(carried_ + at.state);",
        "V::loadu(carried_ + at.state).store(carried_ + at.state);",
        EXTENSION,
        VARIANTS,
        "cpu and test_values_and_gradients and float64",
    ),
    Mutation(
        "recurrence_norm_mean",
        "a normalised row's gradient keeps its mean",
        "csrc/cpu/recurrence_normalised.h",
        "(of_gate * gain(at, gate, weight) - means.a(at.n) - ",
        "(of_gate * gain(at, gate, weight) - ",
        EXTENSION,
        VARIANTS,
        "cpu and test_each_norm",
    ),
    Mutation(
        "recurrence_norm_of_x",
        "all rows of x's products have the mean of the first",
        "csrc/cpu/recurrence_normalised.h",
        "own.of_x.a(x_row), own.of_x.b(x_row)",
        "own.of_x.a(0), own.of_x.b(x_row)",
        EXTENSION,
        VARIANTS,
        "cpu and test_each_norm",
    ),
    Mutation(
        "cell_peephole_of_the_state_before",
        "the output gate sees the state before and not the new one",
        "csrc/ops/recurrent_cell_math.h",
        "if (peephole()) of_output = of_output + p[2] * (cell.peephole_previous ? c : v.c_made);",
        "if (peephole()) of_output = of_output + p[2] * c;",
        EXTENSION,
        VARIANTS,
        "cpu and test_values_and_gradients and float64",
    ),
    Mutation(
        "cell_zoneout_gradient",
        "the gradient of what zoneout mixes in is not weighted",
        "csrc/ops/recurrent_cell_math.h",
        "grad_old = grad_old + d * grad; return (S(1) - d) * grad;",
        "grad_old = grad_old + d * grad; return grad;",
        EXTENSION,
        VARIANTS,
        "cpu and test_values_and_gradients and float64",
    ),
    Mutation(
        "cell_gru_reset_gradient",
        "the GRU's reset gate has no gradient of h's product",
        "csrc/ops/recurrent_cell_math.h",
        "grad_h * (v.h - v.n) * slope<M>(cell.gate, v.z), dn, dn * v.r,",
        "grad_h * (v.h - v.n) * slope<M>(cell.gate, v.z), dn, dn,",
        EXTENSION,
        LAYERS,
        "cpu and test_every_option and gru",
    ),
    Mutation(
        "cpu_pool_tie",
        "the last of equal values wins, in vectors with places of bytes (AVX-512)",
        "csrc/cpu/max_pool_bytes.h",
        "const __mmask16 take = _mm512_cmp_ps_mask(values[i], best.value, _CMP_GT_OQ);",
        "const __mmask16 take = _mm512_cmp_ps_mask(values[i], best.value, _CMP_GE_OQ);",
        EXTENSION,
        POOL,
        "cpu and test_values_and_gradients and float32",
    ),
    Mutation(
        "cpu_small_plane_last_sample",
        "the last sample of a small plane is not stored",
        "csrc/cpu/conv_sums.h",
        "n < std::min(samples, i1_ - i0_);",
        "n < std::min(samples, i1_ - i0_) - 1;",
        EXTENSION,
        CONV,
        "cpu and test_many_channels and float32",
    ),
    Mutation(
        "cpu_grad_weight_last_place",
        "the weight gradient leaves out a place of which some samples belong to the next block",
        "csrc/cpu/conv_grad_weight.h",
        "const int64_t first = k0 / samples, last = ceil_div(k1, samples);",
        "const int64_t first = k0 / samples, last = k1 / samples;",
        EXTENSION,
        CONV,
        "cpu and test_many_channels and float32",
    ),
    Mutation(
        "cpu_packed_filters_in_order",
        "filters are packed in the order of memory, whatever taps a residue has",
        "csrc/cpu/conv_pack_weights.h",
        "put(piece + offset[t] * kPitch, place[t].next());",
        "put(piece + t * kPitch, place[t].next());",
        EXTENSION,
        CONV,
        "cpu and test_many_channels and float32",
    ),
    Mutation(
        "cpu_naive_variance",
        "variance as E[x^2] - E[x]^2",
        "csrc/cpu/batch_norm_sums.h",
        "if (rounded - rounded == 0) seen_from = rounded;",
        "seen_from = 0;",
        EXTENSION,
        NORM,
        "cpu and large_mean",
    ),
    Mutation(
        "cpu_running_var_biased",
        "the running variance is not unbiased",
        "csrc/cpu/batch_norm.cpp",
        "vars[i] = m2[i] / (values - 1);",
        "vars[i] = m2[i] / values;",
        EXTENSION,
        NORM,
        "cpu and test_values_and_gradients",
    ),
    Mutation(
        "cpu_mask_of_the_next_line",
        "a mask's line is found by the bytes of one without its rest",
        "csrc/cpu/batch_norm_activation.h",
        "line_bytes_(ceil_div(line_, 8))",
        "line_bytes_(line_ / 8 + (line_ < 8))",
        EXTENSION,
        NORM,
        "cpu and test_values_and_gradients_with_an_activation and float32",
    ),
    Mutation(
        "cpu_leaky_of_what_is_positive",
        "backward multiplies by alpha where z is positive",
        "csrc/cpu/batch_norm_activation.h",
        "return rectified(gy, PositiveLanes<acc_t>::of(z), alpha);",
        "return rectified(gy, PositiveLanes<acc_t>::of(z.neg()), alpha);",
        EXTENSION,
        NORM,
        "cpu and test_values_and_gradients_with_an_activation and float32",
    ),
    Mutation(
        "cpu_nonfinite_variance",
        "only a mean that is not finite keeps the statistics",
        "csrc/cpu/batch_norm.cpp",
        "if (!std::isfinite(means[i]) || !std::isfinite(vars[i]))",
        "if (!std::isfinite(means[i]))",
        EXTENSION,
        NORM,
        "cpu and nonfinite_batch",
    ),
    Mutation(
        "mask_vote",
        "the halves of a mask's byte are each other's",
        "csrc/cuda/batch_norm_activation.cuh",
        "uint32_t byte = exists ? bits << (place * kVec) : 0;",
        "uint32_t byte = exists ? bits << ((kLanes - 1 - place) * kVec) : 0;",
        EMULATOR,
        NORM,
        "emulated and test_values_and_gradients_with_an_activation and float32",
    ),
    Mutation(
        "commit_before_all_are_known",
        "statistics move where one variance is not finite",
        "csrc/cuda/batch_norm_statistics.cuh",
        "for (int64_t c = threadIdx.x; c < 2 * C; c += kCommitThreads)",
        "for (int64_t c = threadIdx.x; c < C; c += kCommitThreads)",
        EMULATOR,
        NORM,
        "emulated and nonfinite_batch",
    ),
    Mutation(
        "cpu_gemm_last_column",
        "the last column of a tile is not packed",
        "csrc/cpu/conv_product.h",
        "const int64_t last = std::min(tile.j1, j + plan_.panel_width);",
        "const int64_t last = std::min(tile.j1 - 1, j + plan_.panel_width);",
        EXTENSION,
        CONV,
        "cpu and test_values_and_gradients",
    ),
    Mutation(
        "cpu_gemm_depth_edge",
        "the last product of a block is left out",
        "csrc/cpu/conv_product.h",
        "segments[0] = packed_segment<acc_t>(0, block.k1 - block.k0, panel, width);",
        "segments[0] = packed_segment<acc_t>(0, block.k1 - block.k0 - 1, panel, width);",
        EXTENSION,
        CONV,
        "cpu and test_values_and_gradients",
    ),
    Mutation(
        "same_padding_side",
        "an odd total of 'same' padding goes to the beginning",
        "csrc/bindings/conv.cpp",
        "pairs.push_back(total / 2); pairs.push_back(total - total / 2);",
        "pairs.push_back(total - total / 2); pairs.push_back(total / 2);",
        EXTENSION,
        CONV,
        "cpu and same_even",
    ),
    Mutation(
        "hopper_release",
        "a buffer is handed back while the instructions that read it are in flight",
        "csrc/cuda/conv_wgmma.cuh",
        "if (step > first) release(last_stage);",
        "release(of_step.stage);",
        EMULATOR,
        CONV,
        HOPPER,
    ),
    Mutation(
        "hopper_release_to_one",
        "a buffer is free when the own block has read it, whatever the other block of the cluster does",
        "csrc/cuda/conv_wgmma.cuh",
        "mbarrier_init(empty + i, kWgmmaCluster * Tile::kReaders * kWarpgroupThreads / kWarpSize);",
        "mbarrier_init(empty + i, Tile::kReaders * kWarpgroupThreads / kWarpSize);",
        EMULATOR,
        CONV,
        HOPPER,
    ),
    Mutation(
        "hopper_substeps",
        "the last leads of a tap are left out where they do not fill an instruction",
        "csrc/cuda/conv_wgmma_plan.cuh",
        "const int64_t substeps = ceil_div(leads, kWgmmaSubstepDepth<scalar_t>);",
        "const int64_t substeps = leads / kWgmmaSubstepDepth<scalar_t>;",
        EMULATOR,
        CONV,
        HOPPER,
    ),
    Mutation(
        "hopper_taps_of_step",
        "a step of several taps goes on after the last of them",
        "csrc/cuda/conv_wgmma_load.cuh",
        "const bool exists = taps_left > 0;",
        "const bool exists = true;",
        EMULATOR,
        CONV,
        HOPPER,
    ),
    Mutation(
        "hopper_class_taps",
        "every residue class begins at the filter's first tap",
        "csrc/cuda/conv_wgmma_plan.cuh",
        "filter_tap = filter_tap * filters.taps[d] + first_tap;",
        "filter_tap = filter_tap * filters.taps[d];",
        EMULATOR,
        CONV,
        HOPPER,
    ),
    Mutation(
        "hopper_chunks",
        "the sums of chunks before the last are lost",
        "csrc/cuda/conv_wgmma.cuh",
        "total[i] += sums[i];",
        "total[i] = sums[i];",
        EMULATOR,
        CONV,
        HOPPER,
    ),
    Mutation(
        "hopper_runs",
        "a weight's gradient without the last of the runs that share its positions",
        "csrc/cuda/conv_wgmma_sum.cuh",
        "static_cast<int>(last - first_run_of_pair(p, pair) + 1)",
        "static_cast<int>(last - first_run_of_pair(p, pair))",
        EMULATOR,
        CONV,
        HOPPER,
    ),
    Mutation(
        "hopper_out_barrier",
        "rows of out are read from shared memory before all warps have written them",
        "csrc/cuda/conv_wgmma_out.cuh",
        "store_out_part<scalar_t>(part, sums, first, shift, t); named_barrier_sync(barrier, kWarpgroupThreads);",
        "store_out_part<scalar_t>(part, sums, first, shift, t);",
        EMULATOR,
        CONV,
        HOPPER,
    ),
    Mutation(
        "activation_of_splits",
        "sums that blocks share are stored as they are",
        "csrc/cuda/conv_sum_splits.cuh",
        "activated(p.activation, from_acc<scalar_t>(sum))",
        "from_acc<scalar_t>(sum)",
        EMULATOR,
        "test_conv2d_relu.py",
        "emulated and test_the_activation_of_the_same_bits and product",
    ),
    Mutation(
        "cpu_activation_of_tiles",
        "the last row of a tile is not activated",
        "csrc/cpu/conv_activation.h",
        "for (int64_t i = i0; i < i1; ++i, row.advance(1)) {",
        "for (int64_t i = i0; i < i1 - 1; ++i, row.advance(1)) {",
        EXTENSION,
        "test_conv2d_relu.py",
        "cpu and test_the_activation_of_the_same_bits and float32",
    ),
    Mutation(
        "variants_of_any_order",
        "ways that add in another order are said to have the same bits",
        "csrc/cuda/conv.cu",
        "kernels == own && way.order == first.order",
        "kernels == own",
        EMULATOR,
        "test_conv_choice.py",
        "test_every_way_is_right and grad_weight",
    ),
    Mutation(
        "grad_bias_last_split",
        "the bias gradient without the last of the blocks that share a channel",
        "csrc/cuda/reduce.cuh",
        "for (int64_t s = threadIdx.y; s < splits; s += kCombineY) total = combine",
        "for (int64_t s = threadIdx.y; s < splits - 1; s += kCombineY) total = combine",
        EMULATOR,
        "test_conv_grad_bias.py",
        "emulated and test_integers",
    ),
    Mutation(
        "response_norm_turned_window",
        "backward adds up the channels in a channel's window, not those in whose windows it is",
        "csrc/cpu/local_response_norm.cpp",
        "const int64_t first = std::max<int64_t>(0, c - after_), last = std::min(C_ - 1, c + before_);",
        "const int64_t first = std::max<int64_t>(0, c - before_), last = std::min(C_ - 1, c + after_);",
        EXTENSION,
        RESPONSE,
        "cpu and test_values_and_gradients and float32",
    ),
    Mutation(
        "response_norm_slope",
        "the second derivative forgets that a power's slope has another exponent",
        "csrc/ops/local_response_norm_math.h",
        "M::number(p.beta + acc_t(1)) * x * u / s",
        "M::number(p.beta) * x * u / s",
        EXTENSION,
        RESPONSE,
        "cpu and test_second_derivatives and float64",
    ),
    Mutation(
        "response_norm_halo",
        "a tile begins its terms at the first channel whose window it is in, as if windows were symmetric",
        "csrc/cuda/local_response_norm.cu",
        "across && c_begin > t.after ? c_begin - t.after",
        "across && c_begin > t.before ? c_begin - t.before + 1",
        EMULATOR,
        RESPONSE,
        "emulated and test_values_and_gradients and float32",
    ),
    Mutation(
        "group_norm_apart",
        "the variance of a group is the mean of its channels' variances",
        "csrc/cpu/group_norm.cpp",
        "squares += m2[c] + (merged > 1 ? apart * apart * (values / static_cast<double>(merged)) : 0);",
        "squares += m2[c];",
        EXTENSION,
        GROUP,
        "cpu and test_values_and_gradients and channels_last and float32",
    ),
    Mutation(
        "group_norm_weight",
        "every group's sums take the first group's weights",
        "csrc/cuda/group_norm.cu",
        "weight.get(group % G * K + k, 1)",
        "weight.get(k, 1)",
        EMULATOR,
        GROUP,
        "emulated and test_values_and_gradients and float32",
    ),
    Mutation(
        "group_norm_sample",
        "with channels last every sample's values are the first one's",
        "csrc/cuda/channels_two_pass.cuh",
        "[&](int) { return begin + r * C + c; }",
        "[&](int) { return r * C + c; }",
        EMULATOR,
        GROUP,
        "emulated and test_values_and_gradients and float32",
    ),
    Mutation(
        "maxout_pieces",
        "pieces lie one behind the other where they should be apart",
        "csrc/bindings/maxout.cpp",
        "pieces_first ? std::vector<SymInt>{N, 1, pieces, C * S}",
        "pieces_first ? std::vector<SymInt>{N, 1, channels, S}",
        EXTENSION,
        "test_maxout.py",
        "cpu and test_values_and_gradients and float32",
    ),
    Mutation(
        "gelu_density",
        "the slope of GELU lacks a factor",
        "csrc/ops/activation_math.h",
        "return M::number(0.5) * (S(1) + M::erf(M::number(kSqrtHalf) * kept)) + kept * density;",
        "return M::number(0.5) * (S(1) + M::erf(M::number(kSqrtHalf) * kept)) + density;",
        EMULATOR,
        "test_activation.py",
        "emulated and test_values_and_gradients and float32 and gelu",
    ),
    Mutation(
        "activation_residual",
        "backward finds the slope of the input without the residual",
        "csrc/cuda/activation.cu",
        "has_residual ? in[1] + in[2] : in[1]",
        "in[1]",
        EMULATOR,
        "test_activation.py",
        "emulated and test_values_and_gradients and float32 and silu",
    ),
    Mutation(
        "batch_norm_curve_residual",
        "behind a batch norm too",
        "csrc/cuda/batch_norm_activation.cuh",
        "if (has_residual) z += residual;",
        "",
        EMULATOR,
        "test_batch_norm.py",
        "emulated and test_values_and_gradients and float32 and add_silu",
    ),
    Mutation(
        "conv_curve_bypassed",
        "a convolution's curved activations are not applied",
        "csrc/cuda/activation.cuh",
        "return called_activation_value(kind, alpha, z);",
        "return z;",
        EMULATOR,
        "test_conv2d_relu.py",
        "emulated and test_each_curve and float32",
    ),
    Mutation(
        "sync_batch_norm_apart",
        "the variance over processes is the mean of theirs",
        "fastnn/_sync_batch_norm.py",
        "(variances + (means - mean).square())",
        "variances",
        EXTENSION,
        "test_sync_batch_norm.py",
        "two_processes",
    ),
)


class Copy:
    """A copy of the sources with a build of its own."""

    def __init__(self, work: Path) -> None:
        self.tree, self.build = work / "tree", work / "build"
        self.tree.mkdir(parents=True, exist_ok=True)
        for name in COPIED:
            self._update(ROOT / name, self.tree / name)
        self._run(
            [
                "cmake",
                "-G",
                "Ninja",
                "-S",
                str(self.tree),
                "-B",
                str(self.build),
                f"-DPython_EXECUTABLE={sys.executable}",
                "-DFASTNN_CUDA=off",
                "-DFASTNN_EMULATOR=on",
            ]
        )

    def _update(self, source: Path, target: Path) -> None:
        """Copies what differs, so that an earlier build stays valid for the rest."""
        if source.is_dir():
            for path in source.rglob("*"):
                if path.is_file() and path.suffix not in (".so", ".pyc") and path.name != "_build.json":
                    self._update(path, target / path.relative_to(source))
        elif not target.is_file() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def _run(self, command: list[str]) -> None:
        beside = Path(sys.executable).parent
        environment = os.environ | {"PATH": f"{beside}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")

    def make(self, *targets: str) -> None:
        self._run(["cmake", "--build", str(self.build), "--target", *targets])
        for library in (
            *self.build.glob("_C.*so"),
            *self.build.glob("libfastnn_emulator.so"),
            self.build / "_build.json",
        ):
            shutil.copyfile(library, self.tree / "fastnn" / library.name)

    def test(self, tests: str, select: str) -> str:
        """``passed``, or how it failed."""
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            *(f"tests/{name}" for name in tests.split()),
            "-k",
            select,
        ]
        environment = os.environ | {"PYTHONPATH": str(self.tree), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command,
                cwd=self.tree,
                env=environment,
                capture_output=True,
                text=True,
                timeout=TEST_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "hung"
        if done.returncode == 0:
            return "passed"
        if done.returncode == 1:
            return "failed: " + (re.findall(r"^FAILED (\S+)", done.stdout, re.M) or ["?"])[0].split("::", 1)[-1]
        if done.returncode < 0:
            return f"crashed with signal {-done.returncode}"
        raise SystemExit(f"{' '.join(command)} ran no tests:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def run(mutations: list[Mutation], work: Path) -> bool:
    """Builds, plants each mutation, prints a line for each; True when all were caught."""
    for mutation in mutations:  # all must fit before anything is built
        mutation.apply((ROOT / mutation.file).read_text(encoding="utf-8"))
    copy = Copy(work)
    print("building the copy", flush=True)
    copy.make(EXTENSION, EMULATOR)
    for tests, select in sorted({(mutation.tests, mutation.select) for mutation in mutations}):
        outcome = copy.test(tests, select)
        if outcome != "passed":
            raise SystemExit(f"without any mutation {tests} -k '{select}' {outcome}")
    caught = 0
    for mutation in mutations:
        started = time.monotonic()
        path = copy.tree / mutation.file
        original = path.read_text(encoding="utf-8")
        path.write_text(mutation.apply(original), encoding="utf-8")
        try:
            copy.make(mutation.target)
            outcome = copy.test(mutation.tests, mutation.select)
        finally:
            path.write_text(original, encoding="utf-8")
        caught += outcome != "passed"
        verdict = "SURVIVED" if outcome == "passed" else "caught"
        print(
            f"{verdict:8}  {mutation.name:24}  {mutation.what}; {outcome} ({time.monotonic() - started:.0f} s)",
            flush=True,
        )
    print(f"{caught} of {len(mutations)} mutations caught")
    return caught == len(mutations)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the mutations and stop")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names, or parts of names")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where to keep the copy and its build")
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if not arguments.only or any(part in m.name for part in arguments.only)]
    if arguments.list:
        for mutation in chosen:
            print(f"{mutation.name:24}  {mutation.file:36}  {mutation.what}")
        return 0
    if not chosen:
        parser.error(f"no mutation is called {arguments.only}")
    if arguments.work:
        return 0 if run(chosen, arguments.work.resolve()) else 1
    with tempfile.TemporaryDirectory(prefix="fastnn-mutations-") as folder:
        return 0 if run(chosen, Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
