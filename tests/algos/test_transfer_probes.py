"""MAPTF and DVM solve what MADDPG and MAPPO solve: the probes that fit, to their known values.

One population holds a seed without reciprocity and the same with kappa = 1/2 among states that are exactly equal. DVM's
probes are those whose agents are alike: in ``credit`` agents see the same and should do different things, which copies
cannot.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from marl import registry
from marl.config import replace, settings
from marl.envs import make_env
from marl.loop import first_view, interact, random_actions
from marl.modules.critics import joint_input
from marl.replay import Replay
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
CASES = [("maptf", name) for name in (*ALIKE, "credit", "heterogeneous")] + [("dvm", name) for name in ALIKE]


def build(algorithm: str, spec: Any) -> Any:
    learner = registry.algorithm(algorithm)
    config = learner.Config()
    names = {s.name for s in settings(learner.Config)}
    for name, value in SETTINGS.items():
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


@pytest.mark.parametrize("algorithm, name", CASES)
def test_a_probe_is_solved_to_its_known_values(algorithm, name):
    env = make_env(f"probe/{name}", seeds=SEEDS, copies=COPIES)
    learner = build(algorithm, env.spec)
    assert (learner.Buffer is Replay) and learner.memory_size == (algorithm == "maptf")
    if algorithm == "maptf":
        train(learner, env, 200 if name in VALUES_ONLY else 500)
    else:
        train(learner, env, 300 if name in VALUES_ONLY else 800)  # one whole cycle, or two and most of the third one
    played = make_env(f"probe/{name}", seeds=[9, 9], copies=16)
    obs = played.reset()
    for _ in range(played.length):
        action, best = learner.base.act(View(obs), explore=False).action, played.best_action(obs)
        worth = played.optimal_value(obs, GAMMA)
        step = played.step(action)
        if name == "team":
            assert (1 - step.reward < 0.1).all()
        elif name not in VALUES_ONLY:
            assert (action - best).abs().max() < 0.25
        with torch.no_grad():
            q = learner.critic(joint_input(obs, action.unsqueeze(1), shared=False))
        torch.testing.assert_close(q, worth, atol=0.1, rtol=0.02)
        obs = step.obs


def test_distilled_agents_with_contradicting_tasks_can_at_best_meet_in_the_middle():
    """``credit`` wants -1/2, 0 and 1/2 of agents that see the same. Copies all play 0 and lose 1/4 of 1 and of 3."""
    env = make_env("probe/credit", seeds=SEEDS, copies=COPIES)
    learner = build("dvm", env.spec)
    train(learner, env, 300)  # one cycle
    action = learner.act(View(env.reset()), explore=False).action
    assert torch.equal(action[:, 0], action[:, 1]) and torch.equal(action[:, 1], action[:, 2])
    torch.testing.assert_close(action, torch.zeros_like(action), atol=0.25, rtol=0)


@pytest.mark.parametrize("name, discrete", [("credit", False), ("heterogeneous", True)])
def test_on_mappo_the_agents_find_the_best_actions(name, discrete):
    env = make_env(f"probe/{name}", seeds=SEEDS, copies=COPIES, options={"continuous": not discrete})
    learner = build("maptf-mappo", env.spec)
    train(learner, env, 80)
    played = make_env(f"probe/{name}", seeds=[9, 9], copies=16, options={"continuous": not discrete})
    obs = played.reset()
    miss = (learner.base.act(View(obs), explore=False).action - played.best_action(obs)).abs()
    assert (miss == 0).all() if discrete else miss.max() < 0.25
