"""What an environment shows at the start of an episode is looked at before anything of it is remembered."""

import dataclasses

import pytest
import torch
from test_loop import studio

from marl.envs.probes import Discount, Truncation
from marl.types import UserError


class Stained(Truncation):
    """Its third episode begins with NaN."""

    steps = 0

    def step(self, action):
        step = super().step(action)
        self.steps += 1
        return step._replace(obs=step.obs * torch.nan) if self.steps == 2 * self.length else step


class StainedAtOnce(Truncation):
    def reset(self):
        return super().reset() * torch.nan


class StainedState(Discount):
    """Its global state turns NaN at the end of an episode, or at the beginning of the next."""

    where = "state"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.spec = dataclasses.replace(self.spec, state_size=2)

    def state(self):
        return torch.zeros(1, self.copies, 2)

    def step(self, action):
        step = super().step(action)
        stain = torch.where(step.done.any(1).unsqueeze(-1), torch.nan, self.state())
        return step._replace(**{"state": self.state(), "next_state": self.state(), self.where: stain})


def test_an_observation_after_a_reset_that_is_not_finite_is_not_remembered():
    tape, training, roll = studio(Stained, steps=50)
    line = r"^observation of agent_0 \(member kappa=0.5\) is not finite at step 9; the last"
    with pytest.raises(UserError, match=line):
        roll()
    assert training.steps == len(training.buffer) == tape.count("add") == 9
    assert not any(entry.startswith("save") for entry in tape)


def test_nor_does_a_training_begin_with_one():
    with pytest.raises(UserError, match=r"^observation of agent_0 .* is not finite as the first episode begins$"):
        studio(StainedAtOnce, steps=50)


@pytest.mark.parametrize("where", ["state", "next_state"])
def test_a_global_state_that_is_not_finite_is_not_remembered(where):
    _, training, roll = studio(type("There", (StainedState,), {"where": where}), steps=50)
    with pytest.raises(UserError, match=r"^state of the environment \(member kappa=0.5\) is not finite at step \d+;"):
        roll()
    assert training.steps == len(training.buffer) < 50
