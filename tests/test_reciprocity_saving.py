"""Reciprocity in files: modules saved whole, copied, and states that are loaded into another module than their own."""

import copy
import io

import pytest
import torch
from torch import nn

from marl.reciprocity import HookedCritics, LinearKappa, Reciprocal, ReciprocalCritics, UserError, complete

STATES = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
RING = torch.eye(3).roll(1, 1)


def layers(n=3):
    return [nn.Linear(4, 1) for _ in range(n)]


def wrapper(n=3, graph="complete", adjacency="resample", **settings):
    return ReciprocalCritics(layers(n), 0.5, graph, adjacency, **settings)


def from_a_file(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


AGAIN = pytest.mark.parametrize("again", [from_a_file, copy.deepcopy])
KAPPAS = pytest.mark.parametrize("kappa", [0.5, LinearKappa(0.2, 1.0, 3)], ids=["constant", "schedule"])


@AGAIN
@KAPPAS
def test_a_wrapper_goes_on_where_it_was_saved(again, kappa):
    module = ReciprocalCritics(layers(), kappa, "random")
    module(STATES)
    other = again(module)
    assert other.reciprocal.kappa == module.reciprocal.kappa
    for _ in range(3):
        assert torch.equal(other(STATES), module(STATES))


@AGAIN
@KAPPAS
def test_a_module_for_critics_that_the_host_asks_goes_on_where_it_was_saved(again, kappa):
    module, own, heard = Reciprocal(3, kappa), STATES.sum(-1), torch.ones(1, 3, 3, 8)
    module(own, heard)
    other = again(module)
    assert torch.equal(other.adjacent(STATES), module.adjacent(STATES))
    for _ in range(3):
        assert torch.equal(other(own, heard), module(own, heard))


@AGAIN
@KAPPAS
def test_hooks_go_on_where_they_were_saved_and_can_be_removed_there(again, kappa):
    hooks = HookedCritics(layers(), kappa)
    plain = hooks.critics[0].weight @ STATES[0].T + hooks.critics[0].bias
    hooks.critics[0](STATES[0])
    other = again(hooks)
    for _ in range(3):
        assert torch.equal(other.critics[0](STATES[0]), hooks.critics[0](STATES[0]))
    other.remove()
    torch.testing.assert_close(other.critics[0](STATES[0]), plain.T)
    assert not hooks.critics[0](STATES[0]).requires_grad  # those stay


@AGAIN
def test_a_critic_that_is_hooked_can_be_saved_by_itself(again):
    critics = layers()
    HookedCritics(critics, LinearKappa(0.2, 1.0, 3))
    assert torch.equal(again(critics[0])(STATES[0]), critics[0](STATES[0]))


def test_the_name_of_a_graph_stands_above_what_was_saved():
    module = wrapper(graph="complete")
    module.load_state_dict(wrapper(graph="ring").state_dict())
    assert torch.equal(module.reciprocal.engine.graph(), complete(3).unsqueeze(0))


def test_a_graph_given_as_a_tensor_is_saved():
    module = wrapper(graph=torch.eye(3))
    module.load_state_dict(wrapper(graph=RING).state_dict())
    assert torch.equal(module.reciprocal.engine.graph(), RING.double().unsqueeze(0))


def test_states_of_before_that_hold_a_named_graph_are_loaded_where_it_is_the_same():
    module, old = wrapper(graph="complete"), wrapper(graph="complete").state_dict()
    extra = old["reciprocal._extra_state"]
    del extra["agents"]
    extra["graph"] = {"weights": complete(3).unsqueeze(0)}
    module.load_state_dict(old)
    extra["graph"] = {"weights": RING.double().unsqueeze(0)}
    with pytest.raises(
        UserError, match=r"reciprocity.graph: expected a saved state that holds nothing, .* got weights"
    ):
        module.load_state_dict(old)


@pytest.mark.parametrize(
    ("saved", "into", "message"),
    [
        (
            wrapper(adjacency="mask"),
            wrapper(adjacency="gaussian"),
            "reciprocity.adjacency: expected a saved state that holds streams and moments, as this adjacency has, "
            "got streams",
        ),
        (wrapper(adjacency="gaussian"), wrapper(adjacency="knn"), "adjacency: .* nothing, .* got streams and moments"),
        (wrapper(graph=RING), wrapper(graph="random"), "reciprocity.graph: .* holds streams, .* got weights"),
        (wrapper(graph="random"), wrapper(graph=RING), "reciprocity.graph: .* holds weights, .* got streams"),
        (wrapper(graph=RING), wrapper(graph=lambda: RING), "reciprocity.graph: .* holds nothing, .* got weights"),
        (wrapper(graph="ring"), wrapper(graph=RING), "reciprocity.graph: .* holds weights, .* got nothing"),
        (wrapper(3), wrapper(2), "expected a state saved for 2 critics, got one for 3"),
        (wrapper(3, "random"), wrapper(4, "random"), "expected a state saved for 4 critics, got one for 3"),
    ],
)
def test_the_state_of_another_module_is_refused_and_changes_nothing(saved, into, message):
    saved.reciprocal.calls = 7
    before = copy.deepcopy(into.state_dict()["reciprocal._extra_state"])
    with pytest.raises(UserError, match=message):
        into.load_state_dict(saved.state_dict())
    after = into.state_dict()["reciprocal._extra_state"]
    assert str(after) == str(before) and after["calls"] == 0
