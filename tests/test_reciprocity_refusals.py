"""What reciprocity cannot work with: whichever door it comes in by, one line says what arrived and what belongs."""

from collections import namedtuple

import pytest
import torch
from torch import nn

from marl.reciprocity import (
    AdjacencySpace,
    Exact,
    HookedCritics,
    Reciprocal,
    ReciprocalCritics,
    Reciprocity,
    UserError,
    complete,
    reciprocate,
)
from marl.testing import answering

STATES = torch.arange(48.0).view(2, 8, 3)
ROW = "row 0 is [0.5, 0.4]; each row must be non-negative and sum to one, or be all zero"
SHORT = torch.tensor([[0.5, 0.4], [1.0, 0.0]])


def mean(states):
    return states.mean(-1)


def wrapped(*critics, **settings):
    return ReciprocalCritics(list(critics or [mean, mean]), **settings)


def blended(**given):
    """The pure function on two agents and eight rows."""
    return reciprocate(**{"own": torch.ones(2, 8), "peers": torch.ones(2, 2, 8), "kappa": 0.5, **given})


class Levelless(AdjacencySpace):
    def __call__(self, states, real=None):
        yield states


def hooked(*sizes, **settings):
    critics = [torch.nn.Linear(3, size) for size in sizes or (1, 1)]
    HookedCritics(critics, **settings)
    return critics


