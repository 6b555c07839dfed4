"""The stacked learners against loops of separate networks: equal weights and batches in, equal weights out.

The agents differ in the widths of their observations and actions, so padding would show; the members of the population
differ in their learning rates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.loops import LoopDDPG, LoopMADDPG, LoopTD3
from marl.algos.ddpg import DDPG, DDPGConfig
from marl.algos.maddpg import MADDPG, MADDPGConfig
from marl.algos.td3 import TD3, TD3Config
from marl.envs.base import EnvSpec
from marl.modules.stacked import StackedMLP
from marl.ops.discrete import gumbel
from marl.streams import Streams
from marl.types import Batch

SEEDS = [5, 6]
RATES = [(1e-3, 2e-3), (3e-3, 4e-3)]  # (actor, critic) of each member
OBS, ACTION, HIDDEN, ROWS, UPDATES = (5, 3, 4), (2, 3, 1), (16, 8), 32, 4
D, A, N, P = max(OBS), max(ACTION), len(OBS), len(SEEDS)
LOOP = dict(obs_sizes=OBS, action_sizes=ACTION, hidden=HIDDEN, gamma=0.9, tau=0.05)
CLOSE = dict(rtol=1e-5, atol=1e-5)


def make(learner: Any, config: Any, discrete: bool = False) -> Any:
    spec = EnvSpec("test/hetero", tuple("abc"), OBS, ACTION, discrete)
    base = config(gamma=0.9, tau=0.05, hidden=HIDDEN)
    configs = [dataclasses.replace(base, actor_lr=actor, critic_lr=critic) for actor, critic in RATES]
    return learner(spec, configs, SEEDS)


def random_batch(generator: torch.Generator, discrete: bool = False) -> Batch:
    """Zeros where an agent has no such coordinate; a third of the rows terminates."""
    normal = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    real = torch.arange(D) < torch.tensor(OBS)[:, None, None]
    own = torch.arange(A) < torch.tensor(ACTION)[:, None, None]
    if discrete:
        picks = [torch.randint(size, (P, ROWS), generator=generator) for size in ACTION]
        action = torch.stack(picks, dim=1)
    else:
        action = torch.tanh(normal(P, N, ROWS, A)) * own
    return Batch(
        obs=normal(P, N, ROWS, D) * real,
        action=action,
        reward=normal(P, N, ROWS),
        next_obs=normal(P, N, ROWS, D) * real,
        terminated=torch.rand((P, N, ROWS), generator=generator) < 1 / 3,
    )


def cut(x: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """``[N, B, W]`` as one tensor per agent without the padding."""
    return [x[i, :, :width] for i, width in enumerate(widths)]


def as_lists(batch: Batch, p: int) -> dict[str, list[Tensor]]:
    """What the loop of member p is given."""
    return {
        "obs": cut(batch.obs[p], OBS),
        "action": cut(batch.action[p], ACTION) if batch.action.dim() == 4 else list(batch.action[p]),
        "reward": list(batch.reward[p]),
        "next_obs": cut(batch.next_obs[p], OBS),
        "terminated": list(batch.terminated[p]),
    }


def rows_of(blocks: Sequence[tuple[int, int]]) -> list[int]:
    """Which rows of a padded input are real, for blocks of ``(real width, padded width)``."""
    found, start = [], 0
    for real, padded in blocks:
        found += range(start, start + real)
        start += padded
    return found


def stacked_weights(stack: StackedMLP, p: int, k: int, rows: list[int], columns: int) -> list[Tensor]:
    """Network (p, k) without padding, in the order and layout of ``torch.nn.Linear``'s parameters."""
    found: list[Tensor] = []
    for layer in stack.layers:
        found += [layer.weight[p, k].detach().T, layer.bias[p, k, 0].detach()]
    found[0] = found[0][:, rows]
    found[-2], found[-1] = found[-2][:columns], found[-1][:columns]
    return found


