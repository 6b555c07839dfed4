"""Shortcuts where a critic is only heard: the same numbers, less memory, and nothing of anybody else's overwritten."""

import copy

import pytest
import torch
from torch import nn

from marl.modules import quick as module
from marl.modules.quick import Shortcuts, quick
from marl.reciprocity import HookedCritics, ReciprocalCritics

STATES = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


def critic(middle: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), middle or nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


@pytest.fixture(autouse=True)
def mkl(monkeypatch):
    """As on a processor where oneDNN gains nothing, so that bits can be compared."""
    monkeypatch.setattr(module, "wanted", lambda: False)


class Watched(nn.ReLU):
    """Is no ``nn.ReLU`` by type, and so is left alone."""


def overwritten(network: nn.Module, call) -> list[bool]:
    """For each call of a relu, in order: whether it answered in the memory of its input."""
    found, relu = [], nn.functional.relu

    def watched(input, inplace=False):
        answer = relu(input, inplace=inplace)
        found.append(answer.data_ptr() == input.data_ptr())
        return answer

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(nn.functional, "relu", watched)
        call(network)
    return found


def quickly(network: nn.Module) -> torch.Tensor:
    with quick(Shortcuts(network)), torch.no_grad():
        return network(STATES)


def plainly(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(STATES)


def test_relus_of_a_chain_overwrite_and_answer_the_same_bits():
    network = critic()
    assert overwritten(network, plainly) == [False, False]
    assert overwritten(network, quickly) == [True, True]
    assert torch.equal(quickly(network), plainly(network))


def test_nothing_stays_changed_afterwards_nor_after_an_error():
    network = critic()
    quickly(network)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), quick(Shortcuts(network)):
        network(STATES[:, :3])
    assert all("forward" not in vars(part) for part in network.modules())
    assert not network[1].inplace and not network[3].inplace
    assert overwritten(network, plainly) == [False, False]


def test_the_batch_itself_is_never_overwritten():
    network, before = nn.Sequential(nn.ReLU(), nn.Linear(4, 1)), STATES.clone()
    assert not Shortcuts(network).chains
    quickly(network)
    assert torch.equal(STATES, before)


def test_what_a_critic_does_with_the_parts_of_a_chain_by_itself_is_left_alone():
    """The usual bug: y + h, where h is what the ReLU has overwritten with y."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = critic()

        def forward(self, state):
            hidden = self.net[0](state)
            hidden = self.net[1](hidden) + hidden
            return self.net[2:](hidden)

    network = Residual()
    assert torch.equal(quickly(network), plainly(network))
    assert overwritten(network, quickly) == [False, False]


def test_a_relu_in_several_places_is_left_alone():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.leave = nn.ReLU(), nn.Linear(4, 1)
            self.net = nn.Sequential(nn.Linear(4, 4), self.relu)

        def forward(self, state):
            return self.leave(self.relu(state) + self.net(state) + state)

    network = Residual()
    assert not Shortcuts(network).chains
    assert torch.equal(quickly(network), plainly(network))


@pytest.mark.parametrize("part, hook", [(0, "register_forward_hook"), (1, "register_forward_pre_hook")])
def test_what_a_hook_has_kept_is_not_overwritten(part, hook):
    network, kept = critic(), []
    shortcuts = Shortcuts(network)
    getattr(network[part], hook)(lambda *told: kept.append(told[-1] if part == 0 else told[-1][0]))
    with quick(shortcuts), torch.no_grad():
        network(STATES)
        expected = nn.functional.linear(STATES, network[0].weight, network[0].bias)
    assert torch.equal(kept[0], expected)
    assert overwritten(network, quickly) == [False, True]


def test_subclasses_and_what_has_a_forward_of_its_own_are_left_alone():
    class Chain(nn.Sequential):
        pass

    assert not Shortcuts(Chain(*critic())).chains
    assert overwritten(critic(Watched()), quickly) == [False, True]
    network, constant = critic(), torch.full((64, 8), -1.0)
    network[0].forward = lambda state: constant
    quickly(network)
    assert (constant == -1).all()
    network.forward = mine = lambda state: state
    assert quickly(network) is STATES and vars(network)["forward"] is mine


def test_a_user_who_overwrites_does_so_afterwards_too():
    network = critic(nn.ReLU(inplace=True))
    quickly(network)
    assert network[1].inplace and not network[3].inplace


def test_functions_and_compiled_critics_have_no_shortcuts():
    later = critic()
    shortcuts = Shortcuts(later)
    later.compile(backend="eager")
    with quick(shortcuts):
        assert "forward" not in vars(later)
    for each in (lambda state: state, torch.compile(critic(), backend="eager")):
        assert not Shortcuts(each).chains


@pytest.mark.parametrize("wrap", [HookedCritics, ReciprocalCritics])
def test_those_who_are_heard_overwrite_and_a_copy_asks_its_own(wrap):
    """Two critics: each own value costs two plain relus, and what is heard of the other two that overwrite."""
    wrapper = copy.deepcopy(wrap([critic(), critic()], kappa=0.5))
    ask = wrapper.critics[0] if wrap is HookedCritics else lambda states: wrapper([states, states])
    found = overwritten(wrapper, lambda _: ask(STATES))
    rounds = 1 if wrap is HookedCritics else 2
    assert sorted(found) == [False, False] * rounds + [True, True] * rounds
