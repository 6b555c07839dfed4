"""One environment of the package mpe2 as a ``marl.envs.copies.Copy``, saved and restored exactly.

``deepcopy`` and ``pickle`` of these environments silently build a new one, so the state is read and written field by
field: positions, velocities, words, goals, what is held or alive, colours, the step counter and the generators (one
scenario keeps a second one for what happens within an episode).
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import numpy as np
import torch

from marl.envs.base import EnvSpec
from marl.envs.mpe.games import Tag
from marl.envs.mpe.options import SCENARIOS, MpeOptions
from marl.envs.mpe.prey import Prey
from marl.envs.mpe.world import World
from marl.envs.packing import generator_state, load_generator
from marl.streams import derive
from marl.types import State, UserError

PLAIN = ("holding", "alive", "type")
"""Attributes of bodies that are JSON values; only collect_treasure has them."""
REFERENCES = ("_goal_a", "_goal_b")
"""Attributes of agents that are other bodies or None."""
ARRAYS = ("_color", "_key")
"""Attributes of bodies that are arrays or None; goals are told by colour, so colours belong to the state."""


class Mpe2Copy:
    """One copy of ``mpe2.<name>`` through its parallel API; in tag the prey acts inside.

    Args:
        seed: of everything that this copy draws.
        name: of the scenario.
        agents: the number of learning agents, None for mpe2's default.
        options: see ``MpeOptions``.

    Raises:
        UserError: for a number of agents that the scenario does not have.
    """

    def __init__(self, seed: int, *, name: str, agents: int | None, options: MpeOptions) -> None:
        module = importlib.import_module(f"mpe2.{name}")
        keywords = arguments(name, agents, options)
        try:
            self.env = module.parallel_env(
                max_cycles=options.max_cycles,
                continuous_actions=options.continuous,
                dynamic_rescaling=options.dynamic_rescaling,
                render_mode="rgb_array",
                **keywords,
            )
        except (AssertionError, ValueError) as error:
            raise UserError(f"mpe/{name} refuses {keywords}: {error}") from None
        self.raw = self.env.unwrapped
        if options.curriculum:
            self.raw.set_curriculum_stage(options.curriculum_stage)
            if self.raw.curriculum_stage != options.curriculum_stage:  # mpe2 1.1.1 drops the setting in silence
                raise UserError(f"this mpe2 stays at stage {self.raw.curriculum_stage}; choose engine=batched")
        self.raw.np_random = np.random.Generator(np.random.PCG64(derive(seed, "mpe2")))
        names = list(self.env.possible_agents)
        self.hunted: list[str] = []
        self.shadow: World | None = None
        if name == "simple_tag_v3":
            game = Tag(agents, options)
            self.shadow = World(game.bodies, game.landmarks, 1, torch.float64)
            self.prey = Prey(game, options, [derive(seed, "prey")], 1)
            names, self.hunted = names[: game.learners], names[game.learners :]
        spaces = [self.env.action_space(agent) for agent in names]
        self.spec = EnvSpec(
            id=f"mpe/{name}",
            agents=tuple(names),
            obs_sizes=tuple(self.env.observation_space(agent).shape[0] for agent in names),
            action_sizes=tuple(s.shape[0] if options.continuous else int(s.n) for s in spaces),
            discrete=not options.continuous,
            max_steps=options.max_cycles,
            rules=f"mpe2 rules, prey {options.prey}" if self.hunted else "mpe2 rules",
        )

    def reset(self) -> list[np.ndarray]:
        seen, _ = self.env.reset()
        return [seen[agent] for agent in self.spec.agents]

    def step(self, action: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, bool]:
        chosen: dict[str, Any] = {}
        for agent, size, own in zip(self.spec.agents, self.spec.action_sizes, action, strict=True):
            chosen[agent] = (
                int(own) if self.spec.discrete else ((np.clip(own[:size], -1, 1) + 1) / 2).astype(np.float32)
            )
        chosen.update(self._hunted_actions())
        seen, reward, ended, truncated, _ = self.env.step(chosen)
        agents = self.spec.agents
        return (
            [seen[a] for a in agents],
            np.array([reward[a] for a in agents], np.float32),
            np.array([ended[a] for a in agents], bool),
            any(truncated[a] for a in agents),
        )

    def _hunted_actions(self) -> dict[str, Any]:
        """What the prey does, asked of the same rules as in the batched engine."""
        if self.shadow is None:
            return {}
        world = self.raw.world
        self.shadow.pos[:, :, 0] = torch.from_numpy(np.array([e.state.p_pos for e in world.entities]))
        self.shadow.vel[:, :, 0] = torch.from_numpy(np.array([a.state.p_vel for a in world.agents]))
        self.shadow.look()
        thrusts = self.prey(self.shadow)[:, :, 0].numpy()
        return {name: self._action(*thrust) for name, thrust in zip(self.hunted, thrusts, strict=True)}

    def _action(self, x: float, y: float) -> Any:
        """The action of mpe2 that gives this thrust."""
        action = np.array([0, max(-x, 0), max(x, 0), max(-y, 0), max(y, 0)], np.float32)
        return int(action.argmax()) if self.spec.discrete else np.minimum(action, 1)

    def state_dict(self) -> State:
        raw, world = self.raw, self.raw.world
        bodies = world.entities
        state: State = {
            "generator": generator_state(raw.np_random),
            "steps": raw.steps,
            "camera": float(raw.original_cam_range),
            "pos": _tensor([e.state.p_pos for e in bodies]),
            "vel": _tensor([e.state.p_vel for e in bodies]),
            "words": _tensor([a.state.c for a in world.agents]),
            "plain": {key: [getattr(e, key, None) for e in bodies] for key in PLAIN},
            "references": {key: [_place(bodies, getattr(a, key, None)) for a in world.agents] for key in REFERENCES},
            "arrays": {key: [_numbers(getattr(e, key, None)) for e in bodies] for key in ARRAYS},
        }
        if getattr(world, "_np_random", None) is not None:
            state["respawn"] = generator_state(world.np_random)
        if getattr(raw.scenario, "_expected_positions", None) is not None:
            state["targets"] = _tensor(raw.scenario._expected_positions)
        if self.hunted:
            state["prey"] = self.prey.state_dict()
        return state

    def load_state_dict(self, state: State) -> None:
        self.reset()  # an episode must be under way; all that this draws is overwritten below
        raw, world = self.raw, self.raw.world
        bodies = world.entities
        load_generator(raw.np_random, state["generator"])
        raw.steps, raw.original_cam_range = state["steps"], state["camera"]
        for body, pos, vel in zip(bodies, state["pos"].numpy(), state["vel"].numpy(), strict=True):
            body.state.p_pos, body.state.p_vel = pos.copy(), vel.copy()
        for agent, words in zip(world.agents, state["words"].numpy(), strict=True):
            agent.state.c = words.copy()
        for key, values in state["plain"].items():
            for body, value in zip(bodies, values, strict=True):
                if hasattr(body, key):
                    setattr(body, key, value)
        for key, places in state["references"].items():
            for agent, place in zip(world.agents, places, strict=True):
                if hasattr(agent, key):
                    setattr(agent, key, None if place is None else bodies[place])
        for key, arrays in state["arrays"].items():
            for body, numbers in zip(bodies, arrays, strict=True):
                if hasattr(body, key):
                    setattr(body, key, None if numbers is None else np.array(numbers))
        if "respawn" in state:
            load_generator(world.np_random, state["respawn"])
        if "targets" in state:
            raw.scenario._expected_positions = list(state["targets"].numpy().copy())
        if self.hunted:
            self.prey.load_state_dict(state["prey"])

    def render(self) -> np.ndarray:
        return np.asarray(self.env.render(), np.uint8)

    def close(self) -> None:
        """Nothing: there is no window, and mpe2's own close would end pygame for every other copy in this process."""


