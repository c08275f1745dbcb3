"""Float64 oracles: each op written out by its formula in plain, differentiable torch, on the CPU.

They share no kernel with what they judge: convolution is one matrix product of gathered patches, max pooling a
sequential scan of the window, batch normalisation and the LSTM cell their textbook formulas. Autograd through
them gives first and second derivatives. Speed is of no account.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional as F


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width from one number or two."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def of_each(value: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    """One number for each of ``rank`` dimensions, from one or as many."""
    return (value,) * rank if isinstance(value, int) else tuple(value)


def conv_padding(
    padding: int | tuple[int, ...] | str, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    """(begin, end) of each dimension. ``same`` puts the odd position at the end, as torch does."""
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple(side for t in total for side in (t // 2, t - t // 2))
    each = of_each(0 if padding == "valid" else padding, len(kernel))
    return tuple(side for p in each for side in (p, p))


def _taps(kernel: tuple[int, ...], dilation: tuple[int, ...], stride: tuple[int, ...], out: tuple[int, ...]):
    """For each tap, in row-major order, the positions that it has in the windows: a slice a dimension."""
    for tap in itertools.product(*(range(k) for k in kernel)):
        yield tuple(
            slice(r * d, r * d + (o - 1) * s + 1, s) for r, d, s, o in zip(tap, dilation, stride, out, strict=True)
        )


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    """y[n, k, o] = bias[k] + sum over c of k's group and r of x[n, c, o * stride + r * dilation - pad] w[k, c, r].

    Args:
        input: [N, C, spatial...] or [C, spatial...].
        weight: [K, C / groups, *kernel], which says the rank.
        bias: [K] or None.
        stride: as in ``torch.nn.functional.conv2d``, as are the next three.
        padding: one number, one a dimension, ``same`` or ``valid``.
        dilation: distance between taps.
        groups: number of groups.

    Returns:
        [N, K, positions...] or [K, positions...].
    """
    filters, channels, *kernel = weight.shape
    rank = len(kernel)
    if input.dim() == rank + 1:
        return convolution(input[None], weight, bias, stride, padding, dilation, groups)[0]
    stride, dilation = of_each(stride, rank), of_each(dilation, rank)
    pads = conv_padding(padding, tuple(kernel), dilation)
    x = F.pad(input, [p for d in reversed(range(rank)) for p in pads[2 * d : 2 * d + 2]])
    batch = x.shape[0]
    out = [
        (size - d * (k - 1) - 1) // s + 1 for size, d, k, s in zip(x.shape[2:], dilation, kernel, stride, strict=True)
    ]
    taps = [x[(slice(None), slice(None), *places)] for places in _taps(tuple(kernel), dilation, stride, tuple(out))]
    # [groups, channels * taps, batch * positions]
    patches = torch.stack(taps, 2).flatten(3).permute(1, 2, 0, 3).reshape(groups, channels * len(taps), -1)
    y = weight.reshape(groups, filters // groups, channels * len(taps)) @ patches
    y = y.reshape(filters, batch, *out).transpose(0, 1)
    return y if bias is None else y + bias.view(-1, *[1] * rank)


def conv_transpose(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    output_padding: int | tuple[int, ...] = 0,
    groups: int = 1,
    dilation: int | tuple[int, ...] = 1,
) -> Tensor:
    """Each x[n, c, o] adds x * w[c, k, r] to y[n, k, o * stride + r * dilation - padding], for k in c's group.

    Args:
        input: [N, C, spatial...] or [C, spatial...].
        weight: [C, K / groups, *kernel], which says the rank.
        bias: [K] or None.
        stride: as in ``torch.nn.functional.conv_transpose2d``, as are the next four.
        padding: positions taken off each side of y.
        output_padding: positions that y has more at its end.
        groups: number of groups.
        dilation: distance between taps.

    Returns:
        [N, K, positions...] or [K, positions...].
    """
    channels, filters, *kernel = weight.shape
    rank = len(kernel)
    if input.dim() == rank + 1:
        return conv_transpose(input[None], weight, bias, stride, padding, output_padding, groups, dilation)[0]
    stride, dilation, padding = of_each(stride, rank), of_each(dilation, rank), of_each(padding, rank)
    batch, size = input.shape[0], tuple(input.shape[2:])
    full = [(o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(size, stride, dilation, kernel, strict=True)]
    y = input.new_zeros(
        batch, groups * filters, *(f + more for f, more in zip(full, of_each(output_padding, rank), strict=True))
    )
    # [groups, filters * taps, batch * positions]
    x = input.transpose(0, 1).reshape(groups, channels // groups, -1)
    products = weight.reshape(groups, channels // groups, -1).transpose(1, 2) @ x
    products = products.reshape(groups, filters, math.prod(kernel), batch, *size)
    for tap, places in enumerate(_taps(tuple(kernel), dilation, stride, size)):
        part = products[:, :, tap].flatten(0, 1).transpose(0, 1)
        y[(slice(None), slice(None), *places)] += part
    y = y[(slice(None), slice(None), *(slice(p, e - p) for p, e in zip(padding, y.shape[2:], strict=True)))]
    return y if bias is None else y + bias.view(-1, *[1] * rank)


def locally_connected(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
) -> Tensor:
    """:func:`convolution` with filters of each position's own.

    Args:
        input: [N, C, spatial...] or [C, spatial...].
        weight: [positions..., K, C, *kernel], which says the rank.
        bias: [K, positions...] or None.
        stride: as in :func:`convolution`, as are the next two.
        padding: one number, or one a dimension.
        dilation: distance between taps.

    Returns:
        [N, K, positions...] or [K, positions...].
    """
    rank = weight.dim() // 2 - 1
    if input.dim() == rank + 1:
        return locally_connected(input[None], weight, bias, stride, padding, dilation)[0]
    out, (filters, channels, *kernel) = weight.shape[:rank], weight.shape[rank:]
    stride, dilation = of_each(stride, rank), of_each(dilation, rank)
    pads = conv_padding(padding, tuple(kernel), dilation)
    x = F.pad(input, [p for d in reversed(range(rank)) for p in pads[2 * d : 2 * d + 2]])
    taps = [x[(slice(None), slice(None), *places)] for places in _taps(tuple(kernel), dilation, stride, tuple(out))]
    patches = torch.stack(taps, 2).flatten(3)  # [N, C, taps, positions]
    y = torch.einsum("ncrp,pkcr->nkp", patches, weight.reshape(-1, filters, channels, len(taps)))
    y = y.reshape(x.shape[0], filters, *out)
    return y if bias is None else y + bias


def pool_out_size(size: int, kernel: int, stride: int, pad: int, dilation: int, ceil_mode: bool) -> int:
    """Output size of one dimension; with ``ceil_mode`` the last window must begin inside input or left padding."""
    span = size + 2 * pad - dilation * (kernel - 1) - 1
    out = -(-span // stride) + 1 if ceil_mode else span // stride + 1
    return out - 1 if ceil_mode and (out - 1) * stride >= size + pad else out


def max_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """Maximum of each window and its place.

    The window is scanned row by row. The first position inside the input is taken; after it a position is
    taken when its value is greater or is NaN. So the first of equals wins (0.0 equals -0.0), the last NaN wins,
    and a window of -inf yields its first position. Every window must have a position inside the input.

    Args:
        input: [N, C, H, W] or [C, H, W].
        kernel_size: as in ``torch.nn.functional.max_pool2d``, as are the next four.
        stride: None for the kernel's size.
        padding: positions that take no part, before and after.
        dilation: distance between a window's places.
        ceil_mode: whether the last window may hang over the end.

    Returns:
        values and int64 indices into the flattened plane [H * W], both [..., H', W'].
    """
    kernel, dilation, pad = pair(kernel_size), pair(dilation), pair(padding)
    stride = kernel if stride is None else pair(stride)
    height, width = input.shape[-2:]
    out = [
        pool_out_size(size, k, s, p, d, ceil_mode)
        for size, k, s, p, d in zip((height, width), kernel, stride, pad, dilation, strict=True)
    ]
    plane = input.detach().flatten(-2)
    rows = torch.arange(out[0])[:, None] * stride[0] - pad[0]
    columns = torch.arange(out[1])[None, :] * stride[1] - pad[1]
    best = torch.full((*input.shape[:-2], *out), float("-inf"), dtype=input.dtype)
    place = torch.full(best.shape, -1, dtype=torch.int64)
    for r in range(kernel[0]):
        for s in range(kernel[1]):
            i, j = rows + r * dilation[0], columns + s * dilation[1]
            inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
            index = (i.clamp(0, height - 1) * width + j.clamp(0, width - 1)).expand(best.shape)
            value = plane.gather(-1, index.flatten(-2)).view(best.shape)
            take = inside & ((place < 0) | (value > best) | value.isnan())
            best = torch.where(take, value, best)
            place = torch.where(take, index, place)
    values = input.flatten(-2).gather(-1, place.flatten(-2)).view(best.shape)
    return values, place


def maxout(input: Tensor, pieces: int, pieces_first: bool = False) -> Tensor:
    """Y[n, c] = max over j of x[n, c * pieces + j], or with ``pieces_first`` of x[n, j * C + c].

    The first of equals is taken, and a NaN wherever there is one.

    Args:
        input: [N, C * pieces, ...].
        pieces: channels of an output (Goodfellow et al. 2013).
        pieces_first: the order of the channels.
    """
    channels = input.shape[1] // pieces
    apart = [input[:, j::pieces] if not pieces_first else input[:, j * channels :][:, :channels] for j in range(pieces)]
    best = apart[0]
    for piece in apart[1:]:
        best = torch.where((piece > best) | piece.isnan(), piece, best)
    return best


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Y = weight * (x - mean) / sqrt(var + eps) + bias per channel (Ioffe and Szegedy 2015).

    Args:
        input: [N, C, ...].
        running_mean: [C] or None; not modified.
        running_var: [C] or None; not modified.
        weight: [C] or None.
        bias: [C] or None.
        training: take mean and (biased) variance from the batch, and move the running statistics, the variance
            unbiased.
        momentum: share of this batch in the new running statistics.
        eps: added to the variance.

    Returns:
        y [N, C, ...] and the new running statistics [C], the old ones where they do not move.
    """
    axes = [0, *range(2, input.dim())]
    shape = [1, -1] + [1] * (input.dim() - 2)
    if training and input.numel():
        mean = input.mean(axes)
        centred = input - mean.view(shape)
        var = (centred * centred).mean(axes)
        count = input.numel() // input.shape[1]
        if running_mean is not None:
            running_mean = (1 - momentum) * running_mean + momentum * mean.detach()
        if running_var is not None:
            running_var = (1 - momentum) * running_var + momentum * var.detach() * (count / (count - 1))
    elif training:
        centred, var = input, input.new_zeros(input.shape[1])
    else:
        centred, var = input - running_mean.view(shape), running_var
    y = centred / (var + eps).sqrt().view(shape)
    if weight is not None:
        y = y * weight.view(shape)
    if bias is not None:
        y = y + bias.view(shape)
    return y, running_mean, running_var


