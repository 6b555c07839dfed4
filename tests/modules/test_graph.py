"""Neighbour weights: by hand, and row-stochastic whatever the graph."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.modules.graph import Changing, Fixed, Random, complete, make_graph, nearest, validated
from marl.streams import Streams
from marl.types import UserError


def graph(kind: str, n: int, k: int = 2, seeds: tuple[int, ...] = (0,)):
    return make_graph(kind, n, k, Streams(seeds, "graph"))


def test_complete_of_three_gives_a_half_to_each_other_agent():
    assert complete(3).tolist() == [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]


def test_ring_of_four_listens_to_both_sides_and_not_across():
    half = 0.5
    assert graph("ring", 4)()[0].tolist() == [
        [0, half, 0, half],
        [half, 0, half, 0],
        [0, half, 0, half],
        [half, 0, half, 0],
    ]


def test_ring_of_two_has_one_neighbour_of_weight_one():
    assert graph("ring", 2)()[0].tolist() == [[0, 1], [1, 0]]


def test_nearest_three_of_six_are_plus_one_minus_one_plus_two():
    assert nearest(6, 3)[0].nonzero().flatten().tolist() == [1, 2, 5]
    assert nearest(6, 3)[5].nonzero().flatten().tolist() == [0, 1, 4]


def test_one_agent_alone_listens_to_itself_in_every_graph():
    for kind in ("complete", "ring", "nearest", "random", "self"):
        alone = graph(kind, 1)
        assert alone().tolist() == [[[1.0]]] and alone.identity


def test_weights_that_are_changed_afterwards_by_their_owner_stay_as_they_were():
    weights = complete(3)
    graph = Fixed(weights)
    weights[0] = torch.tensor([0.0, 0.0, 9.0])
    assert torch.equal(graph()[0], complete(3))


@settings(max_examples=60)
@given(
    st.sampled_from(["complete", "ring", "nearest", "random", "self"]),
    st.integers(2, 9),
    st.integers(1, 8),
    st.integers(0, 99),
)
def test_every_row_of_every_graph_is_non_negative_and_sums_to_one(kind, n, k, seed):
    weights = graph(kind, n, min(k, n - 1), (seed, seed + 1))()
    assert weights.shape[1:] == (n, n) and bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    on_diagonal = weights.diagonal(dim1=-2, dim2=-1)
    assert bool((on_diagonal == (1 if kind == "self" else 0)).all())


def test_random_draws_k_others_anew_at_every_call_and_apart_for_each_member():
    source = graph("random", 6, 2, seeds=(1, 2))
    first, second = source(), source()
    assert ((first > 0).sum(-1) == 2).all() and ((second > 0).sum(-1) == 2).all()
    assert set(first[first > 0].tolist()) == {0.5}
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])


def test_random_chooses_every_other_agent_equally_often():
    source = graph("random", 4, 1)
    counts = sum((source() > 0).double() for _ in range(3000))[0]
    # each of the 3 others is expected 1000 times, with standard deviation sqrt(3000 * 1/3 * 2/3) = 26
    assert bool(((counts - 1000).abs() < 130)[~torch.eye(4, dtype=torch.bool)].all())


def test_a_member_draws_the_same_graph_alone_as_in_a_population():
    together, alone = graph("random", 5, 2, seeds=(3, 7)), graph("random", 5, 2, seeds=(7,))
    assert all(torch.equal(together()[1], alone()[0]) for _ in range(3))


def test_random_continues_in_the_same_bits_after_a_restore():
    source = graph("random", 5, 2)
    source()
    saved = source.state_dict()
    expected = [source() for _ in range(3)]
    restored = graph("random", 5, 2, seeds=(99,))
    restored.load_state_dict(saved)
    assert all(torch.equal(restored(), weights) for weights in expected)


def test_fixed_weights_are_saved_and_their_identity_is_known():
    source, other = Fixed(complete(3)), Fixed(torch.eye(3))
    assert other.identity and not source.identity
    other.load_state_dict(source.state_dict())
    assert torch.equal(other(), complete(3).unsqueeze(0)) and not other.identity


def test_identity_of_some_members_only_is_not_the_identity():
    assert not Fixed(torch.stack([torch.eye(2), complete(2).float()])).identity


def test_a_row_of_zeros_is_accepted():
    assert validated(torch.tensor([[0.0, 0.0], [1.0, 0.0]])).shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(2, 3), r"graph: expected weights of shape \[N, N\] or \[P, N, N\], got \[2, 3\]"),
        (torch.ones(3), r"got \[3\]"),
        (torch.tensor([[0.0, 1.0], [0.5, 0.0]]), r"row 1 is \[0.5, 0.0\]"),
        (torch.tensor([[2.0, -1.0], [1.0, 0.0]]), r"row 0 is \[2.0, -1.0\]"),
        (torch.tensor([[float("nan"), 1.0], [1.0, 0.0]]), r"row 0 is \[nan, 1.0\]"),
    ],
)
def test_weights_that_are_not_row_stochastic_are_refused_with_the_row_that_arrived(weights, message):
    with pytest.raises(UserError, match=message):
        Fixed(weights)
    with pytest.raises(UserError, match=message):
        Changing(lambda: weights)()


def test_as_many_neighbours_as_agents_is_refused():
    for kind in ("nearest", "random"):
        with pytest.raises(UserError, match=r"reciprocity.neighbours: 3 of 3 agents; expected 1 to 2"):
            graph(kind, 3, 3)
    with pytest.raises(UserError, match="0 of 3 agents"):
        Random(3, 0, Streams([0], "graph"))


def test_an_unknown_graph_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="'rnig' is not a choice; did you mean 'ring'"):
        graph("rnig", 3)
