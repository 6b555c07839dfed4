"""Agents that leave while the episode goes on: no algorithm learns from what is said of them afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_contract import CASES, COPIES, Case, choose, leaves, look, make

from marl import registry
from marl.algos.common import following
from marl.envs.base import Step
from marl.loop import random_actions
from marl.streams import Streams
from marl.types import Acted

TEAMS = [
    next(c for c in CASES if (c.algorithm, c.kind, c.shared) == (algorithm, "three", False))
    for algorithm in registry.ALGORITHMS
]


def learnt(case: Case, later: float, leaves_at: int = 0, **settings: Any) -> Any:
    """A learner after some updates on episodes of four steps, in which agent 0 leaves after one or more.

    Args:
        later: agent 0's reward from then on; 0 in any real environment.
        leaves_at: the step at which it leaves; 3: with all others.
        settings: of the algorithm.
    """
    learner = make(case, seeds=[0], mixer="none", warmup=0, update_every=4 * COPIES, batch_size=20, **settings)
    spec, streams, size = case.spec, Streams([0], "batch"), learner.memory_size
    buffer = type(learner).Buffer.of(learner.config, spec, COPIES, [0], size)
    view = look(spec, streams, 1.0, torch.zeros(1, 3, COPIES, size) if size else None)
    drawn = 0
    for time in range(48):
        acted = Acted(
            random_actions(streams, spec, COPIES, view.avail), streams.normal(3, COPIES, size) if size else None
        )
        terminated, reward = torch.zeros(1, 3, COPIES, dtype=torch.bool), streams.normal(3, COPIES)
        terminated[:, 0] = time % 4 >= leaves_at
        if time % 4 > leaves_at:
            reward[:, 0] = later
        done = torch.full_like(terminated, time % 4 == 3)
        after, last = look(spec, streams, 1.0), look(spec, streams, 1.0)
        true = {name: choose(done, getattr(last, name), getattr(after, name)) for name in ("obs", "avail", "state")}
        seen = (after.obs, true["obs"], reward, terminated, done, None)
        step = Step(*seen, after.avail, true["avail"], after.state, true["state"])
        buffer.add(view, acted, step)
        view = following(acted, step)
        if buffer.schedule.due((time + 1) * COPIES) > drawn:
            drawn += 1
            learner.update(buffer.draw())
    assert drawn > 2
    return learner


def same(one: Any, other: Any) -> bool:
    first, second = leaves(one.state_dict()), leaves(other.state_dict())
    return all(torch.equal(x, second[name]) for name, x in first.items() if isinstance(x, torch.Tensor))


@pytest.mark.parametrize("case", TEAMS, ids=str)
def test_what_follows_an_agents_departure_teaches_nobody(case):
    """With central critics too: no other agent's reward is touched."""
    assert same(learnt(case, later=0.0), learnt(case, later=1000.0))
    assert not same(learnt(case, later=0.0), learnt(case, later=0.0, leaves_at=3))


def test_nor_does_it_as_a_part_of_the_returns_of_several_steps():
    case = next(case for case in TEAMS if case.algorithm == "dqn")
    assert same(learnt(case, later=0.0, n_step=3), learnt(case, later=1000.0, n_step=3))
