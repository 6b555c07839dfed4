import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marl.classic.networks import Network, failing_links, make_network
from marl.types import UserError


@pytest.mark.parametrize(
    ("kind", "agents", "expected"),
    [
        ("line", 3, 1.0),  # eigenvalues of a path of 3: 0, 1, 3
        ("ring", 4, 2.0),  # 2 - 2 cos(2 pi / 4)
        ("ring", 2, 2.0),  # one link, not two
        ("complete", 7, 7.0),  # N, N - 1 times
        ("star", 6, 1.0),
        ("none", 3, 0.0),
        ("complete", 1, np.inf),
    ],
)
def test_lambda_2_of_known_graphs(kind, agents, expected):
    assert make_network(kind, agents).lambda_2 == pytest.approx(expected)


def test_laplacian_is_degrees_minus_links():
    expected = [[1, -1, 0], [-1, 2, -1], [0, -1, 1]]
    assert make_network("line", 3).laplacian().tolist() == expected


def test_graphs_that_are_each_disconnected_may_be_connected_on_average(caplog):
    first, second = np.zeros((2, 3, 3))
    first[0, 1] = first[1, 0] = second[1, 2] = second[2, 1] = 1
    network = Network([first, second])
    assert Network(first).lambda_2 == 0 and Network(second).lambda_2 == 0
    assert network.lambda_2 == pytest.approx(0.5)  # half the path's Laplacian, so half of 1
    assert network.laplacian(0)[2].tolist() == [0, 0, 0]
    assert network.laplacian(3).tolist() == network.laplacian(1).tolist()  # the cycle has 2 graphs
    network.warn_if_disconnected()
    assert not caplog.records


def test_a_disconnected_network_warns_once_and_names_its_components(caplog):
    graph = np.zeros((4, 4))
    graph[0, 2] = graph[2, 0] = 1
    network = Network(graph)
    with caplog.at_level(logging.WARNING, "marl"):
        network.warn_if_disconnected()
        network.warn_if_disconnected()
    (record,) = caplog.records
    assert "3 components" in record.message and "{0, 2} | {1} | {3}" in record.message
    assert "\n" not in record.message


def test_large_components_are_named_whole_as_ranges(caplog):
    """Agents 0 to 5 in a line, 6 and 8 linked, 7 alone."""
    graph = np.zeros((9, 9))
    for i, j in [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (6, 8)]:
        graph[i, j] = graph[j, i] = 1
    with caplog.at_level(logging.WARNING, "marl"):
        Network(graph).warn_if_disconnected()
    assert "{0-5} | {6, 8} | {7}" in caplog.text


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**31))
def test_the_flat_lists_hold_each_agent_and_its_neighbours_in_order(agents, period, seed):
    drawn = np.triu(np.random.default_rng(seed).random((period, agents, agents)) < 0.5, 1)
    network = Network(drawn | drawn.transpose(0, 2, 1))
    for t in range(period):
        for i in range(agents):
            heard = network.members[network.starts[t, i] : network.starts[t, i + 1]].tolist()
            assert heard == [j for j in range(agents) if j == i or network.graphs[t, i, j]]
    degrees = [network.laplacian(t).diagonal().max() for t in range(period)]
    assert network.most_neighbours == max(degrees)


def test_failing_links_fail_as_often_as_said_in_both_directions_and_never_appear():
    ring = make_network("ring", 10)
    network = failing_links(ring, 0.3, period=2000, seed=1)
    assert (network.graphs == network.graphs.transpose(0, 2, 1)).all()
    assert not (network.graphs & ~ring.graphs).any()
    up = network.graphs[:, ring.graphs[0]].mean()
    assert up == pytest.approx(0.7, abs=0.02)  # 20 000 links, standard error .0033
    assert network.lambda_2 == pytest.approx(0.7 * ring.lambda_2, rel=0.1)
    assert (failing_links(ring, 0.3, 2000, 1).graphs == network.graphs).all()
    assert (failing_links(ring, 0.3, 2000, 2).graphs != network.graphs).any()


def test_failing_links_keep_the_cycle_of_the_network():
    pair = np.array([[0, 1], [1, 0]])
    network = failing_links(Network([pair, 0 * pair]), 0.0, period=4)
    assert network.graphs[:, 0, 1].tolist() == [True, False, True, False]


def test_the_random_graph_has_about_the_chance_of_links_and_follows_its_seed():
    network = make_network("random", 60, chance=0.25, seed=3)
    assert network.graphs.mean() == pytest.approx(0.25, abs=0.03)
    assert (make_network("random", 60, 0.25, 3).graphs == network.graphs).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: make_network("rign", 3), "did you mean 'ring'"),
        (lambda: make_network("ring", 0), "agents: expected 1 or more"),
        (lambda: make_network("random", 3, chance=1.5), "chance"),
        (lambda: Network(np.ones((2, 3))), r"expected \[N, N\]"),
        (lambda: Network([[0, 1], [1]]), "rows of different lengths"),
        (lambda: Network([[0, np.nan], [np.nan, 0]]), "expected numbers, 0 where two agents are not linked"),
        (lambda: make_network("random", 3, seed=-1), "seed -1: expected a whole number of 0 or more"),
        (lambda: make_network("ring", 100_000), r"graphs \[100000, 100000\]: 10000000000 numbers, expected 50000000"),
        (lambda: failing_links(make_network("ring", 1_000), 0.1), r"graphs \[1000, 1000, 1000\]"),
        (lambda: Network([[0, 1], [0, 0]]), r"undirected .* \(0, 1\)"),
        (lambda: Network(np.eye(2)), "no agent is its own neighbour"),
        (lambda: failing_links(make_network("ring", 3), 1.0), "failure"),
        (lambda: failing_links(Network(np.zeros((2, 3, 3))), 0.1, period=3), "multiple of the network's own 2"),
    ],
)
def test_bad_networks_are_refused_in_one_line(make, words):
    with pytest.raises(UserError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
