"""Reciprocity in other people's code: compilers, transforms, devices, schedules, unequal sizes, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, stack_module_state, vmap

from marl.reciprocity import LinearKappa, Peer, Reciprocal, ReciprocalCritics, UserError, complete, reciprocate

HALF = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
STATES = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
LAYERS = [nn.Linear(4, 1) for _ in range(3)]
CRITICS = [lambda s, q=q: q(s)[:, 0] for q in LAYERS]


def wrapper(critics=CRITICS, **settings) -> ReciprocalCritics:
    return ReciprocalCritics(critics, generator=torch.Generator().manual_seed(1), **settings)


def sums(n: int):
    """Critic j is 10^j times the sum of what it sees."""
    return [lambda s, *rest, k=10**j: s.sum(-1) * k for j in range(n)]


# the module


def test_the_host_keeps_its_critics_to_itself():
    module = wrapper(LAYERS)
    assert not list(module.parameters()) and set(module.state_dict()) == {"reciprocal._extra_state"}


def test_the_state_survives_a_file_that_holds_no_code(tmp_path):
    first, restored = (
        wrapper(adjacency="gaussian", kappa=LinearKappa(0.2, 0.8, 4)),
        wrapper(adjacency="gaussian", kappa=LinearKappa(0.2, 0.8, 4)),
    )
    first(STATES)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    first_again = first(STATES)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert restored.reciprocal.calls == 1 and torch.equal(restored(STATES), first_again)


def test_a_copy_draws_its_own_numbers_from_the_same_place():
    first = wrapper()
    other = copy.deepcopy(first)
    assert torch.equal(first(STATES), other(STATES)) and torch.equal(first(STATES), other(STATES))


def test_kappa_goes_in_equal_steps_and_stays():
    module = ReciprocalCritics(sums(2), LinearKappa(0.0, 0.5, 2), adjacency="exact")
    ones = torch.ones(2, 1, 1)  # critics say 1 and 10; agent 0: 1, then .75 * 1 + .25 * 10, then .5 * 1 + .5 * 10
    assert [module(ones)[0].item() for _ in range(4)] == [1.0, 3.25, 5.5, 5.5]
    assert LinearKappa(1.0, 0.0, 4)(1) == 0.75


def test_while_the_schedule_says_zero_nothing_is_drawn():
    generator = torch.Generator().manual_seed(3)
    module = ReciprocalCritics(CRITICS, lambda calls: 0.0 if calls < 2 else 0.5, generator=generator)
    before = generator.get_state()
    for _ in range(2):
        assert module.reciprocal.off and module(STATES) is not None and module.gap is None
    assert torch.equal(generator.get_state(), before)
    module(STATES)
    assert not torch.equal(generator.get_state(), before)


def test_only_critics_that_are_heard_are_asked():
    calls = []
    ring = torch.eye(3).roll(1, 1)  # 0 hears 1, 1 hears 2, 2 hears 0

    def critic(j):
        return lambda s: calls.append(j) or s.sum(-1)

    ReciprocalCritics([critic(j) for j in range(3)], 0.5, ring)(STATES)
    assert calls == [0, 1, 2, 1, 2, 0]


def test_a_host_that_asks_its_critics_itself_gets_what_the_wrapper_gets():
    module = Reciprocal(3, rho=(1, 2), generator=torch.Generator().manual_seed(1))
    near = module.adjacent(STATES)
    heard = torch.stack([torch.stack([torch.stack([q(s) for q in CRITICS]) for s in states]) for states in near])
    own = torch.stack([q(s) for q, s in zip(CRITICS, STATES, strict=True)])
    value = module(own, heard)
    torch.testing.assert_close(value, wrapper(rho=(1, 2))(STATES))
    assert own.requires_grad and not value.requires_grad
    torch.testing.assert_close(module.gap, (value - own).abs().mean(-1).detach())
    off = Reciprocal(3, 0.0)
    assert torch.equal(off(own), own) and not off(own).requires_grad


def test_a_critic_that_insists_on_gradients_leaves_none():
    def critic(s):
        with torch.enable_grad():
            return LAYERS[0](s)[:, 0]

    for kappa in (0.0, 0.5):
        module = ReciprocalCritics([critic] * 3, kappa)
        assert not module(STATES).requires_grad
        last = module.reciprocal.engine.last
        assert last is None or not any(t.requires_grad for t in last)


# unequal sizes


def test_projections_carry_a_state_through_the_global_one():
    # agent 0 sees coordinates (0, 1) of three, agent 1 sees (2, 1): of agent 0's (3, 4) critic 1 reads (0, 4)
    seen = []
    first, second = torch.eye(3)[[0, 1]], torch.eye(3)[[2, 1]]

    def critic(j):
        return lambda s: seen.append((j, s.tolist())) or s.sum(-1)

    module = ReciprocalCritics([critic(0), critic(1)], 0.5, adjacency="exact", projections=[first, second])
    module(torch.tensor([[[3.0, 4.0]], [[5.0, 6.0]]]))
    assert seen == [(0, [[3.0, 4.0]]), (1, [[5.0, 6.0]]), (1, [[0.0, 4.0]]), (0, [[0.0, 6.0]])]


def test_projections_of_unequal_sizes_are_exact_under_autocast():
    wide, narrow = torch.eye(3), torch.eye(3)[:1]
    module = ReciprocalCritics(sums(2), 1.0, adjacency="exact", projections=[wide, narrow])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = module([torch.tensor([[1.001, 2.0, 3.0]]), torch.tensor([[1.003]])])
    assert result[:, 0].tolist() == pytest.approx([10.01, 1.003], abs=1e-5)  # bfloat16 knows 3 digits


def test_masks_hide_what_a_critic_has_never_seen():
    masks = torch.tensor([[True, True, False], [True, False, True]])
    result = ReciprocalCritics(sums(2), 1.0, adjacency="exact", masks=masks)(
        torch.tensor([[[1.0, 2.0, 0.0]], [[3.0, 0.0, 4.0]]])
    )
    assert result.tolist() == [[10.0], [3.0]]  # each reads only coordinate 0 of the other's state


def test_masked_padding_is_never_perturbed():
    masks = torch.tensor([[True, True, False, False], [True, True, True, False]])
    states = torch.randn(2, 6, 4) * masks[:, None]
    near = Reciprocal(2, adjacency="gaussian", rho=(4,), sigma=9.0, mask=masks).adjacent(states)
    assert near.shape == (1, 2, 6, 4) and torch.equal((near[0] != 0).all(1), masks)


# compilers, transforms, precision


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_pure_function_compiles_to_one_graph(backend):
    torch._dynamo.reset()
    own, peers = torch.randn(3, 8), torch.randn(3, 3, 8)
    compiled = torch.compile(reciprocate, backend=backend, fullgraph=True)
    for kappa in (0.5, torch.tensor([0.0, 0.2, 1.0])):
        for weights in (None, torch.full((3, 3), 1 / 3)):
            given = own, peers, kappa, weights
            torch.testing.assert_close(compiled(*given), reciprocate(*given))


def test_the_wrapper_compiles_to_one_graph_where_nothing_is_drawn():
    torch._dynamo.reset()
    compiled = torch.compile(wrapper(adjacency="exact"), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(STATES), wrapper(adjacency="exact")(STATES))


def test_the_wrapper_compiles_around_its_random_numbers_and_draws_the_same_ones():
    torch._dynamo.reset()
    module, plain = wrapper(), wrapper()
    compiled = torch.compile(module, backend="aot_eager")
    for _ in range(3):
        torch.testing.assert_close(compiled(STATES), plain(STATES))
    torch.testing.assert_close(module.gap, plain.gap)


def test_a_schedule_is_not_compiled_anew_at_each_call():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    settings = {"adjacency": "exact", "kappa": LinearKappa(0.1, 0.9, 20)}
    compiled, plain = torch.compile(wrapper(**settings), backend=counter), wrapper(**settings)
    graphs = []
    for _ in range(6):
        torch.testing.assert_close(compiled(STATES), plain(STATES))
        graphs.append(counter.frame_count)
    assert graphs[1] == graphs[-1] <= 4


@pytest.mark.slow
def test_inductor_compiles_the_wrapper():
    torch._dynamo.reset()
    compiled, plain = torch.compile(wrapper()), wrapper()
    for _ in range(2):
        torch.testing.assert_close(compiled(STATES), plain(STATES))


def test_the_pure_function_maps_over_members_with_kappas_and_weights_of_their_own():
    own, peers, kappa, weights = torch.randn(5, 3, 8), torch.randn(5, 3, 3, 8), torch.rand(5, 3), torch.rand(5, 3, 3)
    weights = weights / weights.sum(-1, keepdim=True)
    alone = torch.stack([reciprocate(*given) for given in zip(own, peers, kappa, weights, strict=True)])
    torch.testing.assert_close(vmap(reciprocate)(own, peers, kappa, weights), alone)


@pytest.mark.parametrize("settings", [{}, {"graph": "random"}, {"adjacency": "knn"}, {"adjacency": "mask", "count": 2}])
def test_the_wrapper_maps_over_members_whose_networks_are_stacked(settings):
    networks = [[nn.Linear(4, 1) for _ in range(3)] for _ in range(2)]  # 2 members, 3 agents
    parameters = [stack_module_state([member[j] for member in networks])[0] for j in range(3)]
    states = torch.randn(2, 3, 8, 4)
    now: list = []
    module = wrapper([lambda s, j=j: functional_call(networks[0][0], now[j], (s,))[:, 0] for j in range(3)], **settings)

    def member(parameters, states):
        now[:] = parameters
        return module(states)

    together = vmap(member, randomness="same")(parameters, states)
    alone = [wrapper([lambda s, q=q: q(s)[:, 0] for q in networks[p]], **settings)(states[p]) for p in range(2)]
    torch.testing.assert_close(together, torch.stack(alone).detach())
    assert module.gap is None  # nothing from inside the vmap is kept


@pytest.mark.filterwarnings("error")
def test_adjacent_states_are_drawn_inside_a_vmap_compiled_or_not():
    states = torch.arange(5.0 * 8 * 3).view(5, 1, 8, 3)
    near = vmap(lambda state: Reciprocal(1, 0.5, "self").adjacent(state)[0], randomness="same")
    for call in (near, torch.compile(near, backend="eager")):
        assert ((call(states) != states).sum(-1) == 1).all()


def test_running_moments_are_refused_inside_a_vmap():
    with pytest.raises(
        UserError, match=r"adjacency gaussian keeps a running deviation, which torch\.func\.vmap cannot"
    ):
        vmap(wrapper(adjacency="gaussian"), randomness="same")(STATES.expand(2, 3, 8, 4))


def test_values_are_mixed_in_the_precision_in_which_they_arrive():
    own, peers = torch.randn(3, 8), torch.randn(3, 3, 8)
    expected = reciprocate(own, peers, 0.3), wrapper(sums(3))(STATES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(reciprocate(own, peers, 0.3), expected[0])
        assert torch.equal(wrapper(sums(3))(STATES), expected[1])
        assert wrapper()(STATES).dtype == torch.bfloat16  # that is what the layers answer


# devices


@pytest.mark.parametrize("adjacency", ["resample", "mask", "gaussian", "knn", "peer", "exact"])
def test_another_device_gets_its_answers_there(adjacency):
    states = torch.empty(3, 8, 4, device="meta")
    assert wrapper(sums(3), adjacency=adjacency)(states).device == states.device
    assert wrapper(sums(3), adjacency=adjacency, graph="random").to("meta")(states).shape == (3, 8)


def test_weights_of_ones_own_move_with_the_module_only():
    states = torch.empty(2, 8, 4, device="meta")
    module = ReciprocalCritics(sums(2), 0.5, HALF)
    with pytest.raises(UserError, match="graph: expected on meta, where the batch lies, got cpu; nothing is moved"):
        module(states)
    assert module.to("meta")(states).device == states.device
    assert ReciprocalCritics(sums(2), 0.3).double().half().reciprocal.engine.kappa.item() == 0.3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: reciprocate(torch.ones(2), torch.ones(2, 2, device=m), 0.5), "peers: expected on cpu"),
        (lambda m: reciprocate(torch.ones(2), torch.ones(2, 2), torch.ones(2, device=m)), "kappa: expected on cpu"),
        (lambda m: reciprocate(torch.ones(2), torch.ones(2, 2), 0.5, HALF.to(m)), "weights: expected on cpu"),
        (lambda m: wrapper(sums(2))([torch.ones(8, 4), torch.ones(8, 4, device=m)]), r"states\[1\]: expected on cpu"),
        (
            lambda m: wrapper(sums(2))(torch.ones(2, 8, 4), torch.ones(2, 8, 1, device=m)),
            r"argument 1\[0\]: expected on cpu, where states\[0\] lies, got meta",
        ),
        (
            lambda m: wrapper([lambda s: s.sum(-1), lambda s: s.sum(-1).to(m)])(torch.ones(2, 8, 4)),
            "answer of critic 1: expected on cpu, where states lies, got meta",
        ),
        (
            lambda m: wrapper(sums(2), projections=[torch.eye(4), torch.eye(4)])(torch.ones(2, 8, 4, device=m)),
            "projections: expected on meta, where states lies, got cpu",
        ),
        (
            lambda m: wrapper(sums(2), masks=torch.ones(2, 4, dtype=torch.bool))(torch.ones(2, 8, 4, device=m)),
            "masks: expected on meta, where states lies, got cpu",
        ),
        (lambda m: Reciprocal(2)(torch.ones(2, 8), torch.ones(1, 2, 2, 8, device=m)), "heard: expected on cpu"),
    ],
)
def test_tensors_on_different_devices_are_refused_by_name(call, message):
    with pytest.raises(UserError, match=message):
        call("meta")


# what is refused


class Array:
    """An array of JAX as far as its type's name goes."""


