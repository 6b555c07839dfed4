"""P x N networks as one module: every layer is a single batched matrix product.

All parameters of a stacked module live in one tensor ``[P, N, K]`` (K numbers a network), of which the layers' weights
are views: an optimiser step, a target update or a per-network norm is then one operation.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from marl.streams import Streams

ModuleT = TypeVar("ModuleT", bound="Stacked")


class Stacked(nn.Module):
    """Base of modules whose parameters live in one tensor: a subclass ends its ``__init__`` with ``self.flatten()``.

    Attributes:
        flat: the parameters, ``[P, N, K]``.
    """

    flat: Flat

    def flatten(self) -> None:
        """Move the parameters, each ``[P, N, ...]``, into one tensor that they view from then on."""
        self.flat = Flat(self)

    def target_copy(self: ModuleT) -> ModuleT:
        """A copy with parameters of its own that takes no gradient."""
        twin = copy.deepcopy(self)
        twin.requires_grad_(False)
        twin.flatten()
        return twin

    @torch.no_grad()
    def follow(self: ModuleT, online: ModuleT, tau: Tensor) -> None:
        """Move every parameter the fraction ``tau`` (``[P, 1, 1]``) towards ``online``'s (Polyak averaging)."""
        self.flat.data.lerp_(online.flat.data, tau)


class StackedLinear(nn.Module):
    """``y = x W + b`` for P x N layers at once, initialised as ``torch.nn.Linear`` is (uniform on +-1/sqrt(in)).

    Args:
        init: the members' random streams.
        networks: N, networks per member.
        n_in: input width.
        n_out: output width.
        gain: start with orthonormal rows or columns of weights times ``gain`` and biases of 0 instead (Saxe et al.
            2014).
    """

    def __init__(self, init: Streams, networks: int, n_in: int, n_out: int, gain: float | None = None) -> None:
        super().__init__()
        if gain is None:
            bound = 1 / math.sqrt(n_in)
            weight = (2 * init.uniform(networks, n_in, n_out) - 1) * bound
            bias = (2 * init.uniform(networks, 1, n_out) - 1) * bound
        else:
            weight = orthonormal(init.normal(networks, n_in, n_out)) * gain
            bias = weight.new_zeros(len(init), networks, 1, n_out)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor, pick: slice | None = None) -> Tensor:
        """``[P * N, B, in]`` -> ``[P * N, B, out]``; ``pick`` takes part of a member's networks."""
        parts = (self.weight, self.bias) if pick is None else (self.weight[:, pick], self.bias[:, pick])
        weight, bias = (part.flatten(0, 1) for part in parts)
        if weight.shape[-1] == 1:  # a product with one column is slow: as slow as with 64
            return (x * weight.transpose(1, 2)).sum(-1, keepdim=True) + bias
        return torch.baddbmm(bias, x, weight)


def orthonormal(normal: Tensor) -> Tensor:
    """From matrices ``[..., n, m]`` of standard normal numbers, uniformly distributed ones whose shorter side's vectors
    are orthonormal (Mezzadri 2007: the factor Q, its signs made those of R's diagonal)."""
    wide = normal.shape[-2] < normal.shape[-1]
    q, r = torch.linalg.qr(normal.mT if wide else normal)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return (q.mT if wide else q).contiguous()


class StackedMLP(Stacked):
    """P x N multi-layer perceptrons with a linear end.

    With ``networks = 1`` the agents of the input share the network: they are folded into the rows.

    Args:
        init: the members' random streams.
        networks: N, or 1 to share.
        sizes: widths from the input to the output.
        activation: between layers, ``"relu"`` or ``"tanh"``.
        gains: one for each layer, for orthogonal initialisation (see ``StackedLinear``).
    """

    def __init__(
        self,
        init: Streams,
        networks: int,
        sizes: Sequence[int],
        activation: Literal["relu", "tanh"] = "relu",
        gains: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.networks = networks
        self.activation = {"relu": torch.relu_, "tanh": torch.tanh_}[activation]
        each = [None] * (len(sizes) - 1) if gains is None else gains
        self.layers = nn.ModuleList(
            StackedLinear(init, networks, n_in, n_out, gain)
            for (n_in, n_out), gain in zip(itertools.pairwise(sizes), each, strict=True)
        )
        self.flatten()

    def forward(self, x: Tensor) -> Tensor:
        """``[P, N, B, in]`` -> ``[P, N, B, out]``."""
        return self.run(x, None)

    def run(self, x: Tensor, pick: slice | None) -> Tensor:
        """The same with a part of each member's networks: N is then how many those are."""
        members, agents, rows, _ = x.shape
        networks = self.networks if pick is None else len(range(self.networks)[pick])
        x = x.reshape(members * networks, -1, x.shape[-1])
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x, pick))  # in place: a view here would make autograd copy
        return last(x, pick).view(members, agents, rows, -1)


class Flat:
    """A stacked module's parameters as one tensor ``[P, N, K]`` that its layers view, and one for the gradients."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = list(module.parameters())
        self.data = torch.cat([p.detach().flatten(2) for p in self.parameters], dim=-1)
        self.grad = torch.zeros_like(self.data)
        start = 0
        for p in self.parameters:
            stop = start + math.prod(p.shape[2:])
            p.data = self.data[:, :, start:stop].view(p.shape)
            start = stop

    def __deepcopy__(self, memo: dict[int, object]) -> None:
        """A copied module makes its own: views cannot be copied one by one."""