def arguments(name: str, agents: int | None, options: MpeOptions) -> dict[str, Any]:
    """The keywords of the scenario's own constructor, mpe2's defaults left to mpe2."""
    parameters = inspect.signature(importlib.import_module(f"mpe2.{name}").raw_env.__init__).parameters
    given = {key: getattr(options, key) for key in SCENARIOS[name] if key in parameters}
    given = {key: value for key, value in given.items() if value is not None}
    if agents is None:
        return given
    if name == "simple_adversary_v3":
        given["N"] = agents - 1
    elif name == "simple_tag_v3":
        given["num_adversaries"] = agents
    elif name == "simple_world_comm_v3":
        given["num_adversaries"] = agents - given.get("num_good", parameters["num_good"].default)
    elif name == "collect_treasure_v1":
        given["num_collectors"] = agents - given.get("num_deposits", parameters["num_deposits"].default)
    elif "N" in parameters:
        given["N"] = agents
    else:
        raise UserError(f"mpe/{name} has a fixed number of agents; leave --agents out")
    if min(value for key, value in given.items() if key in ("N", "num_adversaries", "num_collectors")) < 1:
        raise UserError(f"mpe/{name}: {agents} agents are too few for its roles")
    return given


def _tensor(rows: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.array(rows, np.float64))


def _place(bodies: list[Any], body: Any) -> int | None:
    return None if body is None else next(k for k, other in enumerate(bodies) if other is body)


def _numbers(array: np.ndarray | None) -> list[float] | None:
    return None if array is None else [float(x) for x in array]
