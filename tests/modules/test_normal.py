"""Running normalisation by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.modules.normal import RunningNorm


def test_before_any_value_nothing_changes():
    norm, x = RunningNorm(1, 2), torch.tensor([[[5.0], [-3.0]]])
    assert torch.equal(norm.normalize(x), x) and torch.equal(norm.denormalize(x), x)


def test_mean_and_deviation_of_two_batches_by_hand():
    norm = RunningNorm(1, 1, decay=1.0)
    norm.update(torch.tensor([[[0.0, 2.0]]]))
    norm.update(torch.tensor([[[4.0, 6.0]]]))
    # mean (0 + 2 + 4 + 6) / 4 = 3, variance (9 + 1 + 1 + 9) / 4 = 5
    torch.testing.assert_close(norm.normalize(torch.tensor([[[3.0, 3.0 + 5**0.5]]])), torch.tensor([[[0.0, 1.0]]]))
    torch.testing.assert_close(norm.denormalize(torch.tensor([[[-1.0]]])), torch.tensor([[[3.0 - 5**0.5]]]))


def test_the_first_batch_is_not_pulled_towards_zero_and_an_old_one_fades():
    norm = RunningNorm(1, 1, decay=0.5)
    norm.update(torch.tensor([[[7.0, 9.0]]]))
    assert norm.denormalize(torch.zeros(1, 1, 1)).item() == 8.0  # debiased: not 4
    norm.update(torch.tensor([[[2.0, 2.0]]]))
    # weights 1/2 and 1: (8 / 2 + 2) / (1 / 2 + 1) = 4
    assert norm.denormalize(torch.zeros(1, 1, 1)).item() == 4.0


def test_an_update_says_how_a_normalised_value_stays_what_it_is_in_real_units():
    norm = RunningNorm(1, 1, decay=1.0)
    scale, shift = norm.update(torch.tensor([[[0.0, 2.0]]]))
    assert (scale.item(), shift.item()) == (1, 0)  # nothing was known before
    scale, shift = norm.update(torch.tensor([[[6.0, 8.0]]]))
    # mean 1, deviation 1, then (0 + 2 + 6 + 8) / 4 = 4 and sqrt((16 + 4 + 4 + 16) / 4) = sqrt 10: 3 was 2
    assert norm.denormalize(2 * scale + shift).item() == pytest.approx(3)
    assert scale.item() == pytest.approx(0.1**0.5) and shift.item() == pytest.approx(-3 * 0.1**0.5)


def test_masked_rows_do_not_count_whatever_they_hold():
    norm = RunningNorm(1, 1)
    norm.update(torch.tensor([[[1.0, 3.0, torch.nan]]]), torch.tensor([True, True, False]))
    assert norm.denormalize(torch.zeros(1, 1, 1)).item() == 2.0
    sums = norm.sums.clone()
    norm.update(torch.full((1, 1, 3), 9.0), torch.zeros(1, 1, 3, dtype=torch.bool))
    torch.testing.assert_close(norm.denormalize(torch.zeros(1, 1, 1)).item(), 2.0)  # no row, no move
    assert (norm.sums <= sums).all()


def test_members_and_agents_have_moments_of_their_own_and_shared_ones_pool_the_agents():
    x = torch.tensor([[[0.0, 2.0], [10.0, 12.0]], [[100.0, 102.0], [20.0, 22.0]]])
    zero = torch.zeros(2, 2, 1)
    own, shared = RunningNorm(2, 2), RunningNorm(2, 1)
    own.update(x)
    shared.update(x)
    assert own.denormalize(zero).squeeze(-1).tolist() == [[1.0, 11.0], [101.0, 21.0]]
    # (0 + 2 + 10 + 12) / 4 = 6 and (100 + 102 + 20 + 22) / 4 = 61
    assert shared.denormalize(zero).squeeze(-1).tolist() == [[6.0, 6.0], [61.0, 61.0]]


def test_constant_targets_are_divided_by_the_floor_only():
    norm = RunningNorm(1, 1)
    norm.update(torch.full((1, 1, 4), 5.0))
    torch.testing.assert_close(norm.normalize(torch.tensor([[[5.1]]])), torch.tensor([[[1.0]]]))  # .1 / sqrt(.01)


def test_a_large_mean_does_not_swallow_the_deviation():
    norm = RunningNorm(1, 1)
    norm.update(torch.tensor([[[100_000.0, 100_002.0]]]))  # in float32 the square, 1e10, knows no unit
    assert abs(norm.normalize(torch.tensor([[[100_002.0]]])).item() - 1.0) < 1e-3


@settings(max_examples=50)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=8), st.floats(-10, 10, width=32))
def test_denormalize_undoes_normalize(values, y):
    norm = RunningNorm(1, 1)
    norm.update(torch.tensor([[values]]))
    point = torch.tensor([[[y]]])
    torch.testing.assert_close(norm.denormalize(norm.normalize(point)), point, rtol=1e-4, atol=1e-3)


def test_state_is_saved_and_later_updates_do_not_reach_into_it():
    norm, other = RunningNorm(1, 1), RunningNorm(1, 1)
    norm.update(torch.tensor([[[1.0, 5.0]]]))
    saved = norm.state_dict()
    other.load_state_dict(saved)
    norm.update(torch.tensor([[[50.0]]]))
    assert other.denormalize(torch.zeros(1, 1, 1)).item() == 3.0
