"""P x N convolutional networks as one: a convolution with P x N groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from marl.streams import Streams
from marl.types import UserError


class Filters(NamedTuple):
    """One layer: how many square filters (channels out), their side in pixels, and by how many pixels they move."""

    channels: int
    size: int
    stride: int


ConvName: TypeAlias = Literal["auto", "small", "nature", "none"]

STACKS: dict[str, tuple[Filters, ...]] = {
    "small": (Filters(16, 3, 1),),
    "nature": (Filters(32, 8, 4), Filters(64, 4, 2), Filters(64, 3, 1)),
}
"""``small``: Young and Tian 2019 (MinAtar), for pictures of 10 x 10; ``nature``: Mnih et al. 2015, for 84 x 84."""


class StackedConv(nn.Module):
    """``torch.nn.Conv2d`` without padding for P x N networks at once, initialised alike (uniform on +-1/sqrt(fan in)).

    Args:
        init: the members' random streams.
        networks: N, networks per member.
        n_in: channels of a network's picture.
        filters: of a network.
    """

    def __init__(self, init: Streams, networks: int, n_in: int, filters: Filters) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_in * filters.size**2)
        weight = 2 * init.uniform(networks, filters.channels, n_in, filters.size, filters.size) - 1
        bias = 2 * init.uniform(networks, filters.channels) - 1
        self.weight, self.bias = nn.Parameter(weight * bound), nn.Parameter(bias * bound)
        self.stride = filters.stride

    def forward(self, x: Tensor) -> Tensor:
        """``[B, P * N * in, H, W]`` -> ``[B, P * N * out, H', W']``: the networks' channels side by side."""
        groups = self.weight.shape[0] * self.weight.shape[1]
        return conv2d(x, self.weight.flatten(0, 2), self.bias.flatten(), stride=self.stride, groups=groups)


class ConvStack(nn.Module):
    """Layers of convolutions, each with ReLU behind it, from pictures to flat features.

    Args:
        init: the members' random streams.
        networks: N, networks per member.
        pixels: (channels, height, width) of a picture.
        layers: the filters of each layer.

    Attributes:
        width: how many features come out.
    """

    def __init__(self, init: Streams, networks: int, pixels: tuple[int, int, int], layers: Sequence[Filters]) -> None:
        super().__init__()
        self.pixels = pixels
        channels = [pixels[0], *(layer.channels for layer in layers)]
        self.layers = nn.ModuleList(
            StackedConv(init, networks, n_in, layer) for n_in, layer in zip(channels[:-1], layers, strict=True)
        )
        self.width = channels[-1] * math.prod(sides(pixels, layers))

    def forward(self, x: Tensor) -> Tensor:
        """``[P, N, B, C H W]`` -> ``[P, N, B, width]``; within a picture channels come first, then rows."""
        members, networks, rows, _ = x.shape
        x = x.flatten(0, 1).transpose(0, 1).reshape(rows, -1, *self.pixels[1:])
        for layer in self.layers:
            x = torch.relu_(layer(x))
        return x.reshape(rows, members, networks, -1).permute(1, 2, 0, 3)


def sides(pixels: tuple[int, int, int], layers: Sequence[Filters]) -> tuple[int, int]:
    """Height and width of what comes out of the layers; 0 or less where the picture is too small for them."""
    height, width = pixels[1:]
    for layer in layers:
        height, width = ((side - layer.size) // layer.stride + 1 for side in (height, width))
    return height, width


def stack_for(pixels: tuple[int, int, int], conv: ConvName) -> tuple[Filters, ...]:
    """The layers of that name; ``auto``: Nature's where a picture is large enough for them (36 x 36), else small ones.

    ``none`` has no layers: its pictures are plain numbers. Raises ``UserError`` where the picture is too small.
    """
    if conv == "none":
        return ()
    if conv == "auto":
        conv = "nature" if min(sides(pixels, STACKS["nature"])) >= 1 else "small"
    if min(sides(pixels, STACKS[conv])) < 1:
        least = {"small": 3, "nature": 36}[conv]
        other = "; choose small" if min(pixels[1:]) >= 3 else ""
        raise UserError(
            f"conv: {conv} needs pictures of {least} x {least} pixels or more, got {pixels[1]} x {pixels[2]}{other}"
        )
    return STACKS[conv]
