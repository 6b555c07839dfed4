"""Every probe solved to its closed form by MAPPO: the critic's values where it stands, and the deterministic action.

One population holds two seeds without reciprocity and the same two with kappa = 1/2 among states that are equal,
as in ``test_probes_solved``: in all probes the optimum stays what it is.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from marl.algos.common import following
from marl.algos.mappo import MAPPO, MAPPOConfig
from marl.config import replace
from marl.envs import make_env
from marl.envs.probes import PROBES, Probe, ProbeOptions
from marl.loop import first_view, interact
from marl.rollout import Rollout
from marl.types import View

GAMMA = 0.8
SEEDS, KAPPAS = [1, 2, 1, 2], [0.0, 0.0, 0.5, 0.5]
NOTHING_TO_CHOOSE = ("constant", "discount", "truncation", "termination", "masking")
SETTINGS = {
    "gamma": GAMMA,
    "actor_lr": 1e-2,
    "critic_lr": 1e-2,
    "entropy": 1e-3,
    "hidden": (32,),
    "rollout": 10,
    "epochs": 8,
    "value_clip": None,
    "reciprocity.adjacency": "exact",
}
IPPO = {"critic": "own", "shared": False}
CASES: list[tuple[str, bool, dict[str, Any]]] = [(name, discrete, {}) for discrete in (True, False) for name in PROBES]
CASES += [(name, True, {"shared": False}) for name in ("credit", "heterogeneous", "masking")]
CASES += [
    (name, False, {**IPPO, "minibatches": 2, "actor_lr": 3e-3}) for name in ("credit", "heterogeneous", "termination")
]
CASES += [
    (name, True, {"recurrent": True, "chunk": 5, "actor_lr": 3e-3}) for name in ("policy", "termination", "credit")
]
"""Twice the gradient steps, and a memory, take slower ones: once all do the best, standardised advantages are noise."""


def build(env: Probe, kappas: list[float], seeds: list[int], **changes: Any) -> MAPPO:
    config = MAPPOConfig()
    for name, value in {**SETTINGS, **changes}.items():
        config = replace(config, name, value)
    return MAPPO(env.spec, [replace(config, "reciprocity.kappa", kappa) for kappa in kappas], seeds)


def train(learner: MAPPO, env: Probe, updates: int, limit_is_end: bool = False) -> None:
    rollout = Rollout.of(learner.config, env.spec, env.copies, [0] * env.members, learner.memory_size)
    seen = interact(env, first_view(env, learner), lambda view: learner.act(view, explore=True))
    for _ in range(updates):
        for _, (view, acted, step) in zip(range(learner.config.rollout), seen, strict=False):
            rollout.add(view, acted, step._replace(terminated=step.done) if limit_is_end else step)
        learner.update(rollout.draw())


@torch.no_grad()
def values(learner: MAPPO, view: View) -> Tensor:
    """The critics about what is seen: ``[P, N, E]``. A recurrent one has noted what it was asked before."""
    memory = None if view.memory is None else view.memory[..., learner.width :]
    value, _ = learner.judge(learner.judge.see(view.obs, view.state).unsqueeze(2), memory)
    return learner.norm.denormalize(value.flatten(2))


def named(case: Any) -> str | None:
    return "-".join(f"{k}={v}" for k, v in case.items()) or "plain" if isinstance(case, dict) else None


@pytest.mark.parametrize("name, discrete, changes", CASES, ids=named)
def test_a_probe_is_solved_to_its_known_values(name, discrete, changes):
    def env(seeds: list[int]) -> Probe:
        return make_env(f"probe/{name}", seeds=seeds, copies=16, options={"continuous": not discrete})

    training = env(SEEDS)
    learner = build(training, KAPPAS, SEEDS, **changes)
    train(learner, training, updates=20 if name in NOTHING_TO_CHOOSE else 40)
    played = env([9] * len(SEEDS))
    view = first_view(played, learner)
    for _ in range(played.length):
        best, worth = played.best_action(view.obs), played.optimal_value(view.obs, GAMMA)
        torch.testing.assert_close(values(learner, view), worth, atol=0.1, rtol=0.02)
        # with exploration only for the critic's memory; what is judged is what is done without
        acted = learner.act(view, explore=False)
        step = played.step(acted.action)
        if name == "team":  # a line of equally good pairs of actions, or two pairs
            assert (1 - step.reward < 0.01).all()
        elif name not in NOTHING_TO_CHOOSE:
            miss = (acted.action - best).abs()
            assert (miss == 0).all() if discrete else miss.max() < 0.15
        noted = learner.act(view, explore=True).memory
        view = following(acted._replace(memory=noted), step)


def test_a_learner_that_takes_the_time_limit_for_an_end_misses_the_value():
    """1 / (1 - .8) = 5 is right. With every fifth transition an end and lambda = 0: v = 1 + .8 * .8 v, so 2.78."""
    env = make_env("probe/truncation", seeds=[1], copies=16)
    learner = build(env, [0.0], [1], gae_lambda=0.0)
    train(learner, env, updates=30, limit_is_end=True)
    value = values(learner, View(torch.ones(1, 1, 1, 1)))
    torch.testing.assert_close(value.flatten(), torch.tensor([1 / 0.36]), atol=0.2, rtol=0)


class Unequal(Probe):
    """Two agents, no end, reward 1 and 3 a step. Blended values solve Z_i = r_i + gamma ((1 - k) Z_i + k Z_j).

    Their sum is (1 + 3) / (1 - gamma) whatever k is, their difference (3 - 1) / (1 - gamma (1 - 2 k)).
    """

    length = 5
    limit = True
    obs_sizes: ClassVar[tuple[int, ...]] = (1, 1)
    action_sizes: ClassVar[tuple[int, ...]] = (1, 1)

    def observe(self, time: Tensor, signal: Tensor) -> Tensor:
        return self._ones()[..., None]

    def pay(self, time: Tensor, signal: Tensor, action: Tensor) -> Tensor:
        return self._ones() * torch.tensor([1.0, 3.0])[:, None]

    def optimal_value(self, obs: Tensor, gamma: float) -> Tensor:
        return torch.tensor([1.0, 3.0])[:, None].expand(obs.shape[:-1]) / (1 - gamma)


@pytest.mark.parametrize("changes", [{}, {"shared": False}, IPPO], ids=named)
def test_reciprocity_among_unequal_agents_has_its_own_fixed_point(changes):
    """One-step targets (lambda = 0): a longer return holds real rewards instead, which nobody blends. At kappa = 1 each
    chases the other, and Adam's momentum at a rate of 1e-2 keeps them swinging."""
    kappas, seeds = [0.0, 0.25, 0.5, 1.0], [1, 2, 3, 4]
    env = Unequal(seeds, 16, ProbeOptions())
    learner = build(env, kappas, seeds, gae_lambda=0.0, critic_lr=3e-3, **changes)
    train(learner, env, updates=60)
    value = values(learner, View(torch.ones(len(seeds), 2, 1, 1)))[..., 0]
    # sum 20, difference 10, 10/3, 2, 10/9
    expected = torch.tensor([[5.0, 15.0], [25 / 3, 35 / 3], [9.0, 11.0], [85 / 9, 95 / 9]])
    torch.testing.assert_close(value, expected, atol=0.1, rtol=0.02)
