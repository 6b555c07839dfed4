"""PettingZoo parallel environments by module name."""

from __future__ import annotations

import sys
import types
import warnings
from typing import Any, ClassVar

import numpy as np
import pettingzoo
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils.conversions import aec_to_parallel

from marl.envs import make_env
from marl.envs.check import check_env
from marl.envs.pettingzoo import PUBLISHED
from marl.types import UserError


class Relay(ParallelEnv):
    """Runner "a" sees a number, "b" two; b leaves at step 2, a's race ends at step 5, or the time is up for both.

    a is paid its own action, b twice its own.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "relay", "render_modes": ["rgb_array"]}

    def __init__(self, limit: int = 9, actions: str = "box", render_mode: str | None = None) -> None:
        self.possible_agents, self.render_mode, self.limit = ["a", "b"], render_mode, limit
        first = {"box": Box(0, 1, (1,)), "discrete": Discrete(2), "mixed": Discrete(2), "dict": Dict()}[actions]
        second = {"discrete": Discrete(3)}.get(actions, Box(-1, 1, (2,)))
        self.spaces = {"a": first, "b": second}

    def observation_space(self, agent: str) -> Box:
        return Box(-9, 9, (1,) if agent == "a" else (2, 1))

    def action_space(self, agent: str) -> Any:
        return self.spaces[agent]

    def look(self) -> dict[str, np.ndarray]:
        noise = self.rng.random()
        all_obs = {"a": np.array([self.time + noise]), "b": np.array([[self.time], [noise]])}
        return {agent: all_obs[agent] for agent in self.agents}

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.agents, self.time = list(self.possible_agents), 0
        return self.look(), {}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        assert set(actions) == set(self.agents)
        self.time += 1
        pay = {"a": 1.0, "b": 2.0}
        rewards = {agent: pay[agent] * float(np.ravel(action)[0]) for agent, action in actions.items()}
        ends = {"a": self.time == 5, "b": self.time == 2}
        terminations = {agent: ends[agent] for agent in self.agents}
        truncations = {agent: self.time >= self.limit for agent in self.agents}
        obs = self.look()
        self.agents = [a for a in self.agents if not terminations[a] and not truncations[a]]
        return obs, rewards, terminations, truncations, {}

    def render(self) -> np.ndarray | None:
        return np.full((2, 2, 3), self.time, np.uint8) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        pass


class Saved(Relay):
    """``Relay`` that can save itself."""

    def state_dict(self) -> dict[str, Any]:
        return {"time": self.time, "agents": list(self.agents), "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.time, self.agents = state["time"], list(state["agents"])
        self.rng = np.random.default_rng()
        self.rng.bit_generator.state = state["rng"]


class Turns(AECEnv):
    """Three agents in turns that can save themselves; b leaves after the second round, the time is up after the fifth.

    All see how many rounds there were and a random number; everybody is paid 1 in their turn.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "turns", "is_parallelizable": True, "render_modes": []}
    render_mode = None

    def __init__(self) -> None:
        self.possible_agents = ["a", "b", "c"]

    def observation_space(self, agent: str) -> Box:
        return Box(-9, 9, (2,))

    def action_space(self, agent: str) -> Discrete:
        return Discrete(2)

    def observe(self, agent: str) -> np.ndarray:
        return np.array([self.time, self.noise], np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.agents, self.time, self.noise = list(self.possible_agents), 0, self.rng.random()
        self.begin_round()

    def begin_round(self) -> None:
        self.rewards, self._cumulative_rewards = dict.fromkeys(self.agents, 0.0), dict.fromkeys(self.agents, 0.0)
        self.terminations = {agent: self.time == 2 and agent == "b" for agent in self.agents}
        self.truncations = dict.fromkeys(self.agents, self.time == 5)
        self.infos = {agent: {} for agent in self.agents}
        self.agent_selection = self.agents[0]

    def step(self, action: Any) -> None:
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        self.rewards = {other: float(other == agent) for other in self.agents}
        if agent != self.agents[-1]:
            self.agent_selection = self.agents[self.agents.index(agent) + 1]
            return
        rewards, self.time, self.noise = self.rewards, self.time + 1, self.rng.random()
        self.begin_round()
        self.rewards = rewards
        self._deads_step_first()

    def state_dict(self) -> dict[str, Any]:
        return {"time": self.time, "noise": self.noise, "agents": self.agents, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.time, self.noise, self.agents = state["time"], state["noise"], list(state["agents"])
        self.rng = np.random.default_rng()
        self.rng.bit_generator.state = state["rng"]
        self.begin_round()


class Unannounced(Relay):
    """``Relay`` that does not say which agents there may be."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self) -> None:
        super().__init__()
        del self.possible_agents

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        raise AssertionError("it is refused before it is played")


class Late(Relay):
    """``Relay`` whose b is missing at the start, or comes back; nobody's race ends."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, absent: int = 0) -> None:
        super().__init__()
        self.absent = absent

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        super().reset(seed)
        self.agents = ["a"] if self.absent == 0 else ["a", "b"]
        return self.look(), {}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        self.time += 1
        nothing, never = dict.fromkeys(self.agents, 0.0), dict.fromkeys(self.agents, False)
        self.agents = ["a"] if self.time == self.absent else ["a", "b"]
        return self.look(), nothing, never, never, {}


class Wide(Relay):
    """``Relay`` of which b shows a number more than its space has."""

    def look(self) -> dict[str, np.ndarray]:
        return {**super().look(), "b": np.zeros(3)}


class Slip(Relay):
    """``Relay`` with one slip that is easily made, ``fault``."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        obs, infos = super().reset(seed)
        return obs if self.fault == "reset" else (obs, infos)

    def step(self, actions: dict[str, Any]) -> Any:
        obs, rewards, terminations, truncations, infos = super().step(actions)
        if self.fault == "step":
            return obs, rewards, terminations, infos
        if self.fault == "reward":
            rewards = {agent: np.array([reward, 0.0]) for agent, reward in rewards.items()}
        if self.fault == "none":
            obs = {agent: None if terminations[agent] else seen for agent, seen in obs.items()}
        return obs, rewards, terminations, truncations, infos


class Nested(Relay):
    """``Relay`` that keeps its limit as pettingzoo.sisl does, in a world of its own."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self) -> None:
        super().__init__()
        self.env = types.SimpleNamespace(max_cycles=9)


KINDS = {
    "relay_module": Relay,
    "saved_module": Saved,
    "turns_module": lambda: aec_to_parallel(Turns()),
    "unannounced_module": Unannounced,
    "late_module": Late,
    "wide_module": Wide,
    "slip_module": Slip,
    "nested_module": Nested,
    "empty_module": None,
}


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in KINDS.items():
        module = types.ModuleType(name)
        if kind:
            module.parallel_env = kind  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("limit", [3, 9])
@pytest.mark.parametrize("module", ["relay_module", "saved_module"])
@pytest.mark.parametrize("actions", ["box", "discrete"])
def test_a_users_own_module_keeps_the_contract(module: str, actions: str, limit: int) -> None:
    options = {"limit": limit, "actions": actions}
    check_env(lambda seeds: make_env(f"pettingzoo/{module}", seeds=seeds, copies=2, options=options), steps=31)


def test_a_game_of_turns_goes_on_with_the_agents_that_were_left() -> None:
    check_env(lambda seeds: make_env("pettingzoo/turns_module", seeds=seeds, copies=2), steps=23)


@pytest.mark.parametrize("options", [{}, {"continuous_actions": True, "max_cycles": 9}])
def test_a_published_module_keeps_the_contract(options: dict[str, Any]) -> None:
    pytest.importorskip("mpe2")
    id = "pettingzoo/mpe2.simple_adversary_v3"
    check_env(lambda seeds: make_env(id, seeds=seeds, copies=2, options=options), steps=30)
    env = make_env(id, options=options)
    assert env.spec.obs_sizes == (8, 10, 10) and not env.spec.exact_state
    assert env.spec.max_steps == options.get("max_cycles", 25)


def test_an_agent_that_leaves_early_has_terminated_and_is_not_asked_again() -> None:
    env = make_env("pettingzoo/saved_module")
    env.reset()
    steps = [env.step(torch.ones(1, 2, 1, 2)) for _ in range(5)]  # Relay itself asserts whom it hears from
    assert [s.terminated[0, :, 0].tolist() for s in steps] == [[False, False], *[[False, True]] * 3, [True, True]]
    assert [s.reward[0, :, 0].tolist() for s in steps] == [[1, 2], [1, 2], [1, 0], [1, 0], [1, 0]]
    assert [s.done.all().item() for s in steps] == [False] * 4 + [True]


@pytest.mark.parametrize("absent", [0, 2])
def test_an_agent_that_comes_late_is_one_line(absent: int) -> None:
    env = make_env("pettingzoo/late_module", options={"absent": absent})
    env.reset()
    with pytest.raises(UserError, match="expected agents that are there from the start, 'b' came late"):
        for _ in range(4):
            env.step(torch.zeros(1, 2, 1, 2))


def test_an_observation_of_another_size_than_its_space_is_one_line() -> None:
    env = make_env("pettingzoo/wide_module")
    with pytest.raises(UserError, match="expected an observation of 2 numbers, as its space has, got 3"):
        env.reset()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("reset", ": expected reset to return observations, infos, got a dict"),
        (
            "step",
            ": expected step to return observations, rewards, terminations, truncations, infos, got 4 values",
        ),
        ("reward", ": expected one number as the reward of 'a', got 2"),
        ("none", ", agent 'b': expected an observation of 2 numbers, as its space has, got None"),
    ],
)
def test_a_slip_in_what_reset_and_step_return_is_one_line_that_names_it(fault: str, message: str) -> None:
    env = make_env("pettingzoo/slip_module", options={"fault": fault})
    with pytest.raises(UserError) as caught:
        env.reset()
        for _ in range(2):
            env.step(torch.zeros(1, 2, 1, 2))
    assert str(caught.value) == f"pettingzoo/slip_module{message}"


