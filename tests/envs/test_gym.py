"""Any Gymnasium id: spaces, bounds, time limits, saved states, and one-line errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from marl.envs import make_env
from marl.envs.check import check_env
from marl.envs.gym import CLASSIC
from marl.types import UserError


class Told(gymnasium.Env):
    """Observes the action that it was given, in its own units, with spaces chosen by keyword."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, action: str = "box", obs: str = "box") -> None:
        kinds = {
            "box": Box(np.array([[0.0, -4.0]], np.float32), np.array([[10.0, 4.0]], np.float32)),
            "discrete": Discrete(3, start=5),
            "unbounded": Box(-np.inf, np.inf, (1,)),
            "multi": MultiDiscrete([2, 2]),
            "nothing": Box(-1, 1, (0,)),
            "whole": Box(0, 3, (2,), np.int64),
            "double": Box(0.1, 0.7, (2,), np.float64),
        }
        self.action_space = kinds[action]
        self.observation_space = {"box": Box(-99, 99, (1, 2)), "none": Box(-1, 1, (2, 0))}.get(obs, Discrete(4))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros((1, 2), np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        return np.broadcast_to(np.asarray(action, np.float32), (1, 2)), 0.0, False, False, {}


class Careless(Told):
    """Shows more numbers than its space has, from the episode's start or from the first step on; ends in arrays."""

    def __init__(self, first: int = 2, later: int = 2) -> None:
        super().__init__()
        self.first, self.later = first, later

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(self.first, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, Any, Any, Any, dict]:
        return np.zeros(self.later, np.float32), np.array([2.0]), np.array([True]), np.array([False]), {}


class Counter(Told):
    """A random walk that can save itself."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place = self.np_random.normal(size=(1, 2))
        return self.place.astype(np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.place = self.place + self.np_random.normal(size=(1, 2))
        return self.place.astype(np.float32), float(self.place[0, 0]), bool(self.place[0, 1] > 2), False, {}

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


MODULE = """
import gymnasium
from gymnasium.spaces import Box

class Task(gymnasium.Env):
    observation_space, action_space = Box(-1, 1, (3,)), Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 3).astype("float32"), {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 3).astype("float32"), 1.0, False, False, {}

gymnasium.register("NAME-v0", entry_point=Task, max_episode_steps=5)
"""
"""Registers an id named after its own name."""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package of three modules that nothing has imported: ``first`` and ``second`` work, ``broken`` does not."""
    name = f"marl_test_{tmp_path.name}"
    (tmp_path / name).mkdir()
    for module in ("first", "second"):
        (tmp_path / name / f"{module}.py").write_text(MODULE.replace("NAME", module.title()))
    (tmp_path / name / "broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in ("first", "second"):
        gymnasium.registry.pop(f"{module.title()}-v0", None)


gymnasium.register("marl-test/Told-v0", entry_point=Told, max_episode_steps=4)
gymnasium.register("marl-test/Counter-v0", entry_point=Counter, max_episode_steps=9)
gymnasium.register("marl-test/Careless-v0", entry_point=Careless, max_episode_steps=4)


@pytest.mark.parametrize("name", CLASSIC)
def test_classic_control_keeps_the_contract(name: str) -> None:
    check_env(lambda seeds: make_env(f"gym/{name}", seeds=seeds, copies=2, options={"max_episode_steps": 17}))


def test_an_environment_with_its_own_state_dict_is_exact_and_another_restarts() -> None:
    for name, exact in (("Counter", True), ("Told", False)):
        assert make_env(f"gym/marl-test/{name}-v0").spec.exact_state == exact
        check_env(lambda seeds, name=name: make_env(f"gym/marl-test/{name}-v0", seeds=seeds, agents=2))


def test_actions_in_minus_one_to_one_cover_the_bounds() -> None:
    env = make_env("gym/marl-test/Told-v0")
    env.reset()
    assert (env.spec.action_sizes, env.spec.discrete) == ((2,), False)
    # bounds (0, 10) and (-4, 4): -1 -> low, 0 -> middle, .5 -> three quarters; beyond 1 -> high
    for given, told in [((-1, -1), (0, -4)), ((0, 0), (5, 0)), ((0.5, 0.5), (7.5, 2)), ((3, 1), (10, 4))]:
        step = env.step(torch.tensor(given, dtype=torch.float32).view(1, 1, 1, 2))
        assert step.next_obs.flatten().tolist() == list(told)


def test_whole_numbers_are_rounded_to_so_that_an_action_near_a_bound_is_that_bound() -> None:
    env = make_env("gym/marl-test/Told-v0", options={"action": "whole"})
    env.reset()
    for given, told in [((-1, -0.9), (0, 0)), ((-0.3, 0.3), (1, 2)), ((0.9, 1), (3, 3))]:
        step = env.step(torch.tensor(given, dtype=torch.float32).view(1, 1, 1, 2))
        assert step.next_obs.flatten().tolist() == list(told)


def test_rounding_takes_no_action_out_of_its_bounds() -> None:
    env = make_env("gym/marl-test/Told-v0", options={"action": "double"})  # (.1 + .7) / 2 - .3 is below .1
    env.reset()
    step = env.step(torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2))  # Told itself asserts what it is given
    assert step.next_obs.flatten().tolist() == pytest.approx([0.1, 0.7])