class Pair:
    """A stacked learner and one loop per member that starts with the same weights."""

    def __init__(self, learner: Any, loops: list[Any], heads: int, joint: bool) -> None:
        self.learner, self.loops, self.heads = learner, loops, heads
        everything = rows_of([(o, D) for o in OBS] + [(a, A) for a in ACTION])
        self.actor_rows = [rows_of([(o, D)]) for o in OBS]
        self.critic_rows = [
            everything if joint else rows_of([(o, D), (a, A)]) for o, a in zip(OBS, ACTION, strict=True)
        ]
        with torch.no_grad():
            for _, network, weights in self.networks():
                for parameter, value in zip(network.parameters(), weights, strict=True):
                    parameter.copy_(value)

    def networks(self) -> list[tuple[str, nn.Module, list[Tensor]]]:
        found = []
        for p, loop in enumerate(self.loops):
            for i in range(N):
                for prefix in ("", "target_"):
                    actor = stacked_weights(
                        getattr(self.learner, prefix + "actor"), p, i, self.actor_rows[i], ACTION[i]
                    )
                    found.append((f"{prefix}actor {p} {i}", getattr(loop, prefix + "actors")[i], actor))
                    own = getattr(loop, prefix + "critics")[i]
                    for head, network in enumerate([own] if self.heads == 1 else own):
                        stack, k = getattr(self.learner, prefix + "critic"), i * self.heads + head
                        critic = stacked_weights(stack, p, k, self.critic_rows[i], 1)
                        found.append((f"{prefix}critic {p} {i} {head}", network, critic))
        return found

    def assert_equal(self) -> None:
        for name, network, weights in self.networks():
            for parameter, value in zip(network.parameters(), weights, strict=True):
                torch.testing.assert_close(value, parameter.detach(), **CLOSE, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("updates", [1, UPDATES])
def test_ddpg_takes_the_step_of_separate_networks(updates):
    loops = [LoopDDPG(**LOOP, actor_lr=actor, critic_lr=critic) for actor, critic in RATES]
    pair = Pair(make(DDPG, DDPGConfig), loops, heads=1, joint=False)
    generator = torch.Generator().manual_seed(0)
    for _ in range(updates):
        batch = random_batch(generator)
        pair.learner.update(batch)
        for p, loop in enumerate(loops):
            loop.update(**as_lists(batch, p))
    pair.assert_equal()


@pytest.mark.parametrize("updates", [1, 2, UPDATES])
def test_td3_takes_the_step_of_separate_networks_also_when_the_actor_waits(updates):
    loops = [LoopTD3(**LOOP, actor_lr=actor, critic_lr=critic) for actor, critic in RATES]
    pair = Pair(make(TD3, TD3Config), loops, heads=2, joint=False)
    smoothing = Streams(SEEDS, "smoothing")  # the same numbers as the learner's own stream
    generator = torch.Generator().manual_seed(0)
    for _ in range(updates):
        batch = random_batch(generator)
        noise = smoothing.normal(N, ROWS, A)
        pair.learner.update(batch)
        for p, loop in enumerate(loops):
            loop.update(**as_lists(batch, p), noise=cut(noise[p], ACTION))
    pair.assert_equal()


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "gumbel-softmax"])
@pytest.mark.parametrize("updates", [1, UPDATES])
def test_maddpg_takes_the_step_of_separate_networks(discrete, updates):
    loops = [LoopMADDPG(**LOOP, actor_lr=a, critic_lr=c, discrete=discrete) for a, c in RATES]
    pair = Pair(make(MADDPG, MADDPGConfig, discrete), loops, heads=1, joint=True)
    relaxation = Streams(SEEDS, "relaxation")
    generator = torch.Generator().manual_seed(0)
    for _ in range(updates):
        batch = random_batch(generator, discrete)
        noise = gumbel(relaxation.uniform(N, ROWS, A)) if discrete else None
        pair.learner.update(batch)
        for p, loop in enumerate(loops):
            loop.update(**as_lists(batch, p), noise=None if noise is None else cut(noise[p], ACTION))
    pair.assert_equal()


BUGS = {
    "the discount is .89 instead of .9": lambda given: {},
    "a time limit taken for a termination": lambda given: {"terminated": [torch.ones(ROWS, dtype=torch.bool)] * N},
    "the agents' rewards exchanged": lambda given: {"reward": given["reward"][::-1]},
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_comparison_tells_a_wrong_loop_apart(bug):
    """Several updates are needed: Adam's first step is the gradient's sign, whatever its size."""
    gamma = 0.89 if "discount" in bug else 0.9
    loops = [LoopMADDPG(**{**LOOP, "gamma": gamma}, actor_lr=actor, critic_lr=critic) for actor, critic in RATES]
    pair = Pair(make(MADDPG, MADDPGConfig), loops, heads=1, joint=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(UPDATES):
        batch = random_batch(generator)
        pair.learner.update(batch)
        for p, loop in enumerate(loops):
            given = as_lists(batch, p)
            loop.update(**{**given, **BUGS[bug](given)})
    with pytest.raises(AssertionError, match="not close"):
        pair.assert_equal()