def test_the_limit_of_a_game_that_keeps_it_in_a_world_of_its_own_is_known() -> None:
    assert make_env("pettingzoo/nested_module").spec.max_steps == 9


def test_the_time_limit_truncates_whoever_is_left() -> None:
    env = make_env("pettingzoo/relay_module", options={"limit": 3})
    env.reset()
    step = [env.step(torch.ones(1, 2, 1, 2)) for _ in range(3)][-1]
    assert step.done.all() and step.terminated[0, :, 0].tolist() == [False, True]


def test_it_can_be_drawn_without_asking() -> None:
    env = make_env("pettingzoo/relay_module")
    env.reset()
    env.step(torch.ones(1, 2, 1, 2))
    assert (env.render() == 1).all()


def test_an_id_of_the_registry_is_the_game_that_pettingzoo_makes_of_it() -> None:
    env = make_env("pettingzoo/sisl/pursuit-v5", options={"n_pursuers": 3, "max_cycles": 7})
    own = pettingzoo.make("parallel", "sisl/pursuit-v5", n_pursuers=3, max_cycles=7)
    assert env.spec.agents == tuple(own.possible_agents) == ("pursuer_0", "pursuer_1", "pursuer_2")
    assert (env.spec.action_sizes, env.spec.obs_sizes, env.spec.max_steps) == ((5, 5, 5), (7 * 7 * 3,) * 3, 7)