@pytest.mark.parametrize("first", [1, 2, 3])
def test_an_observation_of_another_size_than_its_space_is_one_line(first: int) -> None:
    env = make_env("gym/marl-test/Careless-v0", options={"first": first, "later": 1})
    with pytest.raises(UserError, match=r"expected an observation of 2 numbers, as its space has, got [13]$"):
        env.reset()
        env.step(torch.zeros(1, 1, 1, 2))


@pytest.mark.parametrize(("method", "got"), [("reset", "a ndarray"), ("step", "4 values")])
def test_a_reset_or_a_step_of_the_old_kind_is_one_line(method: str, got: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env("gym/marl-test/Told-v0")
    old = {"reset": lambda *_, **__: np.zeros((1, 2)), "step": lambda *_: (np.zeros((1, 2)), 0.0, False, {})}
    monkeypatch.setattr(Told, method, old[method])
    with pytest.raises(UserError, match=f"Told-v0: expected {method} to return observation, .*info, got {got}$"):
        env.reset()
        env.step(torch.zeros(1, 1, 1, 2))


TWO = "an observation of 2 numbers, as its space has, got "


@pytest.mark.parametrize(
    ("seen", "reward", "message"),
    [
        (
            [0.0, [1.0, 2.0]],
            0.0,
            "an observation of 2 numbers, as its space has, got a list that is no array of numbers",
        ),
        ({"a": 0.0}, 0.0, f"{TWO}a dict that is no array of numbers"),
        (["left", "up"], 0.0, f"{TWO}a list that is no array of numbers"),
        (None, 0.0, f"{TWO}None"),
        ([0.0, 1.0], [1.0, 2.0, 3.0], "one number as the reward, got 3"),
        ([0.0, 1.0], {"speed": 1.0}, "one number as the reward, got a dict that is no array of numbers"),
        ([0.0, 1.0], None, "one number as the reward, got None"),
    ],
)
def test_an_observation_or_a_reward_of_another_kind_is_one_line(
    seen: Any, reward: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make_env("gym/marl-test/Told-v0")
    env.reset()
    monkeypatch.setattr(Told, "step", lambda *_: (seen, reward, False, False, {}))
    with pytest.raises(UserError) as caught:
        env.step(torch.zeros(1, 1, 1, 2))
    assert str(caught.value) == f"gym/marl-test/Told-v0: expected {message}"


def test_a_reset_that_takes_no_seed_is_one_line_and_another_fault_in_it_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Told, "reset", lambda self: (np.zeros((1, 2)), {}))
    with pytest.raises(UserError, match=r"Told-v0: expected reset to take a seed .*unexpected keyword argument 'seed'"):
        make_env("gym/marl-test/Told-v0")
    monkeypatch.setattr(Told, "reset", lambda self, **_: None + 1)  # type: ignore[operator]
    with pytest.raises(TypeError, match="NoneType"):
        make_env("gym/marl-test/Told-v0")


def test_rewards_and_ends_may_be_arrays_of_one_number() -> None:
    env = make_env("gym/marl-test/Careless-v0")
    env.reset()
    step = env.step(torch.zeros(1, 1, 1, 2))
    assert (step.reward.item(), step.terminated.item(), step.done.item()) == (2.0, True, True)


def test_indices_begin_at_the_start_of_a_discrete_space() -> None:
    env = make_env("gym/marl-test/Told-v0", options={"action": "discrete"})
    env.reset()
    assert (env.spec.action_sizes, env.spec.discrete) == ((3,), True)
    assert env.step(torch.tensor([[[2]]])).next_obs.flatten().tolist() == [7.0, 7.0]


def test_the_time_limit_truncates_and_can_be_changed() -> None:
    for options, limit in (({}, 4), ({"max_episode_steps": 2}, 2)):
        env = make_env("gym/marl-test/Told-v0", options=options)
        env.reset()
        steps = [env.step(torch.zeros(1, 1, 1, 2)) for _ in range(2 * limit)]
        assert env.spec.max_steps == limit
        assert [t + 1 for t, s in enumerate(steps) if s.done.any()] == [limit, 2 * limit]
        assert not any(s.terminated.any() for s in steps)


def test_classic_control_steps_like_gymnasium_itself() -> None:
    env = make_env("gym/Pendulum-v1", seeds=[0])
    theirs = gymnasium.make("Pendulum-v1")
    theirs.reset(seed=0)
    env.reset()
    theirs.unwrapped.state = env.pool.copies[0].env.unwrapped.state.copy()  # type: ignore[attr-defined]
    for _ in range(5):
        step = env.step(torch.full((1, 1, 1, 1), 0.25))
        obs, reward, *_ = theirs.step(np.array([0.5], np.float32))  # torque in [-2, 2]
        assert step.obs.flatten().tolist() == obs.tolist()
        assert step.reward.item() == np.float32(reward)


@pytest.mark.parametrize(
    ("id", "options", "message"),
    [
        ("gym/CartPole-v9", {}, "no environment 'gym/CartPole-v9'"),
        ("gym/CartPoole-v1", {}, "CartPole-v1"),
        ("gym/no_such_module:Thing-v0", {}, "cannot import 'no_such_module' .*No module named 'no_such_module'"),
        ("gym/:Thing-v0", {}, "cannot import ''"),
        ("gym/GymV21Environment-v0", {}, r"did you mean 'GymV26Environment-v0'\?"),
        ("gym/CartPole-v1", {"wheels": 3}, "does not take these keywords.*wheels"),
        ("gym/CartPole-v1", {"max_episode_steps": 0}, "positive number of steps, got 0"),
        ("gym/marl-test/Told-v0", {"action": "unbounded"}, "expected Discrete or bounded Box actions, got Box"),
        ("gym/marl-test/Told-v0", {"action": "multi"}, "got MultiDiscrete"),
        ("gym/marl-test/Told-v0", {"action": "nothing"}, "expected actions of one number or more, got none"),
        ("gym/marl-test/Told-v0", {"obs": "none"}, "expected observations of one number or more, got none"),
        ("gym/marl-test/Told-v0", {"obs": "discrete"}, "expected Box observations, got Discrete"),
        ("gym/CartPole-v1", {"agents": -1}, "at least 1, got -1"),
    ],
)
def test_mistakes_are_one_line(id: str, options: dict[str, Any], message: str) -> None:
    agents = options.pop("agents", None)
    with pytest.raises(UserError, match=message) as caught:
        make_env(id, agents=agents, options=options)
    assert "\n" not in str(caught.value)


def test_a_name_near_to_none_is_answered_without_the_whole_registry() -> None:
    with pytest.raises(UserError) as caught:
        make_env("gym/Xyzzyxyzzy-v0")
    assert str(caught.value) == "no environment 'gym/Xyzzyxyzzy-v0' (Environment `Xyzzyxyzzy` doesn't exist.)"


def test_a_module_before_a_colon_is_imported_first(package: str) -> None:
    env = make_env(f"gym/{package}.first:First-v0")
    assert (env.spec.id, env.spec.max_steps) == (f"gym/{package}.first:First-v0", 5)
    assert env.reset().shape == (1, 1, 1, 3)


def test_worker_processes_import_the_module_too(package: str) -> None:
    env = make_env(f"gym/{package}.second:Second-v0", copies=2, workers=2)
    try:
        env.reset()
        assert env.step(torch.zeros(1, 1, 2, 2)).reward.tolist() == [[[1.0, 1.0]]]
        assert f"{package}.second" not in sys.modules
    finally:
        env.close()


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (".broken:First-v0", "cannot import '{0}.broken' (ZeroDivisionError: division by zero)"),
        (".first:Frst-v0", "(Environment `Frst` doesn't exist. Did you mean: `First`?); did you mean 'First-v0'?"),
    ],
)
def test_a_mistake_in_or_after_the_module_is_one_line(rest: str, message: str, package: str) -> None:
    with pytest.raises(UserError) as caught:
        make_env(f"gym/{package}{rest}")
    assert str(caught.value).endswith(message.format(package)) and "\n" not in str(caught.value)


def test_drawing_what_cannot_be_drawn_is_one_line() -> None:
    env = make_env("gym/marl-test/Told-v0")
    env.reset()
    with pytest.raises(UserError, match="no render mode 'rgb_array'"):
        env.render()
