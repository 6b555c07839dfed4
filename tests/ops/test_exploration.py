"""What exploration does to actions, member by member."""

from __future__ import annotations

import torch

from marl.ops.exploration import noisy, sometimes_random
from marl.streams import Streams


def scale(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1)


def test_noise_is_a_members_scale_times_its_own_normal_numbers():
    action = torch.zeros(2, 3, 4, 2)
    result = noisy(action, Streams([7, 8], "explore"), scale(0.1, 0.2))
    expected = Streams([7, 8], "explore").normal(3, 4, 2)
    torch.testing.assert_close(result[0], 0.1 * expected[0])
    torch.testing.assert_close(result[1], 0.2 * expected[1])


def test_noise_of_scale_zero_changes_nothing():
    action = torch.tensor([0.3, -1.0]).view(1, 1, 1, 2)
    assert torch.equal(noisy(action, Streams([0], "explore"), scale(0.0)), action)


def test_noisy_actions_stay_within_bounds_and_the_input_is_left_alone():
    action = torch.full((1, 1, 1000, 1), 0.9)
    result = noisy(action, Streams([0], "explore"), scale(0.5))
    assert result.max() == 1.0 and (result.abs() <= 1).all() and (result < 1).any()
    assert (action == 0.9).all()


def test_an_action_is_replaced_as_a_whole_with_the_members_probability():
    """2000 actions, probability 0, .25 and 1: the standard error of .25 is .0097."""
    action = torch.full((3, 2, 1000, 2), 5.0)
    result = sometimes_random(action, Streams([1, 2, 3], "explore"), scale(0.0, 0.25, 1.0))
    changed = result != 5.0
    assert torch.equal(changed[..., 0], changed[..., 1])
    rates = changed[..., 0].float().mean((1, 2))
    assert rates[0] == 0.0 and rates[2] == 1.0 and abs(rates[1] - 0.25) < 0.04
    assert changed[1, 0, :, 0].ne(changed[1, 1, :, 0]).any()  # each agent by itself


def test_the_replacement_is_uniform_on_the_whole_range():
    result = sometimes_random(torch.zeros(1, 1, 20_000, 1), Streams([4], "explore"), scale(1.0))
    assert result.min() >= -1 and result.max() <= 1
    assert abs(result.mean()) < 0.02  # standard error .0041
    assert abs(result.square().mean() - 1 / 3) < 0.02


def test_a_member_explores_alike_alone_and_in_a_population():
    action = torch.rand(3, 2, 5, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    together, alone = Streams([1, 2, 3], "explore"), Streams([2], "explore")
    for _ in range(2):
        both = sometimes_random(noisy(action, together, scale(0.1, 0.2, 0.3)), together, scale(0.1, 0.5, 0.3))
        one = sometimes_random(noisy(action[1:2], alone, scale(0.2)), alone, scale(0.5))
        assert torch.equal(both[1:2], one)
