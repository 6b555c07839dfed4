"""Targets and advantages in numbers that a reader can check in the head."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from marl.ops.returns import gae, lambda_returns, n_step_returns, td_target, window_target


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


def series(*numbers: float) -> torch.Tensor:
    """One member, one agent, one environment, one step for each number."""
    return torch.tensor(numbers).view(1, 1, -1, 1)


def flags(text: str) -> torch.Tensor:
    """``"..x"`` is False, False, True in time."""
    return torch.tensor([c == "x" for c in text]).view(1, 1, -1, 1)


def per_member(number: float) -> torch.Tensor:
    return torch.tensor([[[number]]])


HALF, ONE, ZERO = per_member(0.5), per_member(1.0), per_member(0.0)


def test_constant_reward_without_an_end_sums_to_a_geometric_series():
    # r = 1, gamma = 1/2 and v' = 2 = 1 / (1 - gamma), the true value: every estimate is 2, whatever lambda or n
    ones, values = torch.ones(1, 1, 6, 1), torch.full((1, 1, 6, 1), 2.0)
    never = flags("......")
    for lam in (0.0, 0.3, 1.0):
        torch.testing.assert_close(lambda_returns(ones, values, never, never, HALF, per_member(lam)), values)
        assert not gae(ones, values, values, never, never, HALF, per_member(lam)).any()
    for n in (1, 2, 9):
        torch.testing.assert_close(n_step_returns(ones, values, never, never, HALF, n), values)


def test_lambda_of_one_sums_the_rewards_up_to_the_end():
    returns = lambda_returns(torch.ones(1, 1, 3, 1), series(9.0, 9.0, 9.0), flags("..x"), flags("..x"), HALF, ONE)
    # 1; 1 + 1/2; 1 + 1/2 + 1/4: no 9 enters
    assert returns.flatten().tolist() == [1.75, 1.5, 1.0]


def test_lambda_of_one_half_mixes_the_successor_with_the_return():
    returns = lambda_returns(series(1.0, 2.0), series(4.0, 8.0), flags(".."), flags(".."), HALF, HALF)
    # last: 2 + .5 * 8 = 6; first: 1 + .5 (.5 * 4 + .5 * 6) = 3.5
    assert returns.flatten().tolist() == [3.5, 6.0]


def test_advantages_by_hand():
    advantage = gae(series(1.0, 2.0), series(3.0, 4.0), series(4.0, 8.0), flags(".."), flags(".."), HALF, HALF)
    # delta: 1 + 2 - 3 = 0 and 2 + 4 - 4 = 2; first: 0 + .25 * 2
    assert advantage.flatten().tolist() == [0.5, 2.0]


def test_a_time_limit_bootstraps_and_the_next_episode_stays_out():
    """Step 1 is cut by a time limit, its true successor worth 8; steps 2 and 3 are another, richer episode."""
    reward, after = series(1.0, 1.0, 100.0, 100.0), series(6.0, 8.0, 6.0, 8.0)
    never, cut = flags("...."), flags(".x..")
    right = lambda_returns(reward, after, never, cut, HALF, ONE).flatten()
    # step 1: 1 + .5 * 8 = 5; step 0: 1 + .5 * 5 = 3.5; step 3: 104, step 2: 100 + 52
    assert right.tolist() == [3.5, 5.0, 152.0, 104.0]
    as_termination = lambda_returns(reward, after, cut, cut, HALF, ONE).flatten()
    assert as_termination.tolist() == [1.5, 1.0, 152.0, 104.0]  # one usual bug: 1 where 5 is due
    done_ignored = lambda_returns(reward, after, never, never, HALF, ONE).flatten()
    assert done_ignored.tolist() == [39.5, 77.0, 152.0, 104.0]  # the other: 1 + .5 * 152 = 77
    before = series(0.0, 6.0, 0.0, 6.0)
    # delta of step 1: 1 + 4 - 6 = -1; step 0: 1 + 3 - 0 + .5 * -1 = 3.5; step 3: 98; step 2: 103 + 49
    assert gae(reward, before, after, never, cut, HALF, ONE).flatten().tolist() == [3.5, -1.0, 152.0, 98.0]
    assert gae(reward, before, after, never, never, HALF, ONE).flatten()[1] == 75.0  # leaks: -1 + .5 * 152
    # two steps: 0 ends with step 1's successor; 1 is cut; 2 takes two rewards; 3 is the last
    assert n_step_returns(reward, after, never, cut, HALF, 2).flatten().tolist() == [3.5, 5.0, 152.0, 104.0]
    assert n_step_returns(reward, after, never, never, HALF, 2).flatten()[1] == 52.5  # leaks: 1 + 50 + .25 * 6


def test_n_steps_by_hand():
    reward, after, never = series(1.0, 2.0, 4.0), series(8.0, 8.0, 8.0), flags("...")
    assert n_step_returns(reward, after, never, never, HALF, 1).flatten().tolist() == [5.0, 6.0, 8.0]
    # 1 + 1 + 8 / 4 = 4; 2 + 2 + 8 / 4 = 6; the last has one step: 4 + 4
    assert n_step_returns(reward, after, never, never, HALF, 2).flatten().tolist() == [4.0, 6.0, 8.0]
    # 1 + 1 + 1 + 8 / 8 = 4; two steps left: 2 + 2 + 8 / 4
    assert n_step_returns(reward, after, never, never, HALF, 3).flatten().tolist() == [4.0, 6.0, 8.0]
    # terminated at step 1: 1 + .5 * 2 and 2
    ended = n_step_returns(reward, after, flags(".x."), flags(".x."), HALF, 3)
    assert ended.flatten().tolist() == [2.0, 2.0, 8.0]


def test_windows_of_rewards_end_where_each_row_says_and_each_member_has_its_own_discount():
    rewards = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 0.0], [1.0, 0.0, 0.0]]).expand(2, 1, 3, 3)
    steps, gamma = torch.tensor([3, 2, 1]).expand(2, 1, 3), torch.tensor([0.5, 0.0]).view(2, 1, 1)
    value = torch.tensor([8.0, float("nan"), 8.0]).expand(2, 1, 3)  # after the end: never read
    terminated = torch.tensor([False, True, False]).expand(2, 1, 3)
    found = window_target(rewards, steps, gamma, terminated, value)
    # 1 + 2/2 + 4/4 + 8/8 = 4; 1 + 2/2 = 2; 1 + 8/2 = 5. Without a future: the first reward.
    assert found.tolist() == [[[4.0, 2.0, 5.0]], [[1.0, 1.0, 1.0]]]


def test_lambda_of_zero_and_one_step_are_the_one_step_target():
    reward, after, terminated = series(1.0, 2.0, 3.0), series(4.0, 5.0, 6.0), flags(".x.")
    want = td_target(reward, HALF.unsqueeze(-1), terminated, after)
    assert torch.equal(lambda_returns(reward, after, terminated, terminated, HALF, ZERO), want)
    assert torch.equal(n_step_returns(reward, after, terminated, terminated, HALF, 1), want)


def test_values_after_the_end_may_be_anything():
    after, end = series(torch.nan, torch.inf), flags("xx")
    reward, before = series(1.0, 2.0), series(0.0, 0.0)
    for estimate in (
        lambda_returns(reward, after, end, end, HALF, HALF),
        gae(reward, before, after, end, end, HALF, HALF),
        n_step_returns(reward, after, end, end, HALF, 2),
    ):
        assert estimate.flatten().tolist() == [1.0, 2.0]


def random_sequence(seed: int, steps: int = 6, copies: int = 3) -> tuple[torch.Tensor, ...]:
    """Reward, value, next value, terminated, done, gamma, lambda of 2 members; next values are the plain ones."""
    g = torch.Generator().manual_seed(seed)
    shape = (2, 2, steps, copies)
    reward, value, cut_value = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(3))
    terminated = torch.rand(shape, generator=g) < 0.2
    done = terminated | (torch.rand(shape, generator=g) < 0.2)
    following = torch.cat([value[:, :, 1:], cut_value[:, :, :1]], dim=2)
    gamma, lam = torch.rand(2, 2, 1, 1, generator=g, dtype=torch.float64)
    return reward, value, torch.where(done, cut_value, following), terminated, done, gamma, lam


@given(st.integers(0, 10_000))
def test_lambda_returns_less_the_value_are_the_advantages(seed):
    reward, value, after, terminated, done, gamma, lam = random_sequence(seed)
    returns = lambda_returns(reward, after, terminated, done, gamma, lam)
    torch.testing.assert_close(gae(reward, value, after, terminated, done, gamma, lam), returns - value)


def test_with_blended_successors_the_two_forms_part():
    """A blended v' enters a lambda-return once a step, with weight 1 - lambda; in the recursion of GAE it enters whole.

    Measured as the largest change of an advantage that adding .5 to every v' makes, gamma .99 and lambda .95.
    """
    g = torch.Generator().manual_seed(0)
    reward, value, after = (torch.randn(1, 1, 6, 3, generator=g, dtype=torch.float64) for _ in range(3))
    after[:, :, :-1] = value[:, :, 1:]
    never, gamma, lam = torch.zeros(1, 1, 6, 3, dtype=torch.bool), per_member(0.99).double(), per_member(0.95).double()

    def forms(next_value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        returns = lambda_returns(reward, next_value, never, never, gamma, lam)
        return returns - value, gae(reward, value, next_value, never, never, gamma, lam)

    by_return, by_delta = (new - old for new, old in zip(forms(after + 0.5), forms(after), strict=True))
    torch.testing.assert_close(*forms(after))
    k = 0.99 * 0.95
    # returns: .495 (1 - lam) sum_{j<5} k^j + .495 k^5 at step 0, at most .495 at the last; deltas: .495 sum_{j<6} k^j
    torch.testing.assert_close(by_return.max().item(), 0.495)
    torch.testing.assert_close(by_delta.max().item(), 0.495 * (1 - k**6) / (1 - k))  # 2.56, five times as much


def test_members_have_their_own_discount_and_lambda():
    reward, after = torch.ones(2, 1, 2, 1), torch.zeros(2, 1, 2, 1)
    never = torch.zeros(2, 1, 2, 1, dtype=torch.bool)
    gamma, lam = torch.tensor([0.5, 0.25]).view(2, 1, 1), torch.tensor([1.0, 0.5]).view(2, 1, 1)
    # first step: 1 + .5 * 1 * 1 and 1 + .25 * .5 * 1
    assert lambda_returns(reward, after, never, never, gamma, lam)[:, 0, 0, 0].tolist() == [1.5, 1.125]
    assert n_step_returns(reward, after, never, never, gamma, 2)[:, 0, 0, 0].tolist() == [1.5, 1.25]
    assert gae(reward, after, after, never, never, gamma, lam)[:, 0, 0, 0].tolist() == [1.5, 1.125]