Array.__module__ = "jaxlib.xla_extension"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reciprocate(np.ones(2), torch.ones(2, 2), 0.5), "own: expected a torch.Tensor, got numpy.ndarray; "),
        (lambda: reciprocate(torch.ones(2), Array(), 0.5), "peers: .* got jaxlib.Array; torch.from_dlpack makes one"),
        (lambda: wrapper()(STATES.numpy()), "states: .* got numpy.ndarray; torch.from_numpy makes one"),
        (lambda: wrapper()(list(STATES.numpy())), r"states\[0\]: .* got numpy.ndarray"),
        (lambda: wrapper(sums(3))(STATES, np.ones((3, 8, 1))), "argument 1: .* got numpy.ndarray"),
        (lambda: wrapper([lambda s: s.numpy()] * 3)(STATES), "answer of critic 0: .* got numpy.ndarray"),
        (lambda: wrapper(graph=np.eye(3)), "graph: expected a torch.Tensor, got numpy.ndarray"),
        (lambda: wrapper([lambda s: 1.0] * 3)(STATES), "answer of critic 0: expected a torch.Tensor, got float"),
        (
            lambda: wrapper([lambda s: s[:, :2], lambda s: s[:, :3], lambda s: s[:, :2]])(STATES),
            r"critic 1: expected shape \[8, 2\] as critic 0 answered, got \[8, 3\]",
        ),
        (
            lambda: wrapper([lambda s: s.sum()] * 3)(STATES),
            r"critic 0: expected shape \[8, ...\], a row a state, got \[\]",
        ),
        (lambda: wrapper(graph=torch.eye(4)), r"graph: expected shape \[3, 3\] for 3 critics, got \[4, 4\]"),
        (lambda: wrapper(graph=lambda: torch.eye(4))(STATES), "graph: weights for 4 agents .* there are 3 critics"),
        (
            lambda: wrapper(graph=torch.tensor([[0, 1, 0], [0.5, 0, 0.4], [0, 1, 0]])),
            r"graph: row 1 is \[0.5, 0.0, 0.4\]; each row must be non-negative and sum to one, or be all zero",
        ),
        (lambda: wrapper(kappa=1.5), "kappa: expected a number from 0 to 1, got 1.5"),
        (lambda: wrapper(kappa=float("nan")), "kappa: expected a number from 0 to 1, got nan"),
        (lambda: wrapper(kappa="half"), "kappa: expected a number from 0 to 1, got 'half'"),
        (lambda: wrapper(kappa=lambda calls: 2.0), "kappa: expected a number from 0 to 1, got 2.0"),
        (lambda: LinearKappa(0.0, -0.1, 5), "kappa: expected a number from 0 to 1, got -0.1"),
        (lambda: LinearKappa(0.0, 0.1, 0), "calls: expected 1 or more, got 0"),
        (lambda: reciprocate(torch.ones(2), torch.ones(2, 2), torch.ones(3)), r"shape \[2\], got shape \[3\]"),
        (lambda: wrapper()(STATES[:, :1]), "adjacency resample .* batch of 2 states or more, got 1"),
        (lambda: wrapper(adjacency="knn", count=8)(STATES), "adjacency knn .* batch of 9 states or more, got 8"),
        (lambda: wrapper(adjacency="gaussian")(STATES[:, :1]), "adjacency gaussian needs a batch of 2 states or more"),
        (lambda: wrapper()(STATES[:, 0]), r"states\[0\]: expected shape \[B, D\] .*, got \[4\]"),
        (lambda: wrapper()([*STATES[:2], STATES[2, :5]]), r"states\[2\]: expected 8 rows as in states\[0\], got 5"),
        (
            lambda: wrapper(widths=[4] * 3, masks=torch.ones(3, 4) > 0),
            "one of widths, masks and projections, got widths",
        ),
        (
            lambda: wrapper(masks=torch.ones(2, 4) > 0),
            r"masks: expected bool of shape \[3, D\], got bool of .*\[2, 4\]",
        ),
        (lambda: wrapper(masks=torch.ones(3, 4)), r"masks: expected bool of shape \[3, D\], got float32"),
        (lambda: wrapper(projections=[torch.eye(4)]), "projections: expected one for each of 3 critics, got 1"),
        (lambda: wrapper(projections=[torch.eye(4)] * 2 + [torch.eye(5)]), "one S for all, got shapes"),
        (lambda: wrapper(projections=[torch.eye(5)] * 3)(STATES), r"sizes \[4, 4, 4\] arrived, but .* \[5, 5, 5\]"),
        (lambda: Reciprocal(3)(torch.ones(3, 8), torch.ones(3, 3, 8)), r"heard: expected shape \[1, 3, 3, 8\] for own"),
        (lambda: Reciprocal(3)(torch.ones(3, 8)), "heard: expected a torch.Tensor, got NoneType"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_running_deviation_takes_batches_of_one_once_it_has_seen_two_rows():
    module = wrapper(adjacency="gaussian")
    module(STATES)
    assert module(STATES[:, :1]).shape == (3, 1)


def test_pictures_are_welcome_where_no_coordinate_changes():
    pictures = torch.ones(2, 5, 1, 3, 3)
    critics = [lambda s, k=k: s.flatten(1).sum(-1) * k for k in (1, 10)]
    assert ReciprocalCritics(critics, 0.5, adjacency=Peer())(pictures)[0].tolist() == [49.5] * 5  # .5 * 9 + .5 * 90
    with pytest.raises(UserError, match=r"states\[0\]: expected shape \[B, D\] .*, got \[5, 1, 3, 3\]"):
        ReciprocalCritics(critics)(pictures)


def test_one_batch_of_random_settings_equals_the_pure_function_on_a_table():
    weights = torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.0, 0.0], [0.5, 0.5, 0.0]])  # hears itself, nobody, others
    own = torch.stack([q(s) for q, s in zip(CRITICS, STATES, strict=True)])
    table = torch.stack([torch.stack([q(s) for q in CRITICS]) for s in STATES])
    for graph in (weights, complete(3)):
        result = wrapper(graph=graph, adjacency="exact", kappa=0.3)(STATES)
        torch.testing.assert_close(result, reciprocate(own, table, 0.3, graph))
    assert torch.equal(wrapper(graph=weights, adjacency="exact")(STATES)[1], own[1].detach())
