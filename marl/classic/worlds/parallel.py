"""The PettingZoo parallel face of every tabular world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv

from marl.classic.worlds.world import World
from marl.types import State


class ParallelWorld(ParallelEnv):
    """A world in which ``agent_0``, ``agent_1``, .. act at once.

    An observation is the agent's view, each coordinate as a one-hot vector: ``[sum(world.sizes)]`` float32. An action
    is a number below ``world.actions``. An agent that its world terminates leaves; at the horizon all who are left are
    truncated. ``infos[agent]["view"]`` are the coordinates themselves, ``[C]``, for tables.

    Random numbers come from one generator, set by ``reset(seed)``; ``state_dict`` and ``load_state_dict`` save all.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "tabular", "render_modes": []}
    render_mode = None

    def __init__(self, world: World) -> None:
        self.world = world
        self.metadata = {**type(self).metadata, "name": world.name}  # type: ignore[misc]
        self.max_cycles = world.horizon
        self.possible_agents = [f"agent_{i}" for i in range(world.agents)]
        self.agents: list[str] = []
        self.observation_spaces = {
            agent: Box(0.0, 1.0, (sum(world.sizes),), np.float32) for agent in self.possible_agents
        }
        self.action_spaces: dict[str, Discrete] = {agent: Discrete(world.actions) for agent in self.possible_agents}
        self.rng = np.random.default_rng()
        self.steps = 0

    def observation_space(self, agent: str) -> Box:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Discrete:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.position = self.world.start(self.rng)
        self.agents, self.steps = list(self.possible_agents), 0
        return self._look()

    def step(
        self, actions: Mapping[str, int]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, Any]]:
        chosen = np.array([actions[a] if a in self.agents else 0 for a in self.possible_agents], np.int64)
        self.position, reward, terminated = self.world.step(self.position, chosen, self.rng)
        self.steps += 1
        late = self.steps >= self.world.horizon
        observations, infos = self._look()
        rewards = self._each(reward.tolist())
        terminations = self._each(terminated.tolist())
        truncations = self._each([late and not ended for ended in terminated.tolist()])
        self.agents = [a for a in self.agents if not (terminations[a] or truncations[a])]
        return observations, rewards, terminations, truncations, infos

    def render(self) -> None:
        """There is nothing to see."""

    def state_dict(self) -> State:
        return {
            "position": self.position.copy(),
            "steps": self.steps,
            "agents": list(self.agents),
            "generator": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        self.position = np.array(state["position"])
        self.steps, self.agents = state["steps"], list(state["agents"])
        self.rng.bit_generator.state = state["generator"]

    def _look(self) -> tuple[dict[str, Any], dict[str, Any]]:
        views = self.world.view(self.position)
        ends = np.cumsum(self.world.sizes)
        seen = np.zeros((self.world.agents, ends[-1]), np.float32)
        np.put_along_axis(seen, views + ends - self.world.sizes, 1.0, axis=1)
        return self._each(list(seen)), self._each([{"view": view} for view in views])

    def _each(self, values: list[Any]) -> dict[str, Any]:
        """By the names of those who are still there."""
        return {a: value for a, value in zip(self.possible_agents, values, strict=True) if a in self.agents}
