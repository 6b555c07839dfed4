"""MAPTF and DVM solve what MADDPG and MAPPO solve: the probes that fit, to their known values.

One population holds a seed without reciprocity and the same with kappa = 1/2 among states that are exactly equal. DVM's
probes are those whose agents are alike: in ``credit`` agents see the same and should do different things, which copies
cannot.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from marl import registry
from marl.algos.mappo import MAPPO
from marl.config import replace, settings
from marl.envs import make_env
from marl.loop import first_view, interact, random_actions
from marl.modules.critics import joint_input
from marl.streams import Streams
from marl.types import Acted, View

GAMMA = 0.8
SEEDS, KAPPAS = [1, 1], [0.0, 0.5]
COPIES = 8
VALUES_ONLY = ("constant", "discount", "truncation", "termination", "masking")
ALIKE = (*VALUES_ONLY, "team", "policy")
SETTINGS = {
    **{"gamma": GAMMA, "hidden": (32, 32), "actor_lr": 5e-3, "critic_lr": 5e-3, "reciprocity.adjacency": "exact"},
    **{"tau": 0.2, "noise": 0.3, "buffer_size": 1024, "batch_size": 64, "warmup": 800, "update_every": 4},
    **{"cycle_train": 200, "cycle_distil": 100, "distil_lr": 5e-3},
    **{"options.lr": 1e-3, "options.weight": 0.01, "options.target_interval": 20},
    **{"rollout": 8, "epochs": 4, "entropy": 0.001, "max_grad_norm": None},
}
DISCRETE = {**SETTINGS, "hidden": (64, 64), "actor_lr": 3e-3, "critic_lr": 3e-3, "action_l2": 0.1}
"""As ``test_probes_solved`` has them for MADDPG, and for the same reason."""
PROBES = (*ALIKE, "credit", "heterogeneous")
UPDATES = {"maptf": (200, 500), "dvm": (300, 800), "maptf-mappo": (60, 80)}
"""With nothing to choose, and with something; of DVM one whole cycle, or two and most of the third one."""
CASES = [
    (algorithm, name, discrete)
    for algorithm, names in (("maptf", PROBES), ("dvm", ALIKE), ("maptf-mappo", PROBES))
    for name in names
    for discrete in (False, True)
]


def build(algorithm: str, spec: Any) -> Any:
    learner = registry.algorithm(algorithm)
    config = learner.Config()
    names = {s.name for s in settings(learner.Config)}
    chosen = DISCRETE if spec.discrete and "action_l2" in names else SETTINGS
    if spec.id == "probe/team":
        chosen = {**chosen, "action_l2": 0.03 if spec.discrete else 0.001}
    for name, value in chosen.items():
        if name in names:
            config = replace(config, name, value)
    return learner(spec, [replace(config, "reciprocity.kappa", kappa) for kappa in KAPPAS], SEEDS)


def train(learner: Any, env: Any, updates: int) -> None:
    """As the loop does: random actions in the warm-up, then the learner's, and updates when they are due."""
    buffer, warmup = (
        learner.Buffer.of(learner.config, env.spec, COPIES, SEEDS, learner.memory_size),
        Streams([7, 7], "w"),
    )

    def act(view: View) -> Acted:
        if steps < buffer.schedule.warmup:
            return Acted(random_actions(warmup, env.spec, COPIES), view.memory)
        return learner.act(view, explore=True)

    done = steps = 0
    for transition in interact(env, first_view(env, learner), act):
        buffer.add(*transition)
        steps += COPIES
        while done < min(buffer.schedule.due(steps), updates):
            learner.update(buffer.draw())
            done += 1
        if done == updates:
            return


def values(learner: Any, obs: Tensor, action: Tensor) -> Tensor:
    """The online critics at what is about to be done: ``[P, N, E]``."""
    base = learner.base
    with torch.no_grad():
        if isinstance(base, MAPPO):
            value, _ = base.judge(base.judge.see(obs, None).unsqueeze(2))
            return base.norm.denormalize(value.squeeze(2))
        if base.discrete:
            action = one_hot(action, base.action_size).float()
        return base.critic(joint_input(obs, action.unsqueeze(1), shared=False))


@pytest.mark.parametrize("algorithm, name, discrete", CASES)
def test_a_probe_is_solved_to_its_known_values(algorithm, name, discrete):
    options = {"continuous": not discrete}
    env = make_env(f"probe/{name}", seeds=SEEDS, copies=COPIES, options=options)
    learner = build(algorithm, env.spec)
    train(learner, env, UPDATES[algorithm][name not in VALUES_ONLY])
    played = make_env(f"probe/{name}", seeds=[9, 9], copies=16, options=options)
    obs = played.reset()
    for _ in range(played.length):
        action, best = learner.base.act(View(obs), explore=False).action, played.best_action(obs)
        worth = played.optimal_value(obs, GAMMA)
        step = played.step(action)
        if name == "team":
            assert (1 - step.reward < 0.1).all()
        elif name not in VALUES_ONLY:
            miss = (action - best).abs()
            assert (miss == 0).all() if discrete else miss.max() < 0.25
        torch.testing.assert_close(values(learner, obs, action), worth, atol=0.1, rtol=0.02)
        obs = step.obs


def test_distilled_agents_with_contradicting_tasks_can_at_best_meet_in_the_middle():
    """``credit`` wants -1/2, 0 and 1/2 of agents that see the same. Copies all play 0 and lose 1/4 of 1 and of 3."""
    env = make_env("probe/credit", seeds=SEEDS, copies=COPIES)
    learner = build("dvm", env.spec)
    train(learner, env, 300)  # one cycle
    action = learner.act(View(env.reset()), explore=False).action
    assert torch.equal(action[:, 0], action[:, 1]) and torch.equal(action[:, 1], action[:, 2])
    torch.testing.assert_close(action, torch.zeros_like(action), atol=0.25, rtol=0)
