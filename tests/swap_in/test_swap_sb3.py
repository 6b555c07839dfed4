"""Reciprocity among learners of stable-baselines3: their own ``learn`` and ``train``, one line of ours."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from swap_tools import RECIPES

sb3 = pytest.importorskip("stable_baselines3")
from stable_baselines3.common.envs import SimpleMultiObsEnv  # noqa: E402
from stable_baselines3.common.logger import Logger  # noqa: E402

from marl.reciprocity import HookedCritics, UserError  # noqa: E402
from marl.testing import answering, check_reciprocity  # noqa: E402

STEPS = 240  # 200 before learning starts, 40 updates of each learner
HOSTS = [(recipe, algorithm) for recipe in ("sb3_population", "sb3_single") for algorithm in ("td3", "ddpg")]


def script(recipe: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{recipe}_{name}", RECIPES / recipe / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parameters(learners) -> torch.Tensor:
    """All networks, targets included, of one learner or several."""
    models = learners if isinstance(learners, list) else [learners]
    return torch.cat([p.detach().flatten() for model in models for p in model.policy.parameters()])


@pytest.mark.parametrize(
    "recipe, name, options",
    [
        ("sb3_population", "plain", []),
        ("sb3_population", "reciprocal", ["--kappa", "0.5", "--algorithm", "ddpg"]),
        ("sb3_single", "plain", ["--algorithm", "ddpg"]),
        ("sb3_single", "reciprocal", ["--kappa", "0.5"]),
    ],
)
def test_the_script_runs_and_ends_with_its_return(recipe, name, options):
    command = [sys.executable, RECIPES / recipe / f"{name}.py", "--steps", "210", "--seed", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    word, number = done.stdout.splitlines()[-1].split()
    assert word == "return" and -2000 < float(number) < 0 and math.isfinite(float(number))


@pytest.mark.parametrize("recipe, algorithm", HOSTS)
def test_kappa_0_trains_to_the_same_bits_and_kappa_above_to_others(recipe, algorithm):
    plain = parameters(script(recipe, "plain").train(STEPS, 3, algorithm))
    stream = torch.get_rng_state()
    reciprocal = script(recipe, "reciprocal")
    assert torch.equal(parameters(reciprocal.train(STEPS, 3, algorithm, 0.0)), plain)
    assert torch.equal(torch.get_rng_state(), stream)
    other = parameters(reciprocal.train(STEPS, 3, algorithm, 0.5))
    assert torch.equal(torch.get_rng_state(), stream)  # and no number of the host's stream is used up
    assert other.isfinite().all() and not torch.equal(other, plain)


class Stopped(Exception):
    """The target is known; nothing further is to be learnt."""


class Host:
    """Three learners with one batch each, and the targets that their ``train`` hands to the critics' loss."""

    algorithm, agents = sb3.TD3, 3

    def __init__(self, kappa: float | None, seed: int) -> None:
        settings = {"buffer_size": 32, "batch_size": 32, "policy_kwargs": {"net_arch": [16]}}
        self.models = [
            self.algorithm("MlpPolicy", "Pendulum-v1", seed=seed + i, **settings) for i in range(self.agents)
        ]
        rng = np.random.default_rng(seed)
        for model in self.models:
            model.set_logger(Logger(None, []))
            memory = model.replay_buffer
            for rows in (memory.observations, memory.next_observations, memory.actions, memory.rewards):
                rows[:] = rng.normal(size=rows.shape)
            memory.full = True
        if kappa is not None:
            HookedCritics([model.critic_target for model in self.models], kappa)

    def targets(self, terminated: bool) -> torch.Tensor:
        return torch.stack([self.target(model, terminated) for model in self.models])

    def target(self, model, terminated: bool) -> torch.Tensor:
        def stop(_, target):
            seen.append(target.squeeze(-1))
            raise Stopped

        seen: list[torch.Tensor] = []
        model.replay_buffer.dones[:] = terminated
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(torch.nn.functional, "mse_loss", stop)
            model.train(gradient_steps=1, batch_size=32)
        return seen[0]

    def answer(self, values) -> None:
        for model, value in zip(self.models, values, strict=True):
            answering(model.critic_target, value)


class DDPGHost(Host):
    algorithm = sb3.DDPG


class SingleHost(Host):
    agents = 1


@pytest.mark.parametrize("host", [Host, DDPGHost, SingleHost])
def test_what_the_library_itself_computes_keeps_the_promises(host):
    check_reciprocity(host)


def test_the_target_leans_on_the_peer_by_kappa():
    """Target critics answer 10 and 20 everywhere; of learner 0 with kappa .25: r + .99 x (.75 x 10 + .25 x 20)."""

    class Two(Host):
        agents = 2

    host = Two(0.25, 0)
    host.answer([10.0, 20.0])
    targets = []
    for terminated in (False, True):
        np.random.seed(0)  # of the rows of the batch: the same ones, once going on and once ended
        targets.append(host.targets(terminated))
    torch.testing.assert_close(targets[0] - targets[1], torch.tensor([[12.375], [17.325]]).expand(2, 32))


def test_a_learner_is_saved_without_its_hooks_and_hooked_anew_when_loaded(tmp_path):
    host = Host(0.5, 0)
    host.models[0].save(tmp_path / "learner.zip")
    loaded = sb3.TD3.load(tmp_path / "learner.zip")
    assert torch.equal(parameters(loaded), parameters(host.models[0]))
    assert host.models[0].critic_target._forward_hooks and not loaded.critic_target._forward_hooks
    HookedCritics([loaded.critic_target])


def test_parameters_set_into_a_hooked_learner_keep_its_hooks():
    host, other = Host(0.5, 0), Host(0.5, 1)
    host.models[0].set_parameters(other.models[0].get_parameters())
    assert torch.equal(parameters(host.models[0]), parameters(other.models[0]))
    assert host.models[0].critic_target._forward_hooks


def test_observations_in_a_dict_are_refused():
    model = sb3.TD3("MultiInputPolicy", SimpleMultiObsEnv(discrete_actions=False), learning_starts=3, buffer_size=9)
    HookedCritics([model.critic_target])
    with pytest.raises(UserError, match=r"states of critic 0: expected a torch.Tensor, got dict"):
        model.learn(5)
