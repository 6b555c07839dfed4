"""Large layers by oneDNN: the same numbers up to their rounding, only where asked for, and nothing stays changed."""

import copy

import pytest
import torch
from thread_tools import in_threads
from torch import nn

from marl.modules import onednn
from marl.modules.onednn import is_large
from marl.modules.quick import Shortcuts, quick
from marl.reciprocity import HookedCritics, ReciprocalCritics

STATES = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
PRECISION = getattr(torch.backends.mkldnn, "matmul", None)
pytestmark = pytest.mark.skipif(PRECISION is None, reason="an older torch, which has no such setting")


def critic(width: int = 256) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))


class Watched(nn.Linear):
    """What precision is allowed while it computes."""

    def forward(self, x):
        self.seen = PRECISION.fp32_precision
        return super().forward(x)


@pytest.fixture
def slow_mkl(monkeypatch):
    """As on a processor where MKL is slow, whichever this is."""
    monkeypatch.setattr(onednn, "_gains", lambda: True)


def test_the_answer_is_that_of_float32_up_to_rounding_where_it_is_used():
    """Inside, rounding to bfloat16 would be off by 2 ** -9, a hundred times what is allowed here."""
    network = critic()
    with torch.no_grad():
        expected = network(STATES)
        with quick(Shortcuts(network)):
            torch.testing.assert_close(network(STATES), expected, rtol=2e-5, atol=2e-5)
        with onednn.onednn():
            torch.testing.assert_close(network(STATES), expected, rtol=2e-5, atol=2e-5)


def test_the_probe_tells_float32_from_bfloat16(monkeypatch):
    assert onednn._exact() or torch.cpu.get_capabilities()["amx_bf16"]
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: product(a.bfloat16(), b.bfloat16()).float())
    assert not onednn._exact()


def test_only_large_layers_are_computed_otherwise_and_only_inside(slow_mkl, monkeypatch):
    network, used = critic(), []
    linear = nn.functional.linear
    monkeypatch.setattr(
        nn.functional,
        "linear",
        lambda x, w, b: (used.append((w.numel(), PRECISION.fp32_precision)), linear(x, w, b))[1],
    )
    before = PRECISION.fp32_precision
    with torch.no_grad():
        network(STATES)
        assert [allowed for _, allowed in used] == [before] * 3
        used.clear()
        with quick(Shortcuts(network)):
            network(STATES)
    assert used == [(4 * 256, before), (256 * 256, "bf16"), (256, before)]
    assert PRECISION.fp32_precision == before
    assert all("forward" not in vars(layer) for layer in network)


def test_a_layer_whose_forward_somebody_replaced_keeps_it(slow_mkl):
    network = critic()
    network[2].forward = mine = lambda x: torch.full((len(x), 256), 7.0)
    with quick(Shortcuts(network)):
        assert vars(network[2])["forward"] is mine
    assert vars(network[2])["forward"] is mine


def test_a_layer_may_be_called_by_keyword(slow_mkl):
    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(256, 256)

        def forward(self, state):
            return self.layer(input=state)

    state, network = torch.randn(8, 256), Critic()
    with quick(Shortcuts(network)):  # both inside: the processor may have bfloat16 products
        assert torch.equal(network(state), network.layer(state))


def test_a_critic_that_is_compiled_later_is_left_alone_from_then_on(slow_mkl):
    network = critic()
    shortcuts = Shortcuts(network)
    network.compile(backend="eager")
    with quick(shortcuts):
        assert "forward" not in vars(network[2])


def test_threads_put_the_setting_back_as_the_first_found_it(slow_mkl):
    before = PRECISION.fp32_precision

    def work():
        network = critic()
        for _ in range(100):
            with quick(Shortcuts(network)), torch.no_grad():
                network(STATES)

    in_threads(work, 3)
    assert PRECISION.fp32_precision == before


def test_nobodys_own_value_changes_a_bit_where_nobody_is_heard(slow_mkl):
    """Agent 0 hears nobody: what it gets is what its critic answers, computed as the host would."""
    critics, weights = [critic(), critic()], torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    states = [STATES, STATES + 1]
    assert torch.equal(ReciprocalCritics(critics, 0.5, weights)(states)[0], critics[0](STATES))


def test_nothing_stays_changed_after_an_error(slow_mkl):
    network, before = critic(), PRECISION.fp32_precision
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), quick(Shortcuts(network[2:])):
        network[2:](STATES)
    assert PRECISION.fp32_precision == before and "forward" not in vars(network[2])


def test_subclasses_small_networks_functions_and_compiled_critics_are_left_alone():
    with_subclass = nn.Sequential(Watched(256, 256))
    for each in (critic(32), with_subclass, lambda state: state, torch.compile(critic(), backend="eager")):
        assert Shortcuts(each).layers == []
    assert len(Shortcuts(critic()).layers) == 1
    assert (is_large(critic()), is_large(critic(32)), is_large(with_subclass)) == (True, False, True)


def test_a_user_can_leave_all_to_mkl(slow_mkl, monkeypatch):
    network = critic()
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    with quick(Shortcuts(network)):
        assert "forward" not in vars(network[2])


@pytest.mark.parametrize("wrap", [HookedCritics, ReciprocalCritics])
def test_with_kappa_0_critics_are_asked_as_they_are(slow_mkl, wrap):
    """The usual bug: bits that change although nothing is blended."""
    critics = [critic(), critic()]
    expected = critics[0](STATES)
    wrapper = wrap(critics, kappa=0.0)
    answer = critics[0](STATES) if wrap is HookedCritics else wrapper([STATES, STATES])[0]
    assert torch.equal(answer, expected)


@pytest.mark.parametrize("wrap", [HookedCritics, ReciprocalCritics])
def test_those_who_are_heard_are_asked_quickly_and_a_copy_asks_its_own(slow_mkl, monkeypatch, wrap):
    entered, enter = [], Shortcuts.__enter__

    def watched(self):
        enter(self)
        entered.extend(layer for layer, _ in self.layers if "forward" in vars(layer))

    monkeypatch.setattr(Shortcuts, "__enter__", watched)
    wrapper = copy.deepcopy(wrap([critic(), critic()], kappa=0.5))
    ask = (lambda: wrapper.critics[0](STATES)) if wrap is HookedCritics else (lambda: wrapper([STATES, STATES]))
    ask()
    assert entered and all(any(layer is own[2] for own in wrapper.critics) for layer in entered)
