"""Any PettingZoo parallel environment, by its id in PettingZoo's registry or by the module that makes it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from marl.config import suggestion
from marl.envs.base import EnvSpec, VectorEnv, with_agents
from marl.envs.gym import OWN, ActionMap, begin, box_size, flat, import_module, keeps_itself, number, returned
from marl.envs.workers import make_copies
from marl.types import State, UserError

PUBLISHED = (
    *("butterfly/cooperative_pong-v6", "butterfly/knights_archers_zombies-v11", "butterfly/pistonball-v6"),
    *("sisl/multiwalker-v9", "sisl/pursuit-v5"),
)
"""What ``marl list`` shows; any other id in PettingZoo's registry and any module with ``parallel_env`` will do."""

RETURNS = {
    "reset": ("observations", "infos"),
    "step": ("observations", "rewards", "terminations", "truncations", "infos"),
}
"""What the methods of a parallel environment return, each a dictionary by agent."""


class PettingZooCopy:
    """One parallel environment with ``Box`` observations (flattened), all actions ``Box`` or all ``Discrete``.

    An agent that left has terminated, and does not come back; one that is not there at an episode's start never comes.
    One that is truncated ends the episode of all: a time limit is of the whole game.
    The state is saved through the environment's own ``state_dict`` and ``load_state_dict`` (numpy arrays and JSON
    values, the generator and the list ``agents`` included) where it has them.

    Args:
        seed: of its generator.
        id: the full name, with the family.
        name: its id in PettingZoo's registry, or the module where ``parallel_env`` is.
        options: its keywords.

    Raises:
        UserError: for an unknown id, a module that cannot be imported or has no ``parallel_env``, wrong keywords, or
            spaces of other kinds; out of ``reset`` and ``step``, for other values than ``RETURNS``, an observation that
            is not of its space's size, a reward that is not one number, or an agent that comes late; for a ``reset``
            that takes no seed.
    """

    def __init__(self, seed: int, id: str, name: str, options: Mapping[str, Any]) -> None:
        self.env = _make(id, name, options)
        if not hasattr(self.env, "possible_agents"):
            raise UserError(
                f"{id}: expected possible_agents, all the agents that there may be; the environment has none"
            )
        self.names = list(self.env.possible_agents)
        self.sizes = [box_size(self.env.observation_space(a), id) for a in self.names]
        self.actions = [ActionMap(self.env.action_space(a), id) for a in self.names]
        if len({action.discrete for action in self.actions}) > 1:
            raise UserError(f"{id}: expected agents that all act by Box or all by Discrete, got both kinds")
        self.spec = EnvSpec(
            id=id,
            agents=tuple(map(str, self.names)),
            obs_sizes=tuple(self.sizes),
            action_sizes=tuple(action.size for action in self.actions),
            discrete=self.actions[0].discrete,
            max_steps=_limit(self.env.unwrapped),
            exact_state=keeps_itself(self.env.unwrapped),
        )
        begin(self.env, seed, id)

    def reset(self) -> list[np.ndarray]:
        return self._listed(self._returned("reset", self.env.reset())[0])

    def step(self, action: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, bool]:
        present = set(self.env.agents)
        chosen = {
            a: to(action[i]) for i, (a, to) in enumerate(zip(self.names, self.actions, strict=True)) if a in present
        }
        obs, rewards, terminations, truncations, _ = self._returned("step", self.env.step(chosen))
        expected = f"{self.spec.id}: expected one number as the reward of"
        reward = np.asarray([number(rewards.get(a, 0.0), f"{expected} {a!r}") for a in self.names])
        terminated = np.asarray([a not in present or bool(terminations.get(a, True)) for a in self.names])
        truncated = any(truncations.get(a, False) for a in present) or not self.env.agents
        late = [a for a in self.env.agents if a not in present]
        if late and not truncated and not terminated.all():
            raise UserError(f"{self.spec.id}: expected agents that are there from the start, {late[0]!r} came late")
        return self._listed(obs), reward, terminated, truncated

    def state_dict(self) -> State:
        return OWN.save(self.env.unwrapped)

    def load_state_dict(self, state: State) -> None:
        OWN.load(self.env.unwrapped, state)
        if hasattr(self.env, "aec_env"):  # pettingzoo's wrapper of a game of turns has a list of its own
            self.env.agents = self.env.aec_env.agents[:]

    def render(self) -> np.ndarray:
        picture = self.env.render()
        if not isinstance(picture, np.ndarray):
            raise UserError(f"{self.spec.id} has no render mode 'rgb_array', so it cannot be drawn")
        return picture

    def close(self) -> None:
        self.env.close()

    def _returned(self, method: str, answer: Any) -> Sequence[Any]:
        """What a method of the environment returned; raises ``UserError`` unless these are ``RETURNS``."""
        parts = returned(self.spec.id, method, RETURNS, answer)
        if not all(isinstance(part, Mapping) for part in parts):
            kinds = ", ".join(type(part).__name__ for part in parts)
            raise UserError(f"{self.spec.id}: expected {method} to return dictionaries by agent, got {kinds}")
        return parts

    def _listed(self, obs: Mapping[Any, np.ndarray]) -> list[np.ndarray]:
        """One flat observation per agent; nothing, which is padded with zeros, of those that are away."""
        return [
            flat(obs[a], size, f"{self.spec.id}, agent {a!r}") if a in obs else np.zeros(0)
            for a, size in zip(self.names, self.sizes, strict=True)
        ]