def activation(z: Tensor, name: str, alpha: float) -> Tensor:
    """The activations of :func:`fastnn.functional.activation`, by their definitions.

    Args:
        z: any shape.
        name: ``relu``, ``leaky_relu`` (Maas et al. 2013), ``elu`` (Clevert et al. 2016), ``softplus``, ``sigmoid``,
            ``tanh``, ``hard_sigmoid``, ``gelu`` and ``gelu_tanh`` (Hendrycks and Gimpel 2016), ``silu`` or
            ``identity``.
        alpha: ``negative_slope`` of ``leaky_relu``, ``alpha`` of ``elu``, ``beta`` of ``softplus``.
    """
    if name == "identity":
        return z
    if name in ("sigmoid", "tanh"):
        return getattr(z, name)()
    if name == "hard_sigmoid":
        return (z + 3).clamp(0, 6) / 6
    if name == "silu":
        return z * z.sigmoid()
    if name == "gelu":
        return 0.5 * z * (1 + (z * 0.5**0.5).erf())
    if name == "gelu_tanh":
        return 0.5 * z * (1 + ((2 / math.pi) ** 0.5 * (z + 0.044715 * z**3)).tanh())
    if name == "softplus":
        t = alpha * z
        return torch.where(t > 20, z, (t.clamp(min=0) + (-t.abs()).exp().log1p()) / alpha)
    # Where z is not below 0, what stands for it in the other branch must have a derivative that is finite.
    below = torch.where(z <= 0, z, 0.0)
    others = {"relu": torch.zeros_like(z), "leaky_relu": alpha * below, "elu": alpha * below.expm1()}
    return torch.where(z <= 0, others[name], z)


