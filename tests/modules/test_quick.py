"""Shortcuts where a critic is only heard: the same numbers, less memory, and nothing of anybody else's overwritten."""

import copy

import pytest
import torch
from thread_tools import in_threads
from torch import nn

from marl.modules import quick as module
from marl.modules.quick import Shortcuts, quick
from marl.reciprocity import HookedCritics, ReciprocalCritics

STATES = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


def critic(middle: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(4, 128), middle or nn.ReLU(), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 1)
    return nn.Sequential(*layers)


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


def as_before(network: nn.Module) -> bool:
    """Whether nothing has stayed changed."""
    parts = list(network.modules())
    return not any("forward" in vars(part) for part in parts) and not any(getattr(part, "inplace", 0) for part in parts)


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
    assert as_before(network)


def test_it_may_be_entered_again_and_by_several_threads():
    network = critic()
    shortcuts, expected, wrong = Shortcuts(network), plainly(network), []

    def work():
        for _ in range(50):
            with quick(shortcuts), quick(shortcuts), torch.no_grad():
                wrong.extend([] if torch.equal(network(STATES), expected) else ["bits"])

    in_threads(work, 3)
    assert not wrong and as_before(network)


def test_the_batch_itself_is_never_overwritten_even_where_the_layer_before_is_replaced_later():
    network, before = critic(), STATES.clone()
    shortcuts = Shortcuts(network)
    network[0], network[2] = nn.Identity(), nn.Linear(4, 256)
    with quick(shortcuts), torch.no_grad():
        network(STATES)
    assert torch.equal(STATES, before)


def test_what_a_critic_or_a_thread_does_with_parts_of_a_chain_by_itself_is_left_alone():
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


def test_a_relu_in_several_places_overwrites_in_the_chain_alone():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()
            self.net = critic(self.relu)

        def forward(self, state):
            return self.relu(state).sum(-1, keepdim=True) + self.net(state) + state.sum(-1, keepdim=True)

    network = Residual()
    assert torch.equal(quickly(network), plainly(network))
    assert overwritten(network, quickly) == [False, True, True]


@pytest.mark.parametrize(
    "register",
    [
        lambda network, keep: network[0].register_forward_hook(lambda *told: keep(told[-1])),
        lambda network, keep: network[1].register_forward_pre_hook(lambda *told: keep(told[-1][0])),
        lambda network, keep: nn.modules.module.register_module_forward_hook(lambda *told: keep(told[-1])),
    ],
)
def test_what_a_hook_has_kept_is_not_overwritten(register):
    network, kept = critic(), []
    with quick(Shortcuts(network)), torch.no_grad():
        handle = register(network, kept.append)  # for the time of a call, as a critic may do by itself
        network(STATES)
        handle.remove()
        assert torch.equal(kept[0], network[0](STATES))


def test_calls_that_are_differentiated_run_as_ever():
    network = critic()
    with quick(Shortcuts(network)):
        assert overwritten(network, lambda net: torch.enable_grad()(net)(STATES)) == [False, False]


def test_small_critics_subclasses_and_what_has_a_forward_of_its_own_are_left_alone():
    class Chain(nn.Sequential):
        pass

    small = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    assert not Shortcuts(small).chains and not Shortcuts(Chain(*critic())).chains
    assert not Shortcuts(nn.Sequential(nn.LazyLinear(1000))).chains
    assert overwritten(critic(Watched()), quickly) == [False, True]
    network, constant = critic(), torch.full((64, 128), -1.0)
    network[0].forward = lambda state: constant
    quickly(network)
    assert (constant == -1).all()
    network.forward = mine = lambda state: state
    assert quickly(network) is STATES and vars(network)["forward"] is mine


def test_a_chain_that_becomes_one_of_another_class_runs_by_that():
    class Doubled(nn.Sequential):
        def forward(self, input):
            return 2 * super().forward(input)

    network = critic()
    shortcuts = Shortcuts(network)
    network.__class__ = Doubled
    with quick(shortcuts), torch.no_grad():
        assert torch.equal(network(STATES), 2 * plainly(critic()))


def test_functions_and_compiled_critics_have_no_shortcuts():
    later = critic()
    shortcuts = Shortcuts(later)
    later.compile(backend="eager")
    with quick(shortcuts):
        assert "forward" not in vars(later)
    for each in (lambda state: state, torch.compile(critic(), backend="eager")):
        assert not Shortcuts(each).chains


def test_a_critic_that_compiles_its_forward_itself_is_compiled_once_more_and_no_oftener():
    class Compiled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.compiled = critic(), 0
            self.run = torch.compile(lambda state: self.net(state), backend=self.backend)

        def backend(self, graph, _):
            self.compiled += 1
            return graph.forward

        def forward(self, state):
            return self.run(state)

    network = Compiled()
    shortcuts, expected = Shortcuts(network), plainly(network)
    for _ in range(3):
        with quick(shortcuts), torch.no_grad():
            assert torch.equal(network(STATES), expected)
    assert network.compiled <= 2


@pytest.mark.parametrize("wrap", [HookedCritics, ReciprocalCritics])
def test_those_who_are_heard_overwrite_and_a_copy_asks_its_own(wrap):
    """Two critics: each own value costs two plain relus, and what is heard of the other two that overwrite."""
    wrapper = copy.deepcopy(wrap([critic(), critic()], kappa=0.5))
    ask = wrapper.critics[0] if wrap is HookedCritics else lambda states: wrapper([states, states])
    found = overwritten(wrapper, lambda _: ask(STATES))
    rounds = 1 if wrap is HookedCritics else 2
    assert sorted(found) == [False, False] * rounds + [True, True] * rounds
    assert as_before(wrapper)


def test_copies_that_data_parallel_makes_compute_with_their_own_weights():
    """What ``torch.nn.parallel.replicate`` does on several GPUs: a copy of all attributes, then other parameters."""
    network = nn.DataParallel(critic())
    with quick(Shortcuts(network)), torch.no_grad():
        copied = network.module._replicate_for_data_parallel()
        copied._modules = dict(enumerate([nn.Linear(4, 1)]))
        assert copied(STATES).shape == (64, 1)
        assert torch.equal(copied(STATES), copied._modules[0](STATES))
