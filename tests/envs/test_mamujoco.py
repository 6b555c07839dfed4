"""Multi-agent MuJoCo: the contract, exact resume, and the package itself number by number."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import pytest
import torch
from drawing_tools import assert_drawing_names_the_variable
from packaging.version import Version

pytest.importorskip("gymnasium_robotics")

from gymnasium_robotics import mamujoco_v1

from marl.envs import VectorEnv, make_env
from marl.envs.check import check_env
from marl.envs.mamujoco import TASKS
from marl.types import UserError

SHORT = {"max_episode_steps": 11}
COUPLED = "CoupledHalfCheetah-1p1"
MUJOCO_IS_NEW = Version(version("mujoco")) >= Version("3.6")
"""It stores the Jacobian of tendons otherwise than gymnasium-robotics 1.4.2 reads it."""


def drawn(env: VectorEnv, generator: torch.Generator) -> torch.Tensor:
    shape = (env.members, env.spec.n_agents, env.copies, env.spec.action_size)
    return torch.rand(shape, generator=generator) * 2 - 1


@pytest.mark.parametrize("task", ["Ant-4x2", "HalfCheetah-6x1", "Hopper-3x1", "Humanoid-9|8", "Pusher-3p"])
def test_tasks_keep_the_contract(task: str) -> None:
    check_env(lambda seeds: make_env(f"mamujoco/{task}", seeds=seeds, options=SHORT), steps=26)


@pytest.mark.parametrize("task", TASKS)
def test_every_listed_task_goes_on_in_equal_bits_global_state_included(task: str) -> None:
    """Saved in the middle of the second episode, loaded into an object with a life of its own, through two resets."""

    def make() -> VectorEnv:
        return make_env(f"mamujoco/{task}", seeds=[4], options=SHORT)

    if task == COUPLED and MUJOCO_IS_NEW:
        pytest.skip("gymnasium-robotics cannot make it")
    env, other, generator = make(), make(), torch.Generator().manual_seed(1)
    env.reset()
    for _ in range(17):
        step = env.step(drawn(env, generator))
    other.reset()
    other.step(drawn(env, generator))
    other.load_state_dict(env.state_dict())
    assert step.state is not None and torch.equal(step.state, other.state())  # type: ignore[arg-type]
    for _ in range(20):
        action = drawn(env, generator)
        here, there = env.step(action), other.step(action)
        assert all(x is y is None or torch.equal(x, y) for x, y in zip(here, there, strict=True))


@pytest.mark.parametrize("fault", [IndexError("invalid index to\nscalar variable."), ValueError("odd")])
def test_a_task_that_the_package_cannot_make_is_refused_in_one_line_with_versions(fault, monkeypatch) -> None:
    def broken(**_: object) -> None:
        raise fault

    monkeypatch.setattr(mamujoco_v1, "parallel_env", broken)
    reason = " ".join(str(fault).split())
    line = rf"^mamujoco/{COUPLED} cannot be made by MaMuJoCo v1 of gymnasium-robotics \S+, MuJoCo \S+: {reason}$"
    with pytest.raises(UserError, match=line):
        make_env(f"mamujoco/{COUPLED}", seeds=[0])


@pytest.mark.parametrize("task", ["Hopper-3x1", "Ant-2x4", "Reacher-2x1"])
def test_a_copy_is_the_package_number_by_number(task: str) -> None:
    scenario, partition = task.split("-")
    theirs = mamujoco_v1.parallel_env(scenario=scenario, agent_conf=partition)
    env = make_env(f"mamujoco/{task}", seeds=[3])
    env.reset()
    ours = env.pool.copies[0]  # type: ignore[attr-defined]
    theirs.reset(seed=0)
    generator = torch.Generator().manual_seed(2)
    # the same start: the same generator, and one more reset of both
    theirs.single_agent_env.unwrapped.np_random.bit_generator.state = ours.world.np_random.bit_generator.state
    ours_obs, (theirs_obs, _) = env.reset(), theirs.reset()
    ended = 0
    for _ in range(60):
        for i, agent in enumerate(theirs.possible_agents):
            width = env.spec.obs_sizes[i]
            np.testing.assert_array_equal(ours_obs[0, i, 0, :width].numpy(), theirs_obs[agent].astype(np.float32))
        np.testing.assert_array_equal(env.state()[0, 0].numpy(), theirs.state().astype(np.float32))  # type: ignore[index]
        action = drawn(env, generator)
        step = env.step(action)
        given = {a: action[0, i, 0, : env.spec.action_sizes[i]].numpy() for i, a in enumerate(theirs.possible_agents)}
        theirs_obs, reward, terminated, truncated, _ = theirs.step(given)
        assert step.reward[0, :, 0].tolist() == [np.float32(r) for r in reward.values()]
        assert step.terminated[0, :, 0].tolist() == list(terminated.values())
        assert (step.done & ~step.terminated).any().item() == any(truncated.values())
        np.testing.assert_array_equal(step.next_state[0, 0].numpy(), theirs.state().astype(np.float32))  # type: ignore[index]
        ours_obs = step.obs
        if step.done.any():
            ended += 1
            theirs_obs, _ = theirs.reset()
    assert ended >= 1 or scenario == "Ant"  # Hopper falls, Reacher's time is up after 50 steps


def test_widths_differ_the_state_is_the_single_agents_and_the_reward_is_shared() -> None:
    env = make_env("mamujoco/Hopper-3x1", seeds=[0, 1], copies=2)
    assert env.spec.obs_sizes == (8, 9, 8) and env.spec.action_sizes == (1, 1, 1) and env.spec.state_size == 11
    assert env.spec.max_steps == 1000 and env.spec.exact_state and not env.spec.independent
    view = env.start()
    assert view.avail is None and view.state is not None and view.state.shape == (2, 2, 11)
    step = env.step(torch.zeros(2, 3, 2, 1))
    assert (step.reward == step.reward[:, :1]).all() and step.reward.unique().numel() == 4  # P x E worlds


def test_the_time_limit_truncates() -> None:
    env = make_env("mamujoco/HalfCheetah-2x3", options=SHORT)  # a half cheetah never terminates
    env.reset()
    steps = [env.step(torch.zeros(1, 2, 1, 3)) for _ in range(11)]
    assert [s.done.all().item() for s in steps] == [False] * 10 + [True]
    assert not steps[-1].terminated.any()


def test_options_reach_the_package() -> None:
    # without neighbours the foot of Hopper sees its own joint and the six global numbers: narrower than 8
    env = make_env("mamujoco/Hopper-3x1", options={"agent_obsk": 0})
    assert env.spec.obs_sizes == (7, 7, 7)
    assert make_env("mamujoco/Reacher-2x1").spec.max_steps == 50  # Gymnasium's own limit


def test_mistakes_are_one_line() -> None:
    for name, message in (
        ("Ant-2x5", "did you mean 'Ant-2x4'"),
        ("Hoper-3x1", "did you mean 'Hopper-3x1'"),
        ("Ant", "no environment 'mamujoco/Ant'"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            make_env(f"mamujoco/{name}")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"does not take wings=2: .*unexpected keyword"):
        make_env("mamujoco/Ant-2x4", options={"wings": 2})
    with pytest.raises(UserError, match="positive number of steps, got 0"):
        make_env("mamujoco/Ant-2x4", options={"max_episode_steps": 0})
    with pytest.raises(UserError, match="has 2 agents, not 3"):
        make_env("mamujoco/Ant-2x4", agents=3)


@pytest.mark.filterwarnings("error")
def test_a_drawing_without_opengl_is_one_line_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_drawing_names_the_variable("mamujoco/Hopper-3x1", monkeypatch)
