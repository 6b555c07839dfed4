"""The numbers that each probe promises, seen by playing it."""

from __future__ import annotations

import itertools

import pytest
import torch

from marl.envs import make_env
from marl.envs.check import check_env
from marl.envs.probes import PROBES, Probe
from marl.types import UserError

BOTH = pytest.mark.parametrize("continuous", [True, False])
ALL = pytest.mark.parametrize("name", list(PROBES))


def probe(name: str, continuous: bool = True, seeds: tuple[int, ...] = (0, 1), copies: int = 4) -> Probe:
    env = make_env(f"probe/{name}", seeds=seeds, copies=copies, options={"continuous": continuous})
    assert isinstance(env, Probe)
    return env


@ALL
@BOTH
def test_a_probe_keeps_the_contract(name: str, continuous: bool) -> None:
    check_env(lambda seeds: make_env(f"probe/{name}", seeds=seeds, copies=2, options={"continuous": continuous}))


@ALL
@BOTH
def test_the_best_action_earns_the_optimal_value(name: str, continuous: bool) -> None:
    """Bellman's equation along a played episode: V(s) = r(s, best) + gamma * (1 - terminated) * V(s')."""
    gamma = 0.9
    env = probe(name, continuous)
    obs = env.reset()
    for _ in range(7):
        step = env.step(env.best_action(obs))
        following = gamma * ~step.terminated * env.optimal_value(step.next_obs, gamma)
        torch.testing.assert_close(env.optimal_value(obs, gamma), step.reward + following)
        obs = step.obs


@pytest.mark.parametrize("name", ["credit", "heterogeneous", "policy", "masking", "constant"])
def test_no_discrete_action_earns_more_than_the_optimal_value(name: str) -> None:
    for actions in itertools.product(*(range(k) for k in probe(name, False).spec.action_sizes)):
        env = probe(name, False)
        obs = env.reset()
        tried = torch.tensor(actions)[:, None].expand(obs.shape[:-1])
        best = env.optimal_value(obs, 0.9)
        earned = env.step(tried).reward
        assert (earned <= best).all()
        if name in ("credit", "heterogeneous", "policy"):
            wrong = tried != env.best_action(obs)
            assert (earned[wrong] == 0).all()


@BOTH
def test_in_team_one_agent_alone_cannot_know_what_is_best(continuous: bool) -> None:
    """Against the partner's best move mine pays 1; against another move of the partner the same one pays less."""
    env = probe("team", continuous)
    obs = env.reset()
    action = env.best_action(obs)
    moved = action.clone()
    moved[:, 1] = 1 - moved[:, 1] if not continuous else moved[:, 1] + 0.5
    reward = env.step(moved).reward
    # discrete: the pair is wrong, 0. continuous: the sum misses c by .5, so 1 - .25
    torch.testing.assert_close(reward, torch.full_like(reward, 0.75 if continuous else 0.0))


def test_truncation_never_terminates_and_termination_never_truncates() -> None:
    for name, length in (("truncation", 5), ("termination", 3)):
        env = probe(name)
        obs = env.reset()
        for t in range(1, 11):
            step = env.step(env.best_action(obs))
            assert bool(step.done.all()) == bool(step.done.any()) == (t % length == 0)
            assert torch.equal(step.terminated, step.done if name == "termination" else torch.zeros_like(step.done))


def test_the_known_values_at_gamma_one_half() -> None:
    # discount: (.5, 1); truncation: 1/(1-.5) = 2; termination: 1 + .5 + .25, 1 + .5, 1; credit: 1, 2, 3
    def values(name: str) -> list[float]:
        env = probe(name, seeds=(0,), copies=1)
        obs, out = env.reset(), []
        for _ in range(env.length):
            out += env.optimal_value(obs, 0.5).flatten().tolist()
            obs = env.step(env.best_action(obs)).obs
        return out

    assert values("discount") == [0.5, 1.0]
    assert values("truncation") == [2.0] * 5
    assert values("termination") == [1.75, 1.5, 1.0]
    assert values("credit") == [1.0, 2.0, 3.0]


def test_credit_is_individual() -> None:
    env = probe("credit", seeds=(0,), copies=1)
    env.reset()
    # targets -.5, 0, .5: agent 1 misses by .5 and loses 2 * .25; the others hit theirs
    reward = env.step(torch.tensor([-0.5, 0.5, 0.5]).view(1, 3, 1, 1)).reward
    assert reward.flatten().tolist() == [1.0, 1.5, 3.0]


def test_the_value_is_read_from_the_first_entry_in_masking() -> None:
    env = probe("masking", copies=50)
    obs = env.reset()
    step = env.step(env.best_action(obs))
    assert torch.equal(step.reward, obs[..., 0])
    assert not torch.equal(obs[..., 0], obs[..., 1])
    assert abs(step.reward.mean()) < 0.2  # 200 fair coins of +-1/2: standard error .035


@ALL
def test_the_mean_return_of_the_best_policy_is_the_stated_one(name: str) -> None:
    env = probe(name, seeds=(0,), copies=400)
    obs = env.reset()
    total = torch.zeros(env.spec.n_agents)
    for _ in range(env.length):
        step = env.step(env.best_action(obs))
        total, obs = total + step.reward[0].mean(-1), step.obs
    torch.testing.assert_close(total, torch.tensor(env.optimal_return), atol=0.1, rtol=0)


def test_unknown_probes_and_wrong_numbers_of_agents_are_one_line() -> None:
    with pytest.raises(UserError, match="did you mean 'credit'"):
        make_env("probe/credti")
    with pytest.raises(UserError, match="probe/credit has 3 agents, not 2"):
        make_env("probe/credit", agents=2)
    with pytest.raises(UserError, match="no option 'continous'"):
        make_env("probe/credit", options={"continous": True})