def _limit(world: Any) -> int | None:
    """The time limit of an unwrapped environment in steps; some of PettingZoo's own keep it one object further in."""
    own: int | None = getattr(world, "max_cycles", None)
    return own if own is not None else getattr(getattr(world, "env", None), "max_cycles", None)


def _make(id: str, name: str, options: Mapping[str, Any]) -> Any:
    module, build = _builder(id, name)
    try:
        env = build(**options)
        modes = env.metadata.get("render_modes", ())
        if (
            "rgb_array" in modes
            and "render_mode" not in options
            and getattr(env.unwrapped, "render_mode", None) is None
        ):
            env.close()
            env = build(**options, render_mode="rgb_array")
        return env
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{id}: cannot import {module!r} ({reason}){_hint(module)}") from None
    except TypeError as error:
        raise UserError(f"{id} does not take these keywords: {' '.join(str(error).split())}") from None


def _builder(id: str, name: str) -> tuple[str, Callable[..., Any]]:
    """The module that an environment is from, and what makes it."""
    import pettingzoo

    published = pettingzoo.parallel_registry
    if name in published:
        return str(published[name].entry_point).partition(":")[0], published[name].make
    if "/" in name:
        raise UserError(f"no environment {id!r} in PettingZoo's registry{suggestion(name, published)}")
    build = getattr(import_module(id, name, _hint(name)), "parallel_env", None)
    if build is None:
        raise UserError(f"{id}: the module {name!r} has no parallel_env(...)")
    return name, build


def _hint(module: str) -> str:
    """How to install what one of PettingZoo's own modules needs."""
    own = re.match(r"pettingzoo\.(\w+)\.", module)
    return f"; pip install 'pettingzoo[{own[1]}]'" if own else ""


class PettingZoo:
    """``pettingzoo/ID`` and ``pettingzoo/MODULE``: every keyword of ``--env.X`` is handed to the game."""

    options: type | None = None

    def names(self) -> Sequence[str]:
        return PUBLISHED

    def make(
        self, name: str, *, seeds: Sequence[int], copies: int, agents: int | None, workers: int, options: Any
    ) -> VectorEnv:
        id = f"pettingzoo/{name}"
        build = functools.partial(PettingZooCopy, id=id, name=name, options=options)
        env = make_copies(build, seeds=seeds, copies=copies, workers=workers)
        return with_agents(env, agents, "; a keyword of its own may set the number")


FAMILY = PettingZoo()
