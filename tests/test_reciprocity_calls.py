"""What critics are handed, and how often they are asked."""

import pytest
import torch
from torch import nn

from marl.reciprocity import AdjacencySpace, Exact, Reciprocal, ReciprocalCritics, UserError


def test_a_critic_that_writes_into_its_input_does_not_write_into_the_hosts():
    states = torch.ones(2, 3, 1)

    def careless(state):
        return state.mul_(2).squeeze(-1)

    ReciprocalCritics([careless] * 2, kappa=0.0)(states)
    assert states.eq(1).all()
    near = Reciprocal(2, adjacency="exact").adjacent(states)
    near.mul_(2)
    assert states.eq(1).all()


@pytest.mark.parametrize("adjacency", ["exact", "resample", "gaussian", "knn", "mask", "peer"])
@pytest.mark.parametrize("groups", [1, 3])
def test_what_a_critic_writes_into_its_states_changes_no_other_answer(adjacency, groups):
    states = torch.arange(24.0).view(3, 4, 2)[:groups]

    def writes(state):
        return state.sub_(3).mul_(5).sum(-1)

    def leaves(state):
        return ((state - 3) * 5).sum(-1)

    values = []
    for critic in (writes, leaves):
        generator = torch.Generator().manual_seed(1)
        values.append(ReciprocalCritics([critic] * 3, 0.5, adjacency=adjacency, generator=generator)(states))
    assert torch.equal(*values) and torch.equal(states, torch.arange(24.0).view(3, 4, 2)[:groups])


def test_of_a_joint_state_the_one_critic_that_all_hear_is_asked_once():
    asked = []

    def critic(j):
        return lambda state: (asked.append(j), state.sum(-1))[1]

    star = torch.tensor([[1.0, 0.0, 0.0]] * 3)
    ReciprocalCritics([critic(j) for j in range(3)], 0.5, star)(torch.randn(1, 4, 2))
    assert sorted(asked) == [0, 0, 1, 2]  # each its own value, and critic 0 once more at the adjacent state


def test_a_space_that_yields_more_states_than_it_has_levels_is_not_heard_in_part():
    class Two(Exact):
        def __call__(self, states, real=None):
            yield states
            yield states

    message = "adjacency: expected 1 adjacent states, one for each of levels, got 2"
    with pytest.raises(UserError, match=message):
        ReciprocalCritics([lambda s: s[:, 0]] * 2, adjacency=Two())(torch.ones(2, 3, 4))
    with pytest.raises(UserError, match=message):
        Reciprocal(2, adjacency=Two()).adjacent(torch.ones(2, 3, 4))


@pytest.mark.parametrize("rows", [2, 3, 7, 32])
def test_kappa_zero_hands_each_critic_its_state_as_it_lies_in_memory(rows):
    """Column by column as it comes; a copy that lies row by row would be multiplied in another order."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 1))
    states = [torch.randn(3, rows).T for _ in range(2)]
    with torch.no_grad():
        expected = torch.stack([critic(state) for state in states])
    assert torch.equal(ReciprocalCritics([critic, critic], 0.0)(states), expected)


def test_states_of_different_precision_pass_at_kappa_zero_and_are_refused_where_they_would_be_mixed():
    critics = [nn.Linear(3, 1), nn.Linear(3, 1).double()]
    states = [torch.ones(4, 3), torch.ones(4, 3, dtype=torch.float64)]
    reciprocal = ReciprocalCritics(critics, 0.0)
    assert reciprocal(states).shape == (2, 4, 1)
    reciprocal.kappa = 0.5
    with pytest.raises(UserError, match=r"states\[1\]: expected float32 as states\[0\], got float64"):
        reciprocal(states)


class Shifted(AdjacencySpace):
    """A user's own."""

    levels = (1,)

    def __call__(self, states, real=None):
        yield states + 1


def test_a_space_of_ones_own_leaves_padding_as_it_is():
    sums = [lambda s: s.sum(-1)] * 2
    own_and_near = {"kappa": 1.0, "adjacency": Shifted()}  # kappa 1: what is heard, and nothing else
    narrow, wide = torch.ones(1, 2), torch.ones(1, 3)
    heard = ReciprocalCritics(sums, widths=[2, 3], **own_and_near)([narrow, wide])
    assert heard.tolist() == [[4.0], [4.0]]  # 2 + 2 + 0, the padding; and 2 + 2, the third being cut
    masks = torch.tensor([[True, True, False], [True, True, True]])
    padded = torch.tensor([[[1.0, 1.0, 7.0]], [[1.0, 1.0, 1.0]]])
    itself = ReciprocalCritics(sums, graph="self", masks=masks, **own_and_near)(padded)
    assert itself.tolist() == [[11.0], [6.0]]
    assert Reciprocal(2, adjacency=Shifted(), mask=masks).adjacent(padded)[0, :, 0].tolist() == [[2, 2, 7], [2, 2, 2]]


@pytest.mark.parametrize("settings", [{}, {"rho": (2,)}, {"adjacency": "mask"}, {"adjacency": "gaussian"}], ids=str)
@pytest.mark.parametrize("graph", ["complete", "random"])
def test_random_numbers_are_drawn_on_the_cpu_whatever_torchs_default_device(settings, graph):
    def module():
        sums = [lambda s, k=k: s.sum(-1) * k for k in range(3)]
        generator = torch.Generator().manual_seed(1)
        return ReciprocalCritics(sums, 0.5, graph, generator=generator, **settings)

    states = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
    here, there = module(), module()
    expected = here(states)
    with torch.device("meta"):  # stands for a GPU
        assert torch.equal(there(states), expected)