CASES = {
    # critics whose outputs differ in shape
    "wrapper, shape": (
        lambda: wrapped(mean, lambda s: s[:, :2])(STATES),
        "critic 1: expected shape [8] as critic 0 answered, got [8, 2]",
    ),
    "wrapper, shape while off": (
        lambda: wrapped(mean, lambda s: s.mean(-1, keepdim=True), kappa=0.0)(STATES),
        "critic 1: expected shape [8] as critic 0 answered, got [8, 1]",
    ),
    "wrapper, rows": (
        lambda: wrapped(lambda s: s[:3, 0], mean)(STATES),
        "critic 0: expected shape [8, ...], a row a state, got [3]",
    ),
    "wrapper, no numbers": (
        lambda: wrapped(lambda s: None, mean)(STATES),
        "answer of critic 0: expected a torch.Tensor, got NoneType",
    ),
    "wrapper, integers": (
        lambda: wrapped(lambda s: mean(s).long(), lambda s: mean(s).long())(STATES),
        "critic 0: expected values in floating point, got int64",
    ),
    "module, shape": (
        lambda: Reciprocal(2)(torch.ones(2, 8), torch.ones(1, 2, 2, 7)),
        "heard: expected shape [1, 2, 2, 8] for own [2, 8] of 2 agents, got [1, 2, 2, 7]",
    ),
    "function, shape": (
        lambda: blended(peers=torch.ones(2, 2, 7)),
        "peers: expected shape [2, 2, 8] for own [2, 8], got [2, 2, 7]",
    ),
    "function, integers": (
        lambda: blended(own=torch.ones(2, 8, dtype=torch.int64)),
        "own: expected values in floating point, got int64",
    ),
    "function, integers of peers": (
        lambda: blended(peers=torch.ones(2, 2, 8, dtype=torch.int64)),
        "peers: expected values in floating point, got int64",
    ),
    "module, integers": (
        lambda: Reciprocal(2)(torch.ones(2, 8), torch.ones(1, 2, 2, 8, dtype=torch.int32)),
        "heard: expected values in floating point, got int32",
    ),
    "module, states without rows": (
        lambda: Reciprocal(2).adjacent(torch.ones(2, 8)),
        "states[0]: expected shape [B, D] (any [B, ..., D] with exact or peer), got [8]",
    ),
    "module, states of others": (
        lambda: Reciprocal(2).adjacent(torch.ones(3, 8, 3)),
        "states: expected shape [2, B, D] or [1, B, D], got [3, 8, 3]",
    ),
    "wrapper, entries for one joint state": (
        lambda: wrapped()(STATES[:1], torch.ones(2, 8, 1)),
        "argument 1: expected 1, as many as states, got 2",
    ),
    "wrapper, whole numbers to be projected": (
        lambda: wrapped(*[lambda s: mean(s.float())] * 2, projections=[torch.eye(3) / 2] * 2)(STATES.long()),
        "states[0]: expected values in floating point, got int64",
    ),
    "wrapper, projections of two kinds": (
        lambda: wrapped(projections=[torch.eye(3), torch.eye(3).double()]),
        "projections[1]: expected float32 as projections[0], got float64",
    ),
    # adjacent states that cannot be made
    "wrapper, adjacency": (
        lambda: wrapped(adjacency=3),
        "adjacency: expected a name or an AdjacencySpace, got int",
    ),
    "module, no adjacency": (
        lambda: Reciprocal(2, adjacency=None),
        "adjacency: expected a name or an AdjacencySpace, got NoneType",
    ),
    "wrapper, one level": (
        lambda: wrapped(rho=2),
        "reciprocity.rho: expected a sequence of whole numbers, as (1, 2), got 2",
    ),
    "wrapper, half a level": (
        lambda: wrapped(rho=(1.5,)),
        "reciprocity.rho: expected a sequence of whole numbers, as (1, 2), got (1.5,)",
    ),
    "wrapper, masks without numbers": (
        lambda: wrapped(masks=torch.ones(2, 3, dtype=torch.bool, device="meta")),
        "mask: expected on a device that holds numbers, got meta",
    ),
    "module, mask": (
        lambda: Reciprocal(2, mask=torch.ones(2, 3)),
        "mask: expected bool of shape [N or 1, D], got float32 of shape [2, 3]",
    ),
    # a graph of the wrong size
    "wrapper, graph": (lambda: wrapped(graph=complete(3)), "graph: expected shape [2, 2] for 2 critics, got [3, 3]"),
    "module, graph": (
        lambda: Reciprocal(2, graph=complete(3)),
        "graph: expected shape [2, 2] for 2 critics, got [3, 3]",
    ),
    "hooks, graph": (lambda: hooked(graph=complete(3)), "graph: expected shape [2, 2] for 2 critics, got [3, 3]"),
    "wrapper, changing graph": (
        lambda: wrapped(graph=lambda: complete(3))(STATES),
        "graph: weights for 3 agents arrived, but there are 2 critics",
    ),
    "wrapper, no square": (
        lambda: wrapped(graph=torch.ones(2, 3) / 3),
        "graph: expected weights of shape [N, N] or [P, N, N], got [2, 3]",
    ),
    "function, graph": (lambda: blended(weights=complete(3)), "weights: expected shape [2, 2], got [3, 3]"),
    "neighbours": (
        lambda: wrapped(graph="nearest", neighbours=2),
        "reciprocity.neighbours: 2 of 2 agents; expected 1 to 1",
    ),
    "wrapper, weights for members": (
        lambda: wrapped(graph=lambda: complete(2).expand(3, 2, 2))(STATES),
        "graph: expected weights of shape [2, 2], got [3, 2, 2]",
    ),
    "half a neighbour": (
        lambda: Reciprocal(3, graph="nearest", neighbours=1.5),
        "reciprocity.neighbours: 1.5 of 3 agents; expected 1 to 2",
    ),
    "generator": (lambda: wrapped(generator=0), "generator: expected a torch.Generator, got int"),
    "widths": (lambda: wrapped(widths=4), "widths: expected a sequence, one for each critic, got int"),
    "one critic alone": (
        lambda: ReciprocalCritics(lambda state: state),
        "critics: expected a sequence, one for each agent, got function",
    ),
    "critics by name": (
        lambda: ReciprocalCritics({"a": lambda state: state}),
        "critics: expected a sequence, one for each agent, got dict",
    ),
    "critics that are names": (
        lambda: ReciprocalCritics(["a", "b"]),
        "critics[0]: expected a function critic(state, *rest), got str",
    ),
    "arguments by name": (
        lambda: wrapped()(STATES, {"a": STATES[0], "b": STATES[1]}),
        "argument 1: expected a sequence, one for each state, got dict",
    ),
    "a space without levels": (
        lambda: wrapped(adjacency=Levelless()),
        "adjacency: expected levels, one for each state that the space yields, got none",
    ),
    "nobody": (lambda: ReciprocalCritics([]), "graph: expected one critic or more, got 0"),
    # nothing for each agent
    "wrapper, one number": (
        lambda: wrapped()(torch.tensor(1.0)),
        "states: expected a sequence, one for each state, got a tensor of shape []",
    ),
    "wrapper, one action": (
        lambda: wrapped()(STATES, 5),
        "argument 1: expected a sequence, one for each state, got int",
    ),
    # rows that do not sum to one
    "wrapper, row": (lambda: wrapped(graph=SHORT), f"graph: {ROW}"),
    "module, row": (lambda: Reciprocal(2, graph=SHORT), f"graph: {ROW}"),
    "hooks, row": (lambda: hooked(graph=SHORT), f"graph: {ROW}"),
    "wrapper, changing row": (lambda: wrapped(graph=lambda: SHORT)(STATES), f"graph: {ROW}"),
    "population, row": (lambda: Reciprocity([0.5], Exact(), SHORT), f"graph: {ROW}"),
    "wrapper, negative": (
        lambda: wrapped(graph=torch.tensor([[-0.5, 1.5], [1, 0]])),
        f"graph: {ROW}".replace("0.5, 0.4", "-0.5, 1.5"),
    ),
    "wrapper, NaN": (
        lambda: wrapped(graph=torch.tensor([[float("nan"), 1], [1, 0]])),
        f"graph: {ROW}".replace("0.5, 0.4", "nan, 1.0"),
    ),
    # kappa outside [0, 1]
    "wrapper, kappa": (lambda: wrapped(kappa=1.5), "kappa: expected a number from 0 to 1, got 1.5"),
    "wrapper, no kappa": (lambda: wrapped(kappa=float("nan")), "kappa: expected a number from 0 to 1, got nan"),
    "wrapper, kappa's schedule": (
        lambda: wrapped(kappa=lambda calls: -0.1)(STATES),
        "kappa: expected a number from 0 to 1, got -0.1",
    ),
    "module, kappa": (lambda: Reciprocal(2, kappa=-0.5), "kappa: expected a number from 0 to 1, got -0.5"),
    "hooks, kappa": (lambda: hooked(kappa=2), "kappa: expected a number from 0 to 1, got 2"),
    "function, kappa": (lambda: blended(kappa=-1), "kappa: expected a number from 0 to 1, got -1"),
    "function, an agent's kappa": (
        lambda: blended(kappa=torch.tensor([0.5, 1.25])),
        "kappa: expected a number from 0 to 1, got 1.25",
    ),
    "function, kappa in words": (lambda: blended(kappa="0.5"), "kappa: expected a number from 0 to 1, got '0.5'"),
    "function, kappa in a list": (lambda: blended(kappa=[0.5]), "kappa: expected a number from 0 to 1, got list"),
    "population, kappa": (
        lambda: Reciprocity([0.5, 1.2], Exact(), complete(2)),
        "reciprocity.kappa: expected a number from 0 to 1, got 1.2",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_says_what_arrived_and_what_was_expected(case):
    call, message = CASES[case]
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value) == message


FROM_OTHER_ROWS = "takes values from other rows and needs a batch of 2 states or more, got 1; mask and exact take any"
NEEDS = {
    "resample": f"reciprocity: adjacency resample {FROM_OTHER_ROWS}",
    "knn": f"reciprocity: adjacency knn {FROM_OTHER_ROWS}",
    "gaussian": "reciprocity: adjacency gaussian needs a batch of 2 states or more for its first deviation, got 1",
}


@pytest.mark.parametrize("adjacency", NEEDS)
def test_a_batch_of_one_is_refused_by_every_space_that_reads_other_rows(adjacency):
    first = hooked(adjacency=adjacency)[0]
    for call in (
        lambda: wrapped(adjacency=adjacency)(STATES[:, :1]),
        lambda: Reciprocal(2, adjacency=adjacency).adjacent(STATES[:, :1]),
        lambda: first(STATES[0, :1]),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert str(caught.value) == NEEDS[adjacency]


@pytest.mark.parametrize("adjacency", ["mask", "exact", "peer"])
def test_a_batch_of_one_is_enough_for_the_others(adjacency):
    assert wrapped(adjacency=adjacency)(STATES[:, :1]).shape == (2, 1)


Named = namedtuple("Named", "first second")


@pytest.mark.parametrize("odd", [lambda x: {"q": x}, lambda x: Named(x, x), lambda x: (x, (x, None)), lambda x: None])
def test_a_critic_that_cannot_be_made_to_answer_is_named_with_what_it_returned(odd):
    class Odd(nn.Module):
        def forward(self, x):
            return odd(x)

    critic = Odd()
    answering(critic, 1.0)
    with pytest.raises(UserError, match=f"a tuple or list of tensors, Odd returned {type(odd(0)).__name__}"):
        critic(STATES)
