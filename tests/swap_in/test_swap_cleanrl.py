"""Reciprocity in a single-file TD3 of CleanRL's style: several learners side by side, and one alone."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from swap_tools import RECIPES, changed, script

from marl.reciprocity import HookedCritics
from marl.testing import answering, check_reciprocity

SMALL = {"batch_size": 8, "hidden": 16, "learning_starts": 10}


@pytest.fixture(scope="module")
def plain():
    return script("cleanrl", "plain")


def parameters(learners) -> torch.Tensor:
    names = ("actor", "qf1", "qf2", "target_actor", "qf1_target", "qf2_target")
    return torch.cat(
        [p.detach().flatten() for each in learners for name in names for p in getattr(each, name).parameters()]
    )


@pytest.mark.parametrize("name, options", [("plain", []), ("reciprocal", ["--kappa", "0.5", "--learners", "1"])])
def test_the_script_runs_and_ends_with_its_return(name, options):
    small = ["--steps", "30", "--seed", "1", "--learning-starts", "20", "--batch-size", "8", "--hidden", "16"]
    command = [sys.executable, RECIPES / "cleanrl" / f"{name}.py", *small, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    word, number = done.stdout.splitlines()[-1].split()
    assert word == "return" and -2000 < float(number) < 0 and math.isfinite(float(number))


@pytest.mark.parametrize("learners", [1, 3])
def test_kappa_0_trains_to_the_same_bits_and_kappa_above_to_others(plain, learners):
    expected = parameters(plain.train(40, 3, learners=learners, **SMALL))
    stream = torch.get_rng_state()
    reciprocal = script("cleanrl", "reciprocal")
    assert torch.equal(parameters(reciprocal.train(40, 3, learners=learners, kappa=0.0, **SMALL)), expected)
    assert torch.equal(torch.get_rng_state(), stream)
    assert not torch.equal(parameters(reciprocal.train(40, 3, learners=learners, kappa=0.5, **SMALL)), expected)


def test_a_user_adds_four_lines():
    assert changed("cleanrl") == 4


@pytest.mark.parametrize("learners", [1, 3])
def test_the_targets_keep_the_contract_of_reciprocity(plain, learners):
    class Host:
        """The script's own ``Learner.target`` on a batch of random numbers, hooked as ``reciprocal.py`` does it."""

        def __init__(self, kappa, seed):
            args = plain.Args(seed=seed, learners=learners, policy_noise=0.0, **SMALL)
            self.learners = [plain.Learner(args, number) for number in range(learners)]
            self.next_obs, self.rewards = torch.randn(learners, 8, 3), torch.randn(learners, 8, 1)
            if kappa is not None:
                generator = torch.Generator().manual_seed(seed)
                twins = [(each.qf1_target, each.qf2_target) for each in self.learners]
                HookedCritics(twins, kappa, adjacency="gaussian", generator=generator)

        def targets(self, terminated):
            dones = torch.full((8, 1), float(terminated))
            each = zip(self.learners, self.next_obs, self.rewards, strict=True)
            return torch.stack([learner.target(obs, reward, dones) for learner, obs, reward in each])

        def answer(self, values):
            for learner, value in zip(self.learners, values, strict=True):
                answering(learner.qf1_target, value)
                answering(learner.qf2_target, value)

    check_reciprocity(Host)


def test_both_critics_of_a_pair_are_asked_about_the_same_adjacent_states(plain):
    """Targets hold min(Z*_1, Z*_2); with twins that are equal, Z*_1 = Z*_2 if and only if the states are the same."""
    learners = [plain.Learner(plain.Args(learners=2, **SMALL), number) for number in range(2)]
    for each in learners:
        each.qf2_target.load_state_dict(each.qf1_target.state_dict())
    HookedCritics([(each.qf1_target, each.qf2_target) for each in learners], 0.5, adjacency="gaussian")
    obs, actions = torch.randn(8, 3), torch.rand(8, 1)
    for each in learners:
        assert torch.equal(each.qf1_target(obs, actions), each.qf2_target(obs, actions))