def group_norm(
    input: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Y = weight * (x - mean) / sqrt(var + eps) + bias, statistics by group of a sample (Wu and He 2018).

    Args:
        input: [N, C, ...].
        groups: divides C; C for instance normalisation (Ulyanov et al. 2016).
        weight: [C] or None.
        bias: [C] or None.
        eps: added to the biased variance.
    """
    y = input
    if input.numel():
        x = input.reshape(input.shape[0], groups, -1)
        centred = x - x.mean(2, keepdim=True)
        var = (centred * centred).mean(2, keepdim=True)
        y = (centred / (var + eps).sqrt()).reshape(input.shape)
    shape = [1, -1] + [1] * (input.dim() - 2)
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def local_response_norm(input: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Y[c] = x[c] / (k + alpha / size * sum over c - size // 2 <= j <= c + (size - 1) // 2 of x[j]^2)^beta.

    Args:
        input: [N, C, ...].
        size: channels of a window (Krizhevsky et al. 2012).
        alpha: of the mean square.
        beta: exponent.
        k: added to the mean square.
    """
    return input / (k + alpha / size * channel_windows(input * input, size)) ** beta


def channel_windows(input: Tensor, size: int) -> Tensor:
    """Sums over the channels c - size // 2 to c + (size - 1) // 2 that there are, of [N, C, ...]."""
    channels = torch.arange(input.shape[1])
    ahead = channels[None, :] - channels[:, None]
    window = (ahead >= -(size // 2)) & (ahead <= (size - 1) // 2)
    # Taken out, not multiplied by 0: an infinity reaches its own windows alone.
    parts = [input[:, row.nonzero().flatten()].sum(1) for row in window]
    return torch.stack(parts, 1)


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM (Hochreiter and Schmidhuber 1997; forget gate of Gers et al. 2000).

    Args:
        input: [N, I].
        hx: hidden and cell state, [N, H] each.
        w_ih: [4H, I], gates in the order i, f, g, o.
        w_hh: [4H, H], likewise.
        b_ih: [4H] or None.
        b_hh: [4H] or None.

    Returns:
        the new hidden and cell state, [N, H] each.
    """
    hidden, cell = hx
    gates = input @ w_ih.T + hidden @ w_hh.T
    for bias in (b_ih, b_hh):
        gates = gates if bias is None else gates + bias
    i, f, g, o = gates.unflatten(1, (4, hidden.shape[1])).unbind(1)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell
