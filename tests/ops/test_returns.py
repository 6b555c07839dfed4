"""One-step targets in numbers that a reader can check in the head."""

from __future__ import annotations

import torch

from marl.ops.returns import td_target


def column(*numbers: float) -> torch.Tensor:
    """One member, one agent, one row for each number."""
    return torch.tensor(numbers).view(1, 1, -1)


def test_the_target_is_the_reward_plus_the_discounted_value():
    target = td_target(column(1.0, -2.0), column(0.5), torch.tensor([[[False, False]]]), column(10.0, 4.0))
    # 1 + .5 * 10 = 6; -2 + .5 * 4 = 0
    assert target.flatten().tolist() == [6.0, 0.0]


def test_termination_stops_the_bootstrap_and_a_time_limit_does_not():
    """Both episodes ended; only the second one's task did. The usual bug takes ``done`` for ``terminated``."""
    reward, gamma, value = column(1.0, 1.0), column(0.5), column(10.0, 10.0)
    terminated, done = torch.tensor([[[False, True]]]), torch.tensor([[[True, True]]])
    assert td_target(reward, gamma, terminated, value).flatten().tolist() == [6.0, 1.0]
    assert td_target(reward, gamma, done, value).flatten().tolist() == [1.0, 1.0]  # the bug: 1 where 6 is due


def test_each_member_has_its_own_discount():
    target = td_target(
        torch.zeros(2, 3, 1), torch.tensor([0.5, 0.25]).view(2, 1, 1), torch.zeros(2, 3, 1).bool(), torch.ones(2, 3, 1)
    )
    assert target[..., 0].tolist() == [[0.5] * 3, [0.25] * 3]


def test_what_a_critic_says_after_the_end_is_never_read():
    """A product with (1 - terminated) would pass infinity on as NaN: 0 * inf."""
    value = column(torch.inf, torch.nan)
    target = td_target(column(1.0, 2.0), column(0.9), torch.tensor([[[True, True]]]), value)
    assert target.flatten().tolist() == [1.0, 2.0]
    assert (value * 0.0).isnan().all()
