"""The examples of the how-to pages do what the pages say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import marl
from examples import add_algorithm, add_environment
from marl import registry
from marl.envs import make_env
from marl.envs.base import EnvSpec
from marl.envs.check import check_env
from marl.registry import algorithm
from marl.types import Batch, View

TABLES = ((registry.ALGORITHMS, "iql"), (registry.ENVIRONMENTS, "tutorial"))
OWN = [(table, name, table.pop(name)) for table, name in TABLES]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """What the examples register when they are imported is there for these tests alone."""
    for table, name, entry in OWN:
        monkeypatch.setitem(table, name, entry)


def test_the_environment_keeps_the_contract():
    check_env(lambda seeds: make_env("tutorial/meeting", seeds=seeds, copies=3))


def test_two_walkers_a_step_apart_earn_minus_their_distance():
    """Walkers at 0 and 1; stride .3, actions +1 and -1: 0.3 and 0.7, so both earn -(0.7 - 0.3) = -0.4."""
    env = make_env("tutorial/meeting", agents=2)
    state = env.state_dict()
    env.load_state_dict({**state, "position": torch.tensor([0.0, 1.0]).view(1, 2, 1)})
    step = env.step(torch.tensor([1.0, -1.0]).view(1, 2, 1, 1))
    torch.testing.assert_close(step.reward.flatten(), torch.tensor([-0.4, -0.4]))


def test_the_environment_refuses_a_walker_alone_and_an_unknown_option():
    with pytest.raises(marl.UserError, match="2 agents or more"):
        make_env("tutorial/meeting", agents=1)
    with pytest.raises(marl.UserError, match="did you mean 'stride'"):
        make_env("tutorial/meeting", options={"strides": 1})


def test_the_export_page_exports_a_run_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs/howto/export.md").read_text()
    (program,) = re.findall(r"```python\n([^`]*add_environment[^`]*)```", page)
    marl.train("ddpg", "tutorial/meeting", run="runs/meeting", steps=10, hidden=(8,), eval_every=0)
    exec(compile(program, "export.md", "exec"), {})
    assert (tmp_path / "runs/meeting/export/seed=0-walker_0/policy.safetensors").is_file()


def test_ddpg_learns_to_meet(tmp_path, monkeypatch):
    """Walkers that never move earn 10 steps x about -.75 an episode; those that meet earn little after three steps."""
    monkeypatch.chdir(tmp_path)
    result = add_environment.main(steps=1_500, warmup=300, batch_size=64, hidden=(32, 32), eval_every=0)
    assert [row["mean"] > -2 for row in result["members"]] == [True, True]


def test_the_algorithm_is_found_by_its_name_and_learns_the_value_of_one_step():
    """gamma .5; action 0 pays 1 and ends, action 1 pays 0 and leads there again: Q(0) = 1, Q(1) = 0 + .5 x 1 = .5."""
    spec = EnvSpec("test/one", ("a",), (1,), (2,), discrete=True)
    config = add_algorithm.IQLConfig(gamma=0.5, lr=1e-2, tau=0.1)
    learner = algorithm("iql")(spec, [config], [0])
    one = torch.ones(1, 1, 2, 1)
    batch = Batch(one, torch.tensor([[[0, 1]]]), torch.tensor([[[1.0, 0.0]]]), one, torch.tensor([[[True, False]]]))
    for _ in range(300):
        learner.update(batch)
    torch.testing.assert_close(learner.q(one[:, :, :1]).flatten(), torch.tensor([1.0, 0.5]), atol=0.01, rtol=0)
    assert learner.act(View(one), explore=False).action.tolist() == [[[0, 0]]]


def test_the_algorithm_never_picks_an_action_that_an_agent_does_not_have():
    """Agent 0 has two actions of three: neither greedily nor at random may it pick the third."""
    spec = EnvSpec("test/uneven", ("a", "b"), (1, 1), (2, 3), discrete=True)
    learner = add_algorithm.IQL(spec, [add_algorithm.IQLConfig(epsilon=0.9)], [0])
    action = learner.act(View(torch.randn(1, 2, 500, 1)), explore=True).action
    assert set(action[0, 0].tolist()) == {0, 1} and set(action[0, 1].tolist()) == {0, 1, 2}


def test_the_algorithm_trains_and_resumes_from_its_own_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = add_algorithm.main(steps=600, warmup=200, eval_every=0)
    run = marl.resume(result["run"], steps=800)
    assert marl.evaluate(run, episodes=2)["step"] == 800


def test_the_algorithm_refuses_continuous_actions():
    with pytest.raises(marl.UserError, match="iql needs discrete actions"):
        add_algorithm.IQL(EnvSpec("test/c", ("a",), (1,), (2,), discrete=False), [add_algorithm.IQLConfig()], [0])
