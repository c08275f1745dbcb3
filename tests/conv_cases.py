"""Convolutions that reach every kernel of every backend, each on its edges."""

from fastnn.testing.cases import Conv2dCase

# Each way to cut a depthwise convolution up, on its edges: windows that are unrolled and others, channels of whole
# vectors and others, blocks of many images and of a part of one, planes on any boundary, several tiles of all that.
DEPTHWISE = [
    Conv2dCase(
        id="depthwise_" + name,
        shape=shape,
        filters=shape[1] * multiple,
        kernel=kernel,
        groups=shape[1],
        small=True,
        **options,
    )
    for name, shape, kernel, multiple, options in (
        ("3x3", (2, 19, 7, 7), (3, 3), 1, {"padding": 1}),
        ("wide_padding", (2, 19, 7, 7), (3, 3), 1, {"padding": 3}),
        ("no_padding", (2, 24, 8, 9), (3, 3), 1, {"bias": False}),
        ("stride_2", (2, 17, 14, 14), (3, 3), 1, {"stride": 2, "padding": 1}),
        ("stride_2_wide_padding", (2, 16, 14, 15), (3, 3), 1, {"stride": 2, "padding": 2}),
        ("stride_2_no_padding", (2, 8, 11, 14), (3, 3), 1, {"stride": 2}),
        ("stride_1_2", (2, 20, 9, 20), (3, 3), 1, {"stride": (1, 2), "padding": 1}),
        ("dilated", (2, 20, 9, 20), (3, 3), 1, {"dilation": (1, 2), "padding": 2}),
        ("dilated_stride_2", (1, 8, 15, 16), (3, 3), 1, {"dilation": (2, 3), "stride": 2, "padding": 3}),
        ("bands", (1, 5, 60, 112), (3, 3), 1, {"padding": 1}),
        ("wide_image", (1, 3, 6, 300), (3, 3), 1, {"stride": 2}),
        ("wide_image_vectors", (1, 4, 7, 150), (3, 3), 1, {"padding": 1}),
        ("pieces_of_rows", (1, 2, 10, 3000), (3, 3), 1, {"padding": 1}),
        ("5x5", (2, 20, 11, 13), (5, 5), 1, {"padding": 2}),
        ("5x5_stride_2", (2, 9, 13, 13), (5, 5), 1, {"stride": 2, "padding": 2}),
        ("5x5_stride_2_vectors", (2, 12, 15, 14), (5, 5), 1, {"stride": 2, "padding": 1}),
        ("7x7", (2, 20, 9, 10), (7, 7), 1, {"padding": 3}),
        ("stride_over_kernel", (2, 9, 16, 16), (3, 3), 1, {"stride": 5}),
        ("stride_3", (2, 8, 16, 13), (3, 3), 1, {"stride": 3, "padding": 1}),
        ("tall_filter", (1, 3, 20, 20), (12, 11), 1, {}),
        ("1x1_stride_3", (2, 6, 4, 4), (1, 1), 1, {"stride": 3}),
        ("even_filter", (2, 8, 9, 10), (2, 4), 1, {"padding": 1}),
        ("one_image", (1, 40, 14, 14), (3, 3), 1, {"padding": 1}),
        ("many_images", (70, 6, 4, 4), (3, 3), 1, {"padding": 1}),
        ("many_channels", (1, 264, 5, 6), (3, 3), 1, {"padding": 1}),
        ("lanes_over", (3, 36, 9, 9), (3, 3), 1, {"padding": 1}),
        ("double", (2, 8, 9, 8), (3, 3), 2, {"padding": 1}),
        ("one_position", (3, 12, 1, 1), (3, 3), 1, {"padding": 1}),
        ("one_channel", (2, 1, 9, 12), (3, 3), 1, {"padding": 1}),
    )
]

# Groups of few channels: vectors of leads and results that are whole and that are not, filters staged in one go and in
# several, groups beyond a block's lanes, transposed windows.
SMALL_GROUPS = [
    Conv2dCase(
        id="small_groups_" + name, shape=shape, filters=filters, kernel=kernel, groups=groups, small=True, **options
    )
    for name, shape, filters, kernel, groups, options in (
        ("of_4", (2, 32, 9, 10), 32, (3, 3), 8, {"padding": 1}),
        ("of_4_stride_2", (2, 16, 11, 12), 16, (3, 3), 4, {"stride": 2, "padding": 1}),
        ("of_8", (2, 24, 7, 9), 24, (3, 3), 3, {"padding": 1}),
        ("of_2", (3, 8, 6, 7), 8, (3, 3), 4, {"padding": 1}),
        ("of_3_to_5", (2, 9, 7, 8), 15, (3, 2), 3, {"padding": 1, "bias": False}),
        ("of_8_to_6", (2, 16, 7, 8), 12, (3, 3), 2, {"stride": (2, 1), "dilation": (1, 2), "padding": 2}),
        ("of_16", (1, 32, 5, 6), 32, (3, 3), 2, {"padding": 1}),
        ("of_16_5x5", (1, 32, 7, 6), 32, (5, 5), 2, {"padding": 2}),
        ("many_groups", (1, 160, 5, 5), 160, (3, 3), 40, {"padding": 1}),
        ("wide_image", (1, 8, 3, 150), 8, (3, 3), 2, {"padding": 1}),
        ("one_result_each", (2, 12, 6, 7), 3, (3, 3), 3, {"padding": 1}),
        ("stride_3", (2, 8, 13, 12), 8, (2, 2), 2, {"stride": 3}),
    )
]

