"""QMIX, VDN and independent Q-learning on games whose values are known in closed form.

The probes of ``marl/envs/probes.py`` with discrete actions: without a mixer each agent must come to its own value, with
one the team must come to the mean of them, since that is what it earns. And the game that tells the mixers apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from marl.algos.common import following
from marl.algos.qmix import QMIX, QMIXConfig, joint_state
from marl.config import replace
from marl.envs import make_env
from marl.envs.base import EnvSpec, Step, VectorEnv
from marl.envs.probes import PROBES, Probe
from marl.episodes import Episodes
from marl.loop import first_view
from marl.types import State

GAMMA = 0.8
SEEDS, KAPPAS = [1, 2, 1, 2], [0.0, 0.0, 0.5, 0.5]
COPIES = 8
FAST = {"gamma": GAMMA, "hidden": (32, 32), "lr": 3e-3, "target_interval": 0, "tau": 0.1, "embed": 16, "batch_size": 16}
NOTHING_TO_CHOOSE = ("constant", "discount", "truncation", "termination", "masking")


def build(env: VectorEnv, seeds: Sequence[int], kappas: Sequence[float], **changes: Any) -> QMIX:
    config = QMIXConfig()
    for name, value in {**FAST, "reciprocity.adjacency": "exact", **changes}.items():
        config = replace(config, name, value)
    return QMIX(env.spec, [replace(config, "reciprocity.kappa", kappa) for kappa in kappas], seeds)


def train(learner: QMIX, env: VectorEnv, seeds: Sequence[int], updates: int) -> None:
    """Two steps of all copies before every update."""
    buffer = Episodes.of(replace(learner.config, "buffer_size", 2000), env.spec, env.copies, seeds, learner.memory_size)
    view, time = first_view(env, learner), 0
    while learner.updates < updates:
        acted = learner.act(view, explore=True)
        step = env.step(acted.action)
        buffer.add(view, acted, step)
        view, time = following(acted, step), time + 1
        if time % 2 == 0 and time * env.copies > buffer.schedule.warmup:
            learner.update(buffer.draw())


def values(learner: QMIX, obs: Tensor) -> Tensor:
    """What the greedy joint action is worth at an episode's moments, ``[P, N, T, E, D]`` -> ``[P, G, T, E]``."""
    with torch.no_grad():
        utilities = learner.utilities.unroll(obs).masked_fill(~learner.action_mask[:, None, None], -1e9).amax(-1)
        return learner.mix(learner.mixer, utilities, joint_state(obs))


def probe(name: str, seeds: Sequence[int], copies: int) -> Probe:
    env = make_env(f"probe/{name}", seeds=seeds, copies=copies, options={"continuous": False})
    assert isinstance(env, Probe)
    env.spec = dataclasses.replace(env.spec, max_steps=env.length)
    return env


CASES = [(mixer, name) for mixer in ("none", "vdn", "qmix") for name in PROBES]


@pytest.mark.parametrize("mixer, name", CASES)
def test_a_probe_is_solved_to_its_known_values(mixer, name):
    env = probe(name, SEEDS, COPIES)
    learner = build(env, SEEDS, KAPPAS, mixer=mixer, shared=False, epsilon_steps=1000, epsilon_end=0.2)
    train(learner, env, SEEDS, updates=200 if name in NOTHING_TO_CHOOSE else 400)
    played = probe(name, [9] * len(SEEDS), 16)
    view, seen, worth = first_view(played, learner), [], []
    for _ in range(played.length):
        acted, best = learner.act(view, explore=False), played.best_action(view.obs)
        step = played.step(acted.action)
        if name == "team":  # two pairs of actions are equally good
            assert (step.reward == 1).all()
        elif name not in NOTHING_TO_CHOOSE:
            assert torch.equal(acted.action, best)
        seen.append(view.obs)
        worth.append(played.optimal_value(view.obs, GAMMA))
        view = following(acted, step)
    expected = torch.stack(worth, dim=2)
    expected = expected if mixer == "none" else expected.mean(1, keepdim=True)
    torch.testing.assert_close(values(learner, torch.stack(seen, dim=2)), expected, atol=0.15, rtol=0.03)