def timed(max_cycles: int, render_mode: str | None = None) -> Relay:
    game = Relay(max_cycles, render_mode=render_mode)
    game.max_cycles = max_cycles  # type: ignore[attr-defined]
    return game


@pytest.mark.parametrize("entry", [timed, "timed_module:timed"])
def test_an_id_that_a_program_has_registered_keeps_its_limit_and_may_be_made_by_a_function(
    entry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timed_module", types.SimpleNamespace(timed=timed))  # type: ignore[arg-type]
    game = pettingzoo.EnvSpec("mine/game-v0", entry, max_cycles=7)
    monkeypatch.setitem(pettingzoo.parallel_registry, game.id, game)
    assert make_env("pettingzoo/mine/game-v0").spec.max_steps == 7
    assert make_env("pettingzoo/mine/game-v0", options={"max_cycles": 3}).spec.max_steps == 3


def test_every_listed_id_is_in_the_registry_and_its_module_warns_of_nothing() -> None:
    assert set(PUBLISHED) <= set(pettingzoo.parallel_registry)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        make_env("pettingzoo/sisl/pursuit-v5")


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        ("sisl/pursuit-v4", {}, r"no environment 'pettingzoo/sisl/pursuit-v4' in .*registry.*sisl/pursuit-v5"),
        ("no_such_module", {}, "cannot import 'no_such_module'"),
        ("empty_module", {}, "the module 'empty_module' has no parallel_env"),
        ("", {}, r"cannot import '' \(ValueError: Empty module name\)"),
        (".relay_module", {}, r"cannot import '.relay_module' \(TypeError: "),
        ("unannounced_module", {}, "expected possible_agents"),
        ("relay_module", {"shoes": 2}, "does not take these keywords.*shoes"),
        ("relay_module", {"actions": "mixed"}, "all act by Box or all by Discrete"),
        ("relay_module", {"actions": "dict"}, "expected Discrete or bounded Box actions, got Dict"),
        ("relay_module", {"agents": 3}, "has 2 agents, not 3"),
    ],
)
def test_mistakes_are_one_line(module: str, options: dict[str, Any], message: str) -> None:
    agents = options.pop("agents", None)
    with pytest.raises(UserError, match=message) as caught:
        make_env(f"pettingzoo/{module}", agents=agents, options=options)
    assert "\n" not in str(caught.value)