# Products in place, copied, interleaved or transposed (csrc/cpu/conv_product.h, conv_grad_weight.h), and by pairs of
# bfloat16 where the processor multiplies them (conv_pairs_pack.h): with an odd element at the end of a tap, a block or
# the whole reduction.
MANY_CHANNELS = [
    Conv2dCase(id="many_channels_" + name, shape=shape, filters=filters, kernel=kernel, **options)
    for name, shape, filters, kernel, options in (
        ("in_place", (2, 34, 9, 11), 40, (3, 3), {"padding": 1}),
        ("two_blocks", (1, 64, 15, 14), 72, (3, 3), {"padding": 1}),
        ("deep", (2, 1090, 3, 5), 17, (1, 1), {}),
        ("stride_2", (2, 32, 13, 15), 48, (3, 3), {"stride": 2, "padding": 1}),
        ("stride_2_1x1", (2, 32, 14, 14), 24, (1, 1), {"stride": 2}),
        ("stride_3", (1, 20, 13, 14), 24, (3, 3), {"stride": 3}),
        ("dilated", (1, 24, 13, 12), 16, (3, 3), {"dilation": 2, "padding": 2}),
        ("odd_channels", (2, 33, 7, 7), 35, (3, 3), {"padding": 1}),
        ("first_layer", (2, 3, 30, 31), 24, (7, 7), {"stride": 2, "padding": 3}),
        ("wide_filter", (1, 10, 12, 30), 12, (9, 11), {"padding": 5}),
        ("many_positions", (5, 16, 20, 21), 18, (3, 3), {"bias": False}),
        ("one_place", (2, 20, 5, 5), 40, (5, 5), {}),
        ("short_rows", (9, 48, 3, 3), 50, (3, 3), {"padding": 1}),
        ("samples_innermost", (8, 32, 7, 6), 24, (3, 3), {"padding": 1}),
        ("samples_innermost_stride_2", (16, 24, 9, 8), 40, (3, 3), {"stride": 2, "padding": 1}),
        ("long_rows", (2, 16, 6, 40), 40, (3, 3), {"padding": 1}),
        ("samples_of_a_place_in_two_blocks", (7, 32, 13, 13), 24, (3, 3), {}),
        ("grouped", (2, 40, 9, 9), 60, (3, 3), {"groups": 2, "padding": 1}),
        ("four_channels_a_group", (2, 32, 9, 9), 32, (3, 3), {"groups": 8, "padding": 1}),
    )
]

# Products of csrc/cuda/conv_product.cuh, by tensor cores or in float32 by CUDA cores: each loader and tile, their edges
# in rows, columns and k, k cut in chunks that one block adds or several do.
PRODUCTS = [
    Conv2dCase(id="product_" + name, shape=shape, filters=filters, kernel=kernel, small=True, **options)
    for name, shape, filters, kernel, options in (
        ("whole_tiles", (2, 64, 8, 16), 64, (3, 3), {"padding": 1}),
        ("every_edge", (3, 40, 9, 7), 72, (3, 3), {"padding": 1}),
        ("large_tile", (9, 16, 31, 31), 72, (1, 1), {}),
        ("large_tile_of_floats", (5, 16, 31, 31), 72, (1, 1), {}),
        ("large_tile_edges", (8, 24, 33, 34), 120, (2, 1), {"bias": False}),
        ("chunks", (2, 136, 6, 5), 24, (3, 3), {"padding": 1}),
        ("chunks_of_one_tap", (1, 1100, 4, 4), 16, (1, 1), {}),
        ("few_leads", (2, 5, 13, 12), 16, (5, 5), {"padding": 2}),
        ("few_leads_chunks", (1, 19, 11, 9), 12, (11, 7), {"padding": 3}),
        ("leads_not_a_vector", (2, 30, 8, 8), 30, (3, 3), {"padding": 1}),
        ("stride_2", (2, 32, 9, 9), 48, (3, 3), {"stride": 2, "padding": 1}),
        ("stride_3_dilated", (1, 24, 14, 13), 32, (3, 3), {"stride": 3, "dilation": 2, "padding": 2}),
        ("groups", (2, 96, 7, 7), 64, (3, 3), {"groups": 2, "padding": 1}),
        ("groups_few_leads", (2, 24, 7, 7), 48, (3, 3), {"groups": 3, "padding": 1}),
        ("few_rows", (2, 64, 7, 7), 9, (1, 1), {}),
        ("one_image", (1, 128, 7, 7), 80, (3, 3), {"padding": 1}),
        ("positions_not_a_vector", (2, 32, 5, 5), 32, (1, 1), {}),
    )
]

