"""Elastic weight consolidation: weights that mattered to earlier tasks are held near where they were.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017 (a term for each past task);
Schwarz et al., "Progress & Compress", 2018 (one running term, and every task's Fisher information on one scale).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from marl.config import suggestion
from marl.modules.stacked import Stacked
from marl.types import State, UserError

Mode: TypeAlias = Literal["separate", "online", "last"]
Weights: TypeAlias = dict[str, Tensor]
"""By the name of a stacked network's parameter, ``[P, N, ...]`` each."""


class Anchor(NamedTuple):
    """Where the weights were when a task had been learnt, and how much each of them mattered; 0 where it was not."""

    weights: Weights
    fisher: Weights


def fisher(network: Stacked, value: Callable[..., Tensor], *rows: Tensor) -> Weights:
    """The diagonal of the Fisher information of every network of a stack, scaled so that its largest entry is 1.

    Of network (p, n): ``F_k = mean over b of (d value[p, n, b] / d theta_k)^2``, then divided by the largest F_k of all
    weights of that network, so that tasks whose values differ in size weigh the same; a network whose value depends on
    none of its weights keeps zeros. Gradients of the TD error would not do: they vanish where learning has converged.
    The time is that of one backward pass for each b, of all networks together.

    Args:
        network: the stack.
        value: ``value(network, *rows)`` is ``[P, N, B]``, its entry (p, n, b) a function of network (p, n) and of row b
            alone; for action values it is ``marl.modules.q_values.worth``.
        rows: what ``value`` takes besides, ``[P, N, B, ...]`` each; for ``worth`` observations and actions taken.
    """
    parameters = dict(network.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for b in range(rows[0].shape[2]):
        values = value(network, *(row[:, :, b : b + 1] for row in rows))
        gradients = torch.autograd.grad(values.sum(), list(parameters.values()))
        for mass, gradient in zip(total.values(), gradients, strict=True):
            mass.addcmul_(gradient, gradient)
    largest = torch.stack([mass.flatten(2).amax(-1) for mass in total.values()]).amax(0)
    largest = torch.where(largest > 0, largest, 1.0)
    return {name: mass / _to(largest, mass) for name, mass in total.items()}


class EWC:
    """The penalty ``strength / 2 sum over anchors and weights of F (theta - theta*)^2`` of a stack of networks.

    It is a ``marl.algos.dqn.Penalty``: ``learner.penalties.append(ewc)``. Each network of the stack has anchors of its
    own. However many there are, the penalty costs one pass over the weights: a sum of parabolas is a parabola.

    Memory: an anchor is two stacks of float32 (8 P N K bytes with K weights a network), the parabola two more;
    ``separate`` has one anchor for each task that any of the networks has learnt, the other modes have one.

    Args:
        strength: lambda, 0 or more.
        mode: ``separate``: one anchor for each past task; a task that is learnt again replaces its own. ``online``: one
            anchor at the newest weights, with ``F = decay F_before + F_new``. ``last``: only the newest task's.
        decay: gamma, 0 .. 1; only ``online`` reads it.

    Attributes:
        anchors: by task; modes with one anchor keep it as ``0``.

    Raises:
        UserError: an argument is out of its range.
    """

    def __init__(self, strength: float, mode: Mode = "separate", decay: float = 0.95) -> None:
        if not (math.isfinite(strength) and strength >= 0):
            raise UserError(f"strength of EWC: expected a finite number, 0 or more, got {strength}")
        if mode not in get_args(Mode):
            raise UserError(f"no mode {mode!r} of EWC{suggestion(mode, get_args(Mode))}")
        if not 0 <= decay <= 1:
            raise UserError(f"decay of EWC: expected a number from 0 to 1, got {decay}")
        self.strength, self.mode, self.decay = strength, mode, decay
        self.anchors: dict[int, Anchor] = {}
        self._parabola = _Parabola(self.anchors)

    def remember(self, network: Stacked, fisher: Mapping[str, Tensor], tasks: Tensor) -> None:
        """Hold on to the weights as they are now.

        Args:
            network: the stack.
            fisher: of these weights, from ``fisher``.
            tasks: ``[P, N]`` int64, the task that each network has just learnt; negative: none, its anchors stay.
        """
        weights = {name: p.detach() for name, p in network.named_parameters()}
        together = tasks if self.mode == "separate" else tasks.clamp(max=0)
        for task in together[together >= 0].unique().tolist():
            chosen = together == task
            zeros = {name: torch.zeros_like(w) for name, w in weights.items()}
            old = self.anchors.get(task, Anchor(zeros, zeros))
            kept = self.decay if self.mode == "online" else 0.0
            mass = {name: kept * f + fisher[name] for name, f in old.fisher.items()}
            self.anchors[task] = Anchor(_where(chosen, weights, old.weights), _where(chosen, mass, old.fisher))
        self._parabola = _Parabola(self.anchors)

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Of each network, ``[P, N]``; before the first anchor 0, ``[1, 1]``.

        Args:
            parameters: those of the stack, by name.
        """
        return self.strength / 2 * self._parabola.at(parameters)

    def __call__(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The sum over all networks, to be added to a loss that is a sum over P and N."""
        return self.penalty(parameters).sum()

    def state_dict(self) -> State:
        return {str(task): anchor._asdict() for task, anchor in self.anchors.items()}

    def load_state_dict(self, state: State) -> None:
        self.anchors = {int(task): _anchor(saved) for task, saved in state.items()}
        self._parabola = _Parabola(self.anchors)


class _Parabola:
    """``sum over anchors of F (theta - theta*)^2 = mass (theta - centre)^2 + rest``, weight by weight.

    The centre is the mean of theta* weighted by F, and ``rest`` (``[P, N]``) the anchors' own scatter about it.
    """

    def __init__(self, anchors: Mapping[int, Anchor]) -> None:
        self.mass: Weights = {}
        self.centre: Weights = {}
        self.rest: Tensor | float = 0.0
        for task in sorted(anchors):  # the same to the bit in whatever order they came
            for name, at in anchors[task].weights.items():
                more = anchors[task].fisher[name]
                mass = self.mass.get(name, torch.zeros_like(at)) + more
                before = self.centre.get(name, torch.zeros_like(at))
                share = torch.where(mass > 0, more / mass, 0.0)
                centre = before + share * (at - before)
                self.rest = self.rest + (more * (at - before) * (at - centre)).flatten(2).sum(-1)
                self.mass[name], self.centre[name] = mass, centre

    def at(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """``[P, N]``."""
        total = next(iter(parameters.values())).new_zeros(1, 1) + self.rest
        for name, mass in self.mass.items():
            total = total + (mass * (parameters[name] - self.centre[name]).square()).flatten(2).sum(-1)
        return total


def _to(each: Tensor, like: Tensor) -> Tensor:
    """``[P, N]`` with as many trailing dimensions of size 1 as ``like`` has more."""
    return each.reshape(*each.shape, *(1,) * (like.dim() - 2))


def _where(chosen: Tensor, new: Weights, old: Weights) -> Weights:
    return {name: torch.where(_to(chosen, w), w, old[name]) for name, w in new.items()}


def _anchor(state: State) -> Anchor:
    return Anchor(*({name: t.clone() for name, t in state[part].items()} for part in Anchor._fields))