def test_a_time_limit_taken_for_an_end_gives_the_return_of_the_episode():
    """Rewards of 1 for five steps, then the limit: (1 - .8^5) / .2 = 3.3616 at the start, 1 at the last step."""
    env = probe("truncation", [1], COPIES)
    learner = build(env, [1], [0.0], mixer="vdn", limit_is_end=True)
    train(learner, env, [1], updates=200)
    found = values(learner, torch.ones(1, 1, 5, 1, 1)).flatten()
    torch.testing.assert_close(found[[0, 4]], torch.tensor([3.3616, 1.0]), atol=0.25, rtol=0)


# ---- the game that tells the mixers apart -------------------------------------------------------------------------


class TwoStep(VectorEnv):
    """The two-step game of the QMIX paper (Rashid et al. 2018, section 5): the best return is 8.

    Agent 0's first action leads to state A, where everything pays 7, or to state B, where the actions pay 0, 1, 1 or
    8. Both agents see the state.
    """

    PAYS = torch.tensor([[[7.0, 7.0], [7.0, 7.0]], [[0.0, 1.0], [1.0, 8.0]]])

    def __init__(self, members: int, copies: int) -> None:
        self.spec = EnvSpec("test/two_step", ("a", "b"), (3, 3), (2, 2), True, max_steps=2)
        self.members, self.copies = members, copies
        self.place = torch.zeros(members, copies, dtype=torch.int64)  # 0: the start; 1: A; 2: B

    def see(self) -> Tensor:
        return torch.nn.functional.one_hot(self.place, 3).float().unsqueeze(1).repeat(1, 2, 1, 1)

    def reset(self) -> Tensor:
        self.place.zero_()
        return self.see()

    def step(self, action: Tensor) -> Step:
        over = self.place > 0
        pays = self.PAYS[(self.place - 1).clamp(min=0), action[:, 0], action[:, 1]] * over
        arrived = torch.where(over, self.place, 1 + action[:, 0])
        self.place = arrived
        last = self.see()
        self.place = arrived * ~over
        wide = over.unsqueeze(1).repeat(1, 2, 1)
        return Step(self.see(), last, pays.unsqueeze(1).repeat(1, 2, 1), wide, wide)

    def state_dict(self) -> State:
        return {"place": self.place.clone()}

    def load_state_dict(self, state: State) -> None:
        self.place = state["place"].clone()


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("mixer, best", [("qmix", 8.0), ("vdn", 7.0)])
def test_qmix_finds_the_best_of_the_two_step_game_and_vdn_cannot(mixer, best, recurrent):
    """All actions are random while it learns. The sum that is nearest to 0, 1, 1, 8 gives -1.5, 2.5, 2.5, 6.5."""
    seeds = [1, 2, 3]
    env = TwoStep(len(seeds), COPIES)
    learner = build(
        env, seeds, [0.0] * 3, mixer=mixer, recurrent=recurrent, gamma=1.0, epsilon_end=1.0, lr=2e-3, batch_size=64
    )
    train(learner, env, seeds, updates=600)
    env = TwoStep(len(seeds), 1)
    view, rewards = first_view(env, learner), []
    for _ in range(2):
        acted = learner.act(view, explore=False)
        step = env.step(acted.action)
        rewards.append(step.reward[:, 0, 0])
        view = following(acted, step)
    assert rewards[0].tolist() == [0.0] * 3 and rewards[1].tolist() == [best] * 3
    states = torch.eye(3)[torch.tensor([[0, 0], [1, 2]])].expand(3, 2, 2, 2, 3)  # two episodes, over A and over B
    found = values(learner, states)[:, 0, 1]
    torch.testing.assert_close(found, torch.tensor([[7.0, 8.0 if mixer == "qmix" else 6.5]] * 3), atol=0.4, rtol=0)