# Products on Hopper's tensor cores (csrc/cuda/conv_wgmma_plan.cuh): for each direction every tile, its edges in rows,
# columns and k, one chunk of k and several, k shared by blocks, residue classes of which some have no tap, groups.
# With each the kernels that the emulated device, of four multiprocessors, is to use for output and gradients.
FEW, WIDE, TALL, SQUARE = "taps_few_rows", "taps_wide", "taps_tall", "taps_square"
FEW_ACROSS, WIDE_ACROSS = "taps_across_few_rows", "taps_across_wide"
TALL_ACROSS, SQUARE_ACROSS = "taps_across_tall", "taps_across_square"
TURNS, SQUARE_POSITIONS, TALL_POSITIONS = "positions_turns", "positions_square", "positions_tall"
HOPPER = [
    (Conv2dCase(id="hopper_" + name, shape=shape, filters=filters, kernel=kernel, small=True, **options), kernels)
    for name, shape, filters, kernel, options, kernels in (
        ("few_rows", (2, 64, 8, 16), 64, (3, 3), {"padding": 1}, (FEW, FEW_ACROSS, TURNS)),
        ("wide", (4, 64, 19, 19), 256, (1, 1), {}, (WIDE, FEW_ACROSS, SQUARE_POSITIONS)),
        ("wide_across", (3, 136, 20, 21), 72, (1, 1), {"bias": False}, (TALL, WIDE_ACROSS, SQUARE_POSITIONS)),
        ("tall_chunks", (2, 136, 13, 14), 136, (3, 3), {"padding": 1}, (TALL, TALL_ACROSS, SQUARE_POSITIONS)),
        ("square_edges", (3, 40, 9, 7), 72, (3, 3), {"padding": 1}, (SQUARE, FEW_ACROSS, SQUARE_POSITIONS)),
        ("splits", (1, 2048, 4, 3), 72, (1, 1), {}, (SQUARE, SQUARE_ACROSS, SQUARE_POSITIONS)),
        ("splits_across", (1, 72, 4, 3), 2048, (1, 1), {}, (SQUARE, SQUARE_ACROSS, SQUARE_POSITIONS)),
        ("stride_2", (2, 32, 9, 9), 48, (3, 3), {"stride": 2, "padding": 1}, (FEW, FEW_ACROSS, TURNS)),
        ("stride_2_1x1", (2, 32, 14, 14), 24, (1, 1), {"stride": 2}, (FEW, FEW_ACROSS, TURNS)),
        (
            "stride_3_dilated",
            (1, 24, 14, 13),
            32,
            (3, 3),
            {"stride": 3, "dilation": 2, "padding": 2},
            (FEW, FEW_ACROSS, TURNS),
        ),
        (
            "mixed",
            (2, 24, 9, 20),
            72,
            (3, 3),
            {"stride": (1, 2), "dilation": (2, 1), "padding": (2, 0)},
            (SQUARE, FEW_ACROSS, SQUARE_POSITIONS),
        ),
        ("even_filter", (2, 24, 8, 9), 88, (2, 4), {"padding": (0, 1)}, (SQUARE, FEW_ACROSS, SQUARE_POSITIONS)),
        ("5x5", (2, 32, 9, 11), 40, (5, 5), {"padding": 2}, (FEW, FEW_ACROSS, TURNS)),
        ("four_taps_a_step", (2, 16, 9, 11), 32, (5, 5), {"padding": 2}, (FEW, FEW_ACROSS, TURNS)),
        ("four_taps_a_step_across", (2, 32, 9, 9), 16, (3, 3), {"stride": 2, "padding": 1}, (FEW, FEW_ACROSS, TURNS)),
        ("groups_of_16", (2, 48, 7, 7), 48, (3, 3), {"groups": 3, "padding": 1}, (FEW, FEW_ACROSS, TURNS)),
        ("groups", (2, 96, 7, 7), 64, (3, 3), {"groups": 2, "padding": 1}, (FEW, FEW_ACROSS, TURNS)),
        ("groups_of_80", (2, 160, 5, 6), 160, (3, 3), {"groups": 2}, (SQUARE, SQUARE_ACROSS, SQUARE_POSITIONS)),
        ("one_image", (1, 128, 7, 7), 80, (3, 3), {"padding": 1}, (SQUARE, SQUARE_ACROSS, SQUARE_POSITIONS)),
    )
]
HOPPER_CASES = [case for case, _ in HOPPER]
