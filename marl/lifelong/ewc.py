"""Elastic weight consolidation: weights that mattered to earlier tasks are held near where they were.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017 (one term for each past task); Schwarz
et al., "Progress & Compress", 2018 (one running term, and the Fisher of every task brought to one scale).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Concatenate, Literal, NamedTuple, ParamSpec, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor

from marl.config import suggestion
from marl.modules.stacked import Stacked
from marl.types import State, UserError

Mode: TypeAlias = Literal["separate", "online", "last"]
Weights: TypeAlias = dict[str, Tensor]
"""By the name of a stacked network's parameter, ``[P, N, ...]`` each."""

StackedT = TypeVar("StackedT", bound=Stacked)
Rows = ParamSpec("Rows")


class Anchor(NamedTuple):
    """Where the weights were when a task had been learnt, and how much each of them mattered."""

    weights: Weights
    fisher: Weights


def fisher(
    network: StackedT, value: Callable[Concatenate[StackedT, Rows], Tensor], *rows: Rows.args, **_: Rows.kwargs
) -> Weights:
    """The diagonal of the Fisher information of every network of a stack, its largest entry scaled to 1.

    Of network (p, n): ``F_k = mean over b of (d value[p, n, b] / d theta_k)^2``, divided by the largest F_k among all
    weights of that network, so that tasks and games whose values differ in size weigh the same; a network whose value
    depends on none of its weights keeps zeros. For the mean of a Gaussian with variance 1 this is the Fisher
    information up to that scale. Gradients of the TD error would not do: they vanish where learning has converged.

    One backward pass for each b, of all networks together.

    Args:
        network: the stack.
        value: ``value(network, *rows)`` is ``[P, N, B]``, entry (p, n, b) a function of network (p, n) and row b alone;
            for action values it is ``marl.modules.q_values.worth``.
        rows: what ``value`` takes besides, ``[P, N, B, ...]`` each: for ``worth`` observations and actions taken.
    """
    parameters = dict(network.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    batch: list[Tensor] = [row for row in rows if isinstance(row, Tensor)]
    for b in range(batch[0].shape[2]):
        one = value(network, *(row[:, :, b : b + 1] for row in batch))  # type: ignore[call-arg]
        gradients = torch.autograd.grad(one.sum(), list(parameters.values()))
        for sum_, gradient in zip(total.values(), gradients, strict=True):
            sum_.addcmul_(gradient, gradient)
    return total
