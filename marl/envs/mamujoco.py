"""Multi-agent MuJoCo: one body, several agents that each move a part of it: ``mamujoco/Ant-2x4``.

Peng et al., "FACMAC: Factored Multi-Agent Centralised Policy Gradients", NeurIPS 2021, as ``gymnasium-robotics`` has it
(its version 1 on Gymnasium's v5 tasks).
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from marl.config import suggestion
from marl.envs.base import EnvSpec, VectorEnv, with_agents
from marl.envs.gym import ActionMap, box_size, check_limit, draw, import_module
from marl.envs.mujoco import load_world, save_world
from marl.envs.packing import generator_state, load_generator
from marl.envs.workers import make_copies
from marl.types import State, UserError

TASKS = (
    *("Ant-2x4", "Ant-2x4d", "Ant-4x2", "HalfCheetah-2x3", "HalfCheetah-6x1", "Hopper-3x1", "Walker2d-2x3"),
    *("Humanoid-9|8", "HumanoidStandup-9|8", "Swimmer-2x1", "Reacher-2x1", "Pusher-3p", "CoupledHalfCheetah-1p1"),
)
"""What ``marl list`` shows; ``ManySegmentAnt-AxB`` and ``ManySegmentSwimmer-AxB`` are accepted as well."""

LIMIT = 1000
"""Steps per episode of the tasks that Gymnasium does not register."""


class MaMuJoCoCopy:
    """One body. The reward is its own, given to every agent; the global state is what a single agent would observe.

    Args:
        seed: of its generator.
        id: the full name, with the family.
        name: ``Scenario-partition``.
        options: keywords of ``mamujoco_v1.parallel_env``; ``max_episode_steps`` changes the time limit.

    Raises:
        UserError: for a scenario, partition or keyword that the package does not have.
    """

    def __init__(self, seed: int, id: str, name: str, options: Mapping[str, Any]) -> None:
        options = dict(options)
        limit = options.pop("max_episode_steps", None)
        check_limit(id, limit)
        self.env = _make(id, name, options)
        task = self.env.single_agent_env.spec
        registered = task.max_episode_steps if task is not None else None
        self.limit = limit if limit is not None else registered or LIMIT
        self.world = self.env.single_agent_env.unwrapped
        self.env.single_agent_env = self.world  # without the wrapper that counts steps: that is done here
        for levels in getattr(self.env, "k_dicts", ()):
            for nodes in levels.values():  # sorted by label from a set; two of Pusher's joints have the same one
                nodes.sort(key=lambda node: (node.label, node.act_ids or 0))
        self.names = list(self.env.possible_agents)
        self.actions = [ActionMap(self.env.action_space(a), id) for a in self.names]
        self.spec = EnvSpec(
            id=id,
            agents=tuple(self.names),
            obs_sizes=tuple(box_size(self.env.observation_space(a), id) for a in self.names),
            action_sizes=tuple(action.size for action in self.actions),
            discrete=False,
            max_steps=self.limit,
            rules=_rules(),
            state_size=len(self.env.state()),
        )
        self.steps = 0
        self.env.reset(seed=seed)

    def reset(self) -> list[np.ndarray]:
        self.steps = 0
        return self._listed(self.env.reset()[0])

    def step(self, action: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, bool]:
        chosen = {a: to(own) for a, to, own in zip(self.names, self.actions, action, strict=True)}
        obs, rewards, terminations, _, _ = self.env.step(chosen)
        self.steps += 1
        reward = np.asarray([rewards[a] for a in self.names], np.float64)
        terminated = np.asarray([terminations[a] for a in self.names], bool)
        return self._listed(obs), reward, terminated, self.steps >= self.limit

    def state(self) -> np.ndarray:
        return np.asarray(self.env.state())

    def state_dict(self) -> State:
        return {
            "steps": self.steps,
            "generator": generator_state(self.world.np_random),
            "world": save_world(self.world),
        }

    def load_state_dict(self, state: State) -> None:
        self.env.reset()
        self.steps = state["steps"]
        load_generator(self.world.np_random, state["generator"])
        load_world(self.world, state["world"])

    def render(self) -> np.ndarray:
        return draw(self.spec.id, self.world, self.env.render)

    def close(self) -> None:
        self.env.close()

    def _listed(self, obs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(obs[a]) for a in self.names]


def _rules() -> str:
    import gymnasium_robotics
    import mujoco

    return f"MaMuJoCo v1 of gymnasium-robotics {gymnasium_robotics.__version__}, MuJoCo {mujoco.__version__}"


def _make(id: str, name: str, options: Mapping[str, Any]) -> Any:
    with contextlib.redirect_stderr(io.StringIO()):  # it prints a note on tasks that are not these
        hint = "; pip install -c constraints.txt -e '.[mamujoco]'"
        mamujoco_v1 = import_module(id, "gymnasium_robotics", hint).mamujoco_v1
    scenario, _, partition = name.partition("-")
    try:
        return mamujoco_v1.parallel_env(
            scenario=scenario, agent_conf=partition, **{"render_mode": "rgb_array", **options}
        )
    except Exception as error:
        if isinstance(error, NotImplementedError) or "UNKNOWN partitioning" in str(error):
            raise UserError(f"no environment {id!r}{suggestion(name, TASKS)}") from None
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        what = f"does not take {given}" if given else f"cannot be made by {_rules()}"
        raise UserError(f"{id} {what}: {' '.join(str(error).split())}") from error


class MaMuJoCo:
    """``mamujoco/Scenario-partition``; every keyword of ``--env.X`` is handed to ``mamujoco_v1.parallel_env``."""

    options: type | None = None

    def names(self) -> Sequence[str]:
        return TASKS

    def make(
        self, name: str, *, seeds: Sequence[int], copies: int, agents: int | None, workers: int, options: Any
    ) -> VectorEnv:
        id = f"mamujoco/{name}"
        build = functools.partial(MaMuJoCoCopy, id=id, name=name, options=options)
        env = make_copies(build, seeds=seeds, copies=copies, workers=workers)
        return with_agents(env, agents, "; the partition decides")


FAMILY = MaMuJoCo()
