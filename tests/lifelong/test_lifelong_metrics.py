"""Agent reward, agent time, forward transfer and forgetting, with the arithmetic in the comments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marl.lifelong.metrics import Curve, agent_reward, agent_time, forgetting, forward_transfer, normalised
from marl.types import UserError

NAN = float("nan")


def curve(*points: tuple[float, float]) -> Curve:
    frames, reward = zip(*points, strict=True)
    return Curve(np.array(frames, float), np.array(reward, float))


# ---- agent reward -------------------------------------------------------------------------------------------------


def test_random_has_0_isolated_has_1_and_twice_its_gain_has_2():
    # (R - 100) / (300 - 100)
    assert normalised(np.array([100.0, 300.0, 500.0, 0.0]), 100.0, 300.0).tolist() == [0, 1, 2, -0.5]


def test_a_negative_scale_is_normalised_alike():
    assert normalised(-5.0, -21.0, 11.0) == 0.5  # 16 of 32 points of Pong


def test_agent_reward_by_hand():
    """One seed; agents earn 2 and 4 on the first task, 30 and 10 on the second; isolated 2 and 6, 20 and 20."""
    reward = np.array([[[2.0, 30.0], [4.0, 10.0]]])
    got = agent_reward(reward, random=np.array([0.0, 10.0]), isolated=np.array([[2.0, 20.0], [6.0, 20.0]]))
    # (3 - 0) / (4 - 0) and (20 - 10) / (20 - 10)
    assert got.scores.tolist() == [[0.75, 1.0]]
    assert got.mean == 0.875
    assert got.best_of_5 is None


def test_the_best_of_5_compares_best_with_best_of_the_first_five_and_the_mean_takes_all():
    isolated = np.array([[1.0], [2.0], [3.0], [2.0], [2.0]])  # mean 2, best 3
    reward = np.array([2.0, 3.0, 6.0, 3.0, 1.0, 9.0]).reshape(6, 1, 1)  # mean 4, best of the first five 6
    got = agent_reward(reward, np.zeros(1), isolated)
    assert got.mean == 2.0
    assert got.best_of_5 is not None and got.best_of_5.tolist() == [2.0]


def test_the_best_is_of_seeds_not_of_agents():
    """The one agent with 10 does not count by itself: its seed's mean is 5."""
    reward = np.array([[[10.0], [0.0]]] + [[[1.0], [1.0]]] * 4)
    got = agent_reward(reward, np.zeros(1), np.full((5, 1), 5.0))
    assert got.best_of_5 is not None and got.best_of_5.tolist() == [1.0]


def test_a_task_whose_isolated_agent_is_no_better_than_random_is_undefined_and_left_out_of_the_mean():
    got = agent_reward(np.array([[[4.0, 7.0]]]), np.array([0.0, 5.0]), np.array([[2.0, 5.0]]))
    assert got.scores[0, 0] == 2.0 and np.isnan(got.scores[0, 1])
    assert got.mean == 2.0
    assert np.isnan(agent_reward(np.ones((1, 1, 1)), np.ones(1), np.ones((1, 1))).mean)


@given(st.lists(st.floats(1, 100), min_size=5, max_size=8))
def test_the_isolated_agent_against_itself_has_exactly_1(rewards):
    isolated = np.array(rewards)[:, None]
    got = agent_reward(isolated[:, None], np.zeros(1), isolated)
    assert got.mean == pytest.approx(1.0)
    assert got.best_of_5 is not None and got.best_of_5.tolist() == [1.0]


# ---- agent time ---------------------------------------------------------------------------------------------------


def test_agent_time_by_hand():
    """Random 0, isolated 100 after 1000 frames; the agent has 50 at 100 frames, 30 at 200, 80 at 300."""
    got = agent_time([[curve((100, 50), (200, 30), (300, 80))]], 0.0, 100.0, 1000)
    # 20 %, 40 % at 100; 60 % and 80 % at 300; 99 % never, in 300 frames
    assert got.time.tolist() == [[[0.1, 0.1, 0.3, 0.3, 0.3]]]
    assert got.censored.tolist() == [[[False, False, False, False, True]]]
    assert got.lines() == [
        "20 %: 0.10",
        "40 %: 0.10",
        "60 %: 0.30",
        "80 %: 0.30",
        "99 %: >= 0.30 (1 of 1 never arrived)",
    ]


