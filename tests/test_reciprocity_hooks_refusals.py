"""What ``HookedCritics`` refuses: what cannot be hooked, and critics or states that do not fit."""

import pytest
import torch
from hook_tools import ACTIONS, NOTHING, STATES, Odd, Twins, networks
from torch import nn

from marl.reciprocity import HookedCritics, Peer, UserError


@pytest.mark.parametrize(
    "make, complaint",
    [
        (lambda: HookedCritics([lambda s: s], 0.5), r"critics\[0\]: expected a torch.nn.Module, got function"),
        (
            lambda: HookedCritics([critic := Twins(), critic]),
            r"critics\[1\]: expected another module than critics\[0\]",
        ),
        (lambda: HookedCritics([Twins(), Twins()], adjacency="peer"), "adjacency: peer asks each critic at its own"),
        (lambda: HookedCritics([Twins(), Twins()], adjacency=Peer()), "adjacency: peer asks each critic at its own"),
        (lambda: HookedCritics([Twins(), Twins()], 1.5), "kappa: expected a number from 0 to 1, got 1.5"),
        (
            lambda: HookedCritics([Twins(), Twins()], graph=torch.eye(3)),
            r"graph: expected shape \[2, 2\] for 2 critics",
        ),
        (
            lambda: HookedCritics([Twins(), Twins()], graph="nearest", neighbours=2),
            "reciprocity.neighbours: 2 of 2 agents",
        ),
        (lambda: HookedCritics([]), "critics: expected one or more, got none"),
        (lambda: HookedCritics(Twins()), "critics: expected a sequence, one for each agent, got Twins"),
        (lambda: HookedCritics(nn.Sequential(Twins())), "critics: expected a sequence, .* got Sequential"),
        (lambda: HookedCritics({"a": Twins()}), "critics: expected a sequence, one for each agent, got dict"),
        (lambda: HookedCritics([(), ()]), "critics: expected one or more, got none"),
        (
            lambda: HookedCritics([(Twins(), Twins()), Twins()]),
            r"critics\[1\]: expected 2 modules as critics\[0\] has, got 1",
        ),
        (
            lambda: HookedCritics([(Twins(), each := Twins()), (each, Twins())]),
            r"critics\[1\]\[0\]: expected another module than critics\[0\]\[1\], got the same",
        ),
        (lambda: HookedCritics([(Twins(), sum)]), r"critics\[0\]\[1\]: expected a torch.nn.Module, got builtin"),
    ],
)
def test_what_cannot_be_hooked_is_refused_and_nothing_is_left_on_the_critics(make, complaint):
    with pytest.raises(UserError, match=complaint):
        make()


def test_hooked_twice_is_refused():
    critics = networks()
    HookedCritics(critics)
    with pytest.raises(UserError, match=r"critics\[0\] is hooked already; expected remove\(\)"):
        HookedCritics(critics)


@pytest.mark.parametrize(
    "odd, complaint",
    [
        (lambda pair: pair[0], "critic 1: expected 2 tensors as critic 0 answered, got 1"),
        (lambda pair: (*pair, pair[0]), "critic 1: expected 2 tensors as critic 0 answered, got 3"),
        (lambda pair: {"q": pair[0]}, "critic 1: expected a tensor or a tuple or list of tensors, got dict"),
        (lambda pair: (pair[0], 1.0), "critic 1: expected a tensor or a tuple or list of tensors, got tuple"),
        (
            lambda pair: (pair[0], pair[1][:1]),
            r"critic 1: expected tensors of one shape, got shapes \[\[8, 1\], \[1, 1\]\]",
        ),
        (lambda pair: (), r"critic 1: expected tensors of one shape, got shapes \[\]"),
    ],
)
def test_critics_that_answer_differently_are_refused(odd, complaint):
    critics = [Twins(), Odd(odd)]
    HookedCritics(critics)
    with pytest.raises(UserError, match=complaint):
        critics[0](STATES[0], ACTIONS[0, :, :1])


def test_each_part_of_an_answer_is_to_be_in_floating_point():
    critics = [Odd(lambda pair: (pair[0], pair[1].long())) for _ in range(2)]
    HookedCritics(critics)
    with pytest.raises(UserError, match="critic 0: expected values in floating point, got int64"):
        critics[0](STATES[0], ACTIONS[0, :, :1])


@pytest.mark.parametrize(
    "call, complaint",
    [
        (
            lambda critic: critic(state=STATES[0], action=NOTHING),
            "critic 0: expected the states as its first positional",
        ),
        (lambda critic: critic(STATES, NOTHING), r"states of critic 0: expected shape \[B, D\]"),
        (lambda critic: critic(STATES[0, :1], NOTHING), "resample takes values from other rows and needs a batch of 2"),
        (lambda critic: critic(STATES[0, 0], torch.zeros(4)), r"states of critic 0: expected shape \[B, D\]"),
    ],
)
def test_states_from_which_no_adjacent_ones_can_be_made_are_refused(call, complaint):
    critics = [Twins(), Twins()]
    HookedCritics(critics)
    with pytest.raises(UserError, match=complaint):
        call(critics[0])


@pytest.mark.parametrize("graph", ["complete", "self"])
def test_critics_that_write_into_their_states_are_refused_where_they_would_be_asked_about_what_they_wrote(graph):
    class Writes(nn.Module):
        def forward(self, state):
            return state.div_(255).sum(-1)

    critics = [Writes(), Writes()]
    hooks = HookedCritics(critics, 0.0, graph)
    assert torch.equal(critics[0](STATES[0].clone()), STATES[0].div(255).sum(-1))
    hooks.kappa = 0.5
    with pytest.raises(UserError, match="expected to leave the states as they are, it writes into them"):
        critics[0](STATES[0].clone())
