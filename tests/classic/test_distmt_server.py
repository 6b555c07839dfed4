"""The tables G and F, with numbers that show each rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.classic.distmt_server import Message, Server, Solved
from marl.classic.ridge import RidgeStatistics
from marl.types import UserError


def solved(rows: int = 1) -> Solved:
    """d = 1, S = 1, H = 1: so many rows of phi = 1, reward 1."""
    data = RidgeStatistics((1,), 1, 1)
    for _ in range(rows):
        data.rank1_update((0,), np.ones(1), 1.0, 0)
    return Solved(mean_reward(data), data)


def mean_reward(data: RidgeStatistics) -> np.ndarray:
    return data.weights(np.zeros(1))


def server(c_sep: float = 0.3, **options) -> Server:
    return Server(c_sep, **{"linkage": "complete", "same_round": "split", "theta_of": mean_reward, **options})


def round_of(server: Server, *values: float) -> list[int]:
    """All agents ask first, then comes Group, as Algorithm 1 has it."""
    told = [server.match(value) for value in values]
    return server.group([Message(v, m, solved() if m is None else None) for v, m in zip(values, told, strict=True)])


def test_two_agents_with_one_new_task_both_find_it_new_and_share_a_label():
    it = server()
    assert [it.match(1.0), it.match(1.1)] == [None, None]  # both pay K_2
    assert round_of(it, 1.0, 1.1, 2.0) == [0, 0, 1]  # had Group a frozen l too, it would open three labels
    assert it.groups == [[1.0, 1.1], [2.0]] and it.match(1.05) == 0


def test_complete_linkage_wants_all_values_near_and_centroid_their_mean():
    """c_sep / 2 = .15. G = {0, .1}: .19 is .19 from 0, but .14 from the mean .05."""
    complete, centroid = server(), server(linkage="centroid")
    for it in (complete, centroid):
        assert round_of(it, 0.0) == [0] and round_of(it, 0.1) == [0]
    assert complete.match(0.19) is None and centroid.match(0.19) == 0


def test_half_of_c_sep_is_still_the_same_task():
    it = server(c_sep=0.5)
    round_of(it, 1.0)
    assert it.match(1.25) == 0 and it.match(0.75) == 0 and it.match(1.2500001) is None


def test_of_several_labels_the_one_with_the_nearest_mean_is_taken_and_counted():
    """c_sep / 2 = .15: .11 is .11 from the first label and .09 from the second; .01 is near to the first alone."""
    it = server()
    assert round_of(it, 0.0, 0.2) == [0, 1] and it.ambiguous == 0
    assert it.match(0.11) == 1 and it.ambiguous == 1
    assert it.match(0.01) == 0 and it.ambiguous == 1


def test_an_agent_that_was_told_a_label_keeps_it_although_the_group_grew_meanwhile():
    """.1 and -.1 are both within .15 of 0 and .2 from each other: Algorithm 4 as printed would want the second one's
    policy, which has none because it was told the label."""
    it = server()
    round_of(it, 0.0)
    assert round_of(it, 0.1, -0.1) == [0, 0] and it.groups == [[0.0, 0.1, -0.1]] and len(it.table) == 1


def test_split_keeps_the_first_ones_statistics_and_merge_sums_them():
    """theta = n / (n + 1) after n rows of reward 1: 2 / 3 of the first alone, 5 / 6 of 2 + 3 rows."""
    for same_round, rows, theta in (("split", 2, 2 / 3), ("merge", 5, 5 / 6)):
        it = server(same_round=same_round)
        assert it.group([Message(1.0, None, solved(2)), Message(1.0, None, solved(3))]) == [0, 0]
        assert it.table[0].data.count.tolist() == [rows]
        np.testing.assert_allclose(it.table[0].theta, theta)


@settings(max_examples=60)
@given(st.data())
def test_on_the_good_event_every_order_of_fingerprints_gives_the_tasks(data):
    """Lemma 2: values more than c_sep apart, estimates too high by c_sep / 8 at most."""
    tasks = data.draw(st.integers(1, 5))
    values = np.cumsum(data.draw(st.lists(st.floats(0.301, 2), min_size=tasks, max_size=tasks)))
    drawn = data.draw(st.lists(st.integers(0, tasks - 1), min_size=1, max_size=30))
    errors = data.draw(st.lists(st.floats(0, 0.3 / 8), min_size=len(drawn), max_size=len(drawn)))
    agents = data.draw(st.integers(1, 4))
    for linkage in ("complete", "centroid"):
        it = server(linkage=linkage)
        labels = []
        for at in range(0, len(drawn), agents):
            labels += round_of(it, *(values[drawn[at : at + agents]] + errors[at : at + agents]).tolist())
        assert len(set(zip(drawn, labels, strict=True))) == len(set(drawn)) == len(set(labels))
        assert it.ambiguous == 0


def test_saved_and_restored_it_goes_on_alike():
    first, second = server(same_round="merge"), server(same_round="merge")
    round_of(first, 0.0, 0.05, 1.0)
    second.load_state_dict(first.state_dict())
    for it in (first, second):
        assert round_of(it, 0.1, 2.0, 2.0) == [0, 2, 2]
    assert first.groups == second.groups and first.ambiguous == second.ambiguous
    for a, b in zip(first.table, second.table, strict=True):
        np.testing.assert_array_equal(a.theta, b.theta)
        np.testing.assert_array_equal(a.data.inverse, b.data.inverse)


def test_what_was_saved_does_not_change_when_the_run_goes_on():
    it = server(same_round="merge")
    round_of(it, 0.0)
    saved = it.state_dict()
    it.group([Message(0.0, None, solved(4))])
    assert saved["groups"] == [[0.0]] and saved["table"]["0"]["data"]["count"].tolist() == [1]


def test_an_unknown_rule_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"^linkage: 'centroids' is not a choice; did you mean 'centroid'\?$"):
        server(linkage="centroids")
    with pytest.raises(UserError, match=r"^same_round: 'merged' is not a choice; did you mean 'merge'\?$"):
        server(same_round="merged")
