"""How the prey of simple_tag acts: at random, by flight, or by a trained network read from a file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from marl.envs.mpe.actions import MOVES, thrust_of, thrust_of_index
from marl.envs.mpe.games import Tag
from marl.envs.mpe.options import MpeOptions
from marl.envs.mpe.world import World
from marl.streams import Streams
from marl.types import State, UserError

ARENA = 1.0
"""Fleeing prey does not push further out than this, so that slower predators can corner it."""


class Prey:
    """The thrust ``[G, 2, M]`` of G prey, from the world as they see it.

    Args:
        game: the game of tag.
        options: ``prey``, ``prey_policy``, ``continuous``, ``dynamics``.
        seeds: one per member (P).
        copies: E, M = P * E.

    Raises:
        UserError: for a policy file that cannot be read or does not fit the prey's observation.
    """

    def __init__(self, game: Tag, options: MpeOptions, seeds: Sequence[int], copies: int) -> None:
        self.game, self.copies, self.kind = game, copies, options.prey
        self.discrete = not options.continuous
        self.sign = -1.0 if options.dynamics == "openai" else 1.0
        self.streams = Streams(seeds, "mpe/prey")
        self.layers = load_actor(options.prey_policy, game.prey_obs_size) if self.kind == "checkpoint" else []

    def __call__(self, world: World) -> Tensor:
        if self.kind == "heuristic":
            return flee(world, self.game.learners, self.discrete)
        return self._random(world.pos.dtype) if self.kind == "random" else self._policy(world)

    def _random(self, dtype: torch.dtype) -> Tensor:
        """A uniform draw from the prey's own actions."""
        if self.discrete:
            move = self.streams.integers(MOVES, self.game.prey, self.copies)
            thrust = thrust_of_index(move, dtype, self.sign)
        else:
            draw = self.streams.uniform(self.game.prey, self.copies, MOVES, dtype=dtype)
            thrust = thrust_of(draw * 2 - 1, self.sign)
        return thrust.permute(1, 3, 0, 2).flatten(2)

    def _policy(self, world: World) -> Tensor:
        x = self.game.observe_prey(world).transpose(1, 2)
        for k, (weight, bias) in enumerate(self.layers):
            x = torch.nn.functional.linear(x.relu() if k else x, weight.to(x.dtype), bias.to(x.dtype))
        if self.discrete:
            return thrust_of_index(x.argmax(-1), x.dtype, self.sign).transpose(1, 2)
        return thrust_of(x.tanh(), self.sign).transpose(1, 2)

    def state_dict(self) -> State:
        return self.streams.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.streams.load_state_dict(state)


def flee(world: World, predators: int, discrete: bool) -> Tensor:
    """Full thrust straight away from the nearest predator, but not further out of the arena.

    Discrete: along the axis on which more distance is to be won.
    """
    at = slice(world.landmarks, world.landmarks + predators)
    dist, nearest = world.dist[predators:, at].min(1, keepdim=True)
    offset = world.rel[predators:, at].gather(1, nearest[:, :, None].expand(-1, -1, 2, -1))[:, 0]
    away = offset / -dist.clamp(min=1e-12)
    here = world.pos[predators : world.agents]
    away = torch.where((here.abs() >= ARENA) & (here * away > 0), 0.0, away)
    if not discrete:
        return away
    x, y = away.abs().unbind(1)
    axis = torch.stack((x >= y, x < y), 1)
    return torch.where(axis, away.sign(), 0.0)


def load_actor(path: str, obs_size: int) -> list[tuple[Tensor, Tensor]]:
    """The layers ``l0.weight [h, obs_size]``, ``l0.bias [h]``, ``l1.weight``, ... of an actor with 5 outputs."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"prey_policy {path!r} cannot be read as safetensors: {str(error).splitlines()[0]}") from None
    depth = len(tensors) // 2
    names = [f"l{k}.{part}" for k in range(depth) for part in ("weight", "bias")]
    if not names or sorted(tensors) != sorted(names):
        raise UserError(f"prey_policy {path!r}: expected l0.weight, l0.bias, l1.weight, ..., got {', '.join(tensors)}")
    layers = [(tensors[f"l{k}.weight"], tensors[f"l{k}.bias"]) for k in range(depth)]
    width = obs_size
    for k, (weight, bias) in enumerate(layers):
        out = MOVES if k == depth - 1 else bias.numel()
        for name, x, shape in (("weight", weight, [out, width]), ("bias", bias, [out])):
            if list(x.shape) != shape:
                raise UserError(f"prey_policy {path!r}: l{k}.{name} should be {shape}, is {list(x.shape)}")
        width = out
    return layers
