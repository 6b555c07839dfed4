"""What a user changes on the way: kappa, two agents only, critics of different sizes."""

import pytest
import torch
from torch import nn

from marl.reciprocity import HookedCritics, LinearKappa, Reciprocal, ReciprocalCritics, UserError


def constant(value):
    return lambda s: torch.full(s.shape[:1], value)


def test_kappa_may_be_set_on_every_door_and_is_a_number_or_a_schedule():
    reciprocal = ReciprocalCritics([constant(0.0), constant(8.0)], kappa=0.5, adjacency="exact")
    states = torch.zeros(2, 3, 1)
    assert reciprocal(states)[:, 0].tolist() == [4.0, 4.0]  # halfway to the other
    reciprocal.kappa = 0.25
    assert reciprocal(states)[:, 0].tolist() == [2.0, 6.0]  # a quarter of the way
    reciprocal.kappa = 0.0
    assert reciprocal(states)[:, 0].tolist() == [0.0, 8.0] and reciprocal.reciprocal.off
    reciprocal.kappa = LinearKappa(1.0, 1.0, calls=1)
    assert reciprocal(states)[:, 0].tolist() == [8.0, 0.0]
    for door in (reciprocal, Reciprocal(2), HookedCritics([nn.Linear(2, 1)])):
        with pytest.raises(UserError, match=r"^kappa: expected a number from 0 to 1, got 2"):
            door.kappa = 2


def test_hooked_critics_answer_as_they_are_once_kappa_is_set_to_0():
    critic = nn.Linear(2, 1)
    states = torch.randn(5, 2)
    plain = critic(states)
    hooks = HookedCritics([critic], kappa=1.0)
    assert not torch.equal(critic(states), plain)
    hooks.kappa = 0
    assert torch.equal(critic(states), plain)


@pytest.mark.parametrize("graph", ["nearest", "random", "ring"])
def test_two_agents_need_not_say_how_many_neighbours(graph):
    reciprocal = ReciprocalCritics([constant(0.0), constant(8.0)], kappa=0.5, graph=graph, adjacency="exact")
    assert reciprocal(torch.zeros(2, 3, 1))[:, 0].tolist() == [4.0, 4.0]


def test_critics_of_different_sizes_behind_hooks_are_named():
    critics = [nn.Linear(3, 1), nn.Linear(2, 1)]
    HookedCritics(critics)
    line = r"^critic 1: expected to take what critic 0 was given, got (addmm: )?mat1 and mat2"  # torch 2.15 names it
    with pytest.raises(UserError, match=line):
        critics[0](torch.randn(4, 3))
