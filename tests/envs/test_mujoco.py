"""MuJoCo tasks: the contract, and a saved state that goes on in equal bits, rewards included."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
import torch
from drawing_tools import assert_drawing_names_the_variable

pytest.importorskip("mujoco")

import gymnasium
import mujoco
import numpy as np

from marl.envs import VectorEnv, make_env
from marl.envs.check import check_env
from marl.envs.mujoco import TASKS, load_world, save_world
from marl.types import UserError

SHORT = {"max_episode_steps": 11}


@pytest.mark.parametrize("task", TASKS)
def test_every_listed_task_keeps_the_contract(task: str) -> None:
    check_env(lambda seeds: make_env(f"mujoco/{task}", seeds=seeds, options=SHORT), steps=30)


def test_independent_learners_keep_the_contract_and_end_on_their_own() -> None:
    make = lambda seeds: make_env("mujoco/Hopper-v5", seeds=seeds, copies=2, agents=3)  # noqa: E731
    check_env(make, steps=40)
    env = make([0])
    assert env.spec.independent and env.spec.agents == ("learner_0", "learner_1", "learner_2")
    env.reset()
    generator = torch.Generator().manual_seed(0)
    done = [env.step(torch.rand(1, 3, 2, 3, generator=generator) * 2 - 1).done for _ in range(40)]
    assert any(d.any() and not d.all() for d in done)


@pytest.mark.parametrize("task", ["Ant-v5", "Ant-v4", "Walker2d-v5"])
def test_a_restored_run_goes_on_in_equal_bits_from_random_moments(task: str) -> None:
    def make() -> VectorEnv:
        return make_env(f"mujoco/{task}", seeds=[4], copies=2, options={"max_episode_steps": 60})

    moments, env = random.Random(0), make()
    size = env.spec.action_size
    generator = torch.Generator().manual_seed(1)
    env.reset()
    for _ in range(3):
        for _ in range(moments.randrange(10, 90)):
            env.step(torch.rand(1, 1, 2, size, generator=generator) * 2 - 1)
        other = make()
        for _ in range(moments.randrange(20)):  # the new object has a life of its own before
            other.step(torch.rand(1, 1, 2, size, generator=generator) * 2 - 1)
        other.load_state_dict(env.state_dict())
        ended = torch.zeros(1, 1, 2, dtype=torch.bool)
        for _ in range(70):
            action = torch.rand(1, 1, 2, size, generator=generator) * 2 - 1
            here, there = env.step(action), other.step(action)
            assert all(torch.equal(a, b) for a, b in zip(here[:5], there[:5], strict=True))
            ended |= here.done
        assert ended.all()


def test_the_integration_state_alone_would_not_do() -> None:
    """The usual shortcut: after mj_setState Ant's next reward differs, since it reads positions left from before."""
    one, two = (gymnasium.make("Ant-v5").unwrapped for _ in range(2))
    action = np.full(8, 0.5)
    one.reset(seed=0)
    two.reset(seed=0)
    for _ in range(20):
        one.step(action)
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(one.model, kind))
    mujoco.mj_getState(one.model, one.data, state, kind)
    mujoco.mj_setState(two.model, two.data, state, kind)
    three = gymnasium.make("Ant-v5").unwrapped
    three.reset(seed=1)
    load_world(three, save_world(one))
    rewards = [env.step(action)[1] for env in (one, two, three)]
    assert rewards[1] != rewards[0]
    assert rewards[2] == rewards[0]


def test_a_copy_steps_like_gymnasium_itself() -> None:
    env = make_env("mujoco/HalfCheetah-v5", seeds=[0])
    copy = env.pool.copies[0]  # type: ignore[attr-defined]
    theirs = gymnasium.make("HalfCheetah-v5")
    theirs.reset(seed=0)
    env.reset()
    theirs.unwrapped.set_state(copy.env.unwrapped.data.qpos.copy(), copy.env.unwrapped.data.qvel.copy())
    action = torch.linspace(-1, 1, 6)
    for _ in range(5):
        step = env.step(action.view(1, 1, 1, 6))
        obs, reward, *_ = theirs.step(action.numpy())
        np.testing.assert_array_equal(step.obs[0, 0, 0].numpy(), obs.astype(np.float32))
        assert step.reward.item() == np.float32(reward)


def test_options_reach_gymnasium_and_the_version_is_in_the_rules() -> None:
    env = make_env("mujoco/Ant-v5", options={"include_cfrc_ext_in_observation": False})
    assert env.spec.obs_size == 27  # 105 without the 78 contact forces
    assert env.spec.rules == f"MuJoCo {mujoco.__version__}" and env.spec.max_steps == 1000


def test_workers_step_mujoco_to_the_bit() -> None:
    envs = [make_env("mujoco/Hopper-v5", seeds=[0, 1], copies=2, workers=w, options=SHORT) for w in (0, 2)]
    try:
        assert torch.equal(*(env.reset() for env in envs))
        for t in range(15):
            a, b = (env.step(torch.full((2, 1, 2, 3), t / 15)) for env in envs)
            assert all(torch.equal(x, y) for x, y in zip(a[:5], b[:5], strict=True))
        saved, state = (env.state_dict()["copies"]["3"]["copy"]["world"] for env in envs)
        assert torch.equal(saved["floats"], state["floats"]) and saved["time"] == state["time"]
    finally:
        for env in envs:
            env.close()


def test_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match="did you mean 'Hopper-v5'"):
        make_env("mujoco/Hoper-v5")
    with pytest.raises(UserError, match=r"does not take these keywords.*wings"):
        make_env("mujoco/Ant-v5", options={"wings": 2})
    with pytest.raises(UserError, match="at least 1, got 0"):
        make_env("mujoco/Ant-v5", agents=0)
    small, large = make_env("mujoco/Hopper-v5"), make_env("mujoco/Ant-v5")
    with pytest.raises(UserError, match="this MuJoCo state has"):
        large.load_state_dict(small.state_dict())


def test_without_mujoco_the_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(UserError, match=r"^mujoco/Hopper-v5: cannot import 'mujoco' .*; pip install .*mujoco imageio$"):
        make_env("mujoco/Hopper-v5")


@pytest.mark.parametrize("name", ["mujoco/Hopper-v5", "mamujoco/Ant-2x4"])
def test_a_graphics_library_that_mujoco_does_not_know_is_one_line(name: str) -> None:
    command = [sys.executable, "-m", "marl.cli", "train", "td3", name]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MUJOCO_GL": "crayon"})
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2 and line.endswith("invalid value for environment variable MUJOCO_GL: crayon)")


@pytest.mark.filterwarnings("error")
def test_a_drawing_without_opengl_is_one_line_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_drawing_names_the_variable("mujoco/Hopper-v5", monkeypatch)
