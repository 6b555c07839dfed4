"""Demand response (Example 2.3 and section 5): a regulator sets a target, users follow it half of the time.

Global state ``s_g`` in 1..5, the target; action -1, 0 or 1, its change, clipped. A user's state is (psi, s*, s-bar):
its type 1 or 2, what it consumes, what it desires, both 1..5. A user who desires no more than the target consumes that;
another one consumes its desire or ``clip(s-bar + s_g - s*)``, either with probability 1/2. The desire moves one up or
down, clipped, for type 1; type 2 draws it anew from 1..5.
"""

from __future__ import annotations

import logging
from typing import Literal, TypeAlias

import numpy as np

from marl.classic.mdp import Array
from marl.classic.subsample.multisets import Integers
from marl.classic.subsample.system import LocalGlobalSystem, lump
from marl.types import UserError

LEVELS = 5
TYPES = 2
GAMMA = 0.9

Reward: TypeAlias = Literal["informative", "paper"]

NOTICE = (
    "demand response with the paper's rewards: 15 / s_g outweighs all else, lowering the target to 1 is optimal "
    "everywhere, so k = 1 is optimal already; reward=informative has something to learn"
)


def demand_response(
    reward: Reward = "informative", types: tuple[int, ...] = (1, 2), gamma: float = GAMMA, lumped: bool = False
) -> LocalGlobalSystem:
    """The system; local state (psi, s*, s-bar) is number ``(psi * 5 + s* - 1) * 5 + s-bar - 1``, psi counted from 0.

    Args:
        reward: ``paper``: ``r_g = 15 / s_g - 1{a = -1}``, ``r_l = s* - .5 1{s* > s_g}``, with a notice in the log;
            ``informative``: ``r_g = 2 / s_g - .3 1{a != 0}``, ``r_l = s* - 2 1{s* > s_g}``.
        types: which types of users there are.
        gamma: the discount.
        lumped: local agents show s* alone (5 states), as if types and desires were uniform and forgotten at each step.
    """
    if not types or not set(types) <= {1, 2}:
        raise UserError(f"types {types}: expected 1, 2 or both")
    if reward not in ("informative", "paper"):
        raise UserError(f"reward {reward!r}: choose from informative, paper")
    if reward == "paper":
        logging.getLogger("marl").warning(NOTICE)
    coefficient, penalty, costs = (15.0, 0.5, (1.0, 0.0, 0.0)) if reward == "paper" else (2.0, 2.0, (0.3, 0.0, 0.3))
    target = np.arange(1, LEVELS + 1)
    moves = np.clip(target[:, None] - 1 + np.array([-1, 0, 1]), 0, LEVELS - 1)
    consumed = target - penalty * (target > target[:, None])  # [G, s*]
    drift = {1: _walk(), 2: np.full((LEVELS, LEVELS), 1 / LEVELS)}
    local = np.zeros((LEVELS, len(types), LEVELS, LEVELS, len(types), LEVELS, LEVELS))
    for t, kind in enumerate(types):
        local[:, t, :, :, t] = np.einsum("gcdx,dy->gcdxy", _consumption(), drift[kind])
    states = len(types) * LEVELS**2
    system = LocalGlobalSystem(
        np.eye(LEVELS)[moves],
        local.reshape(LEVELS, states, states),
        coefficient / target[:, None] - np.array(costs),
        np.tile(np.repeat(consumed, LEVELS, axis=1), (1, len(types))),
        gamma,
        name="demand response",
    )
    return lump(system, consumption_groups(len(types)), LEVELS) if lumped else system


def consumption_groups(types: int = TYPES) -> Integers:
    """``[25 types]``: s* - 1 of each local state, what the lumped table sees of it."""
    return np.arange(types * LEVELS**2) // LEVELS % LEVELS


def _consumption() -> Array:
    """``P(s*' | s_g, s*, s-bar)``, ``[G, s*, s-bar, s*']``."""
    level = np.arange(1, LEVELS + 1)
    target, now, desired = np.meshgrid(level, level, level, indexing="ij")
    lowered = np.where(desired <= target, desired, np.clip(desired + target - now, 1, LEVELS))
    return (np.eye(LEVELS)[desired - 1] + np.eye(LEVELS)[lowered - 1]) / 2


def _walk() -> Array:
    """One up or down, equally likely, clipped; ``[s-bar, s-bar']``."""
    level = np.arange(LEVELS)
    return (np.eye(LEVELS)[np.maximum(level - 1, 0)] + np.eye(LEVELS)[np.minimum(level + 1, LEVELS - 1)]) / 2