def test_levels_are_shares_of_the_way_from_random_to_isolated():
    # half the way from -20 to 20 is 0, which is reached at 7; half of 20 would be reached at 9
    got = agent_time([[curve((5, -10), (7, 0), (9, 20))]], -20.0, 20.0, 10, levels=(0.5,))
    assert got.time.item() == 0.7


def test_the_mean_over_tasks_is_what_arrives_where_all_tasks_were_evaluated():
    """Scores (1, .2), then (.9, .9) with one task ten times the other's scale: means .6 and .9."""
    learnt = Curve(np.array([10.0, 20.0]), np.array([[1.0, 2.0], [0.9, 9.0]]))
    got = agent_time([[learnt]], np.zeros(2), np.array([1.0, 10.0]), 40, levels=(0.6, 0.9))
    assert got.time.tolist() == [[[0.25, 0.5]]]


def test_a_censored_run_makes_the_mean_a_lower_bound_and_is_shown():
    runs = [[curve((10, 100))], [curve((10, 0), (30, 0))]]
    got = agent_time(runs, 0.0, 100.0, 100, levels=(0.8,))
    assert got.mean().tolist() == [pytest.approx(0.2)]  # (.1 + at least .3) / 2
    assert got.lines() == ["80 %: >= 0.20 (1 of 2 never arrived)"]


def test_the_best_of_5_is_the_fastest_seed_all_of_whose_agents_arrived():
    def seed(*frames: float | None) -> list[Curve]:
        return [curve((1, 0)) if f is None else curve((f, 1)) for f in frames]

    runs = [seed(30, 50), seed(10, None), seed(60, 60), seed(20, 80), seed(None, None), seed(1, 1)]
    got = agent_time(runs, 0.0, 1.0, 100, levels=(0.9,))
    best = got.best_of_5()
    assert best is not None and best.tolist() == [0.4]  # of .4, -, .6, .5, -; the sixth does not count
    never = agent_time([seed(None)] * 5, 0.0, 1.0, 100, levels=(0.9,)).best_of_5()
    assert never is not None and np.isnan(never).all()
    assert agent_time(runs[:4], 0.0, 1.0, 100).best_of_5() is None


def test_there_is_no_time_to_reach_an_isolated_agent_that_learnt_nothing():
    with pytest.raises(UserError, match="leave the task out"):
        agent_time([[curve((1, 1))]], 3.0, 3.0, 100)


# ---- forward transfer and forgetting ------------------------------------------------------------------------------


def test_forward_transfer_by_hand():
    fresh = curve((0, 0), (100, 1))  # area 1/2
    assert forward_transfer(curve((0, 1), (100, 1)), fresh, 100) == 1.0
    assert forward_transfer(fresh, fresh, 100) == 0.0
    assert forward_transfer(curve((0, 0.5), (100, 1)), fresh, 100) == pytest.approx(0.5)  # (3/4 - 1/2) / (1/2)
    assert forward_transfer(curve((0, 0), (100, 0)), fresh, 100) == -1.0


def test_a_curve_that_ends_early_holds_its_last_value_and_one_that_is_longer_is_cut():
    fresh = curve((0, 0), (100, 0))
    assert forward_transfer(curve((0, 0), (50, 1)), fresh, 100) == pytest.approx(0.75)  # 1/4 + 1/2
    assert forward_transfer(curve((0, 0), (200, 1)), fresh, 100) == pytest.approx(0.25)  # half of 0 .. .5


def test_there_is_nothing_to_transfer_where_the_fresh_agent_lacked_nothing():
    assert np.isnan(forward_transfer(curve((0, 1)), curve((0, 1)), 100))


def test_forgetting_by_hand():
    """Tasks 0, 1, 2 of four in turn; rows are what each scored after the rounds."""
    scores = np.array([[1.0, NAN, NAN, NAN], [0.7, 0.8, NAN, NAN], [0.4, 0.9, 1.0, NAN]])
    lost = forgetting(scores, [0, 1, 2])
    assert lost[:2].tolist() == pytest.approx([0.6, -0.1])  # 1 - .4; .8 - .9: it got better
    assert np.isnan(lost[2:]).all()  # the last round's; never met


def test_a_task_met_again_counts_from_the_last_time_it_was_learnt():
    scores = np.array([[1.0, NAN], [0.2, 1.0], [0.9, 0.5], [0.8, 1.0]])
    lost = forgetting(scores, [0, 1, 0, 1])
    assert lost[0] == pytest.approx(0.1)  # .9 - .8 and not 1 - .8
    assert np.isnan(lost[1])
