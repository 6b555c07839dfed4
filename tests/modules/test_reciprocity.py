"""The blended bootstrap value: by hand, against a plain loop, and as a contraction."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from marl.modules.adjacency import AdjacencySpace, Exact, Peer, Resample
from marl.modules.graph import complete
from marl.modules.reciprocity import Reciprocity, ReciprocityConfig, blend, make_reciprocity, mix
from marl.streams import Streams
from marl.types import UserError


class Linear:
    """Critic j of member p is ``slope[p, j] * (sum of the state's coordinates)``; counts what it is asked."""

    def __init__(self, slope: Tensor) -> None:
        self.slope = slope
        self.asked: list[str] = []

    def own(self, states: Tensor) -> Tensor:
        self.asked.append("own")
        return self.slope.unsqueeze(-1) * states.sum(-1)

    def peers(self, states: Tensor) -> Tensor:
        self.asked.append("peers")
        return self.slope[:, None, :, None] * states.sum(-1).unsqueeze(2)

    def views(self, states: Tensor) -> Tensor:
        self.asked.append("views")
        return (self.slope.unsqueeze(-1) * states.sum(-1)).unsqueeze(1)


class Shifted(AdjacencySpace):
    """s + 1, s + 2, ... in every coordinate, of the levels given."""

    def __init__(self, *levels: int) -> None:
        self.levels = levels

    def __call__(self, states: Tensor, real: Tensor | None = None):
        return (states + k + 1 for k in range(len(self.levels)))


def states_of(*values: float) -> Tensor:
    """One member, one agent a value, one row, one coordinate."""
    return torch.tensor(values).view(1, -1, 1, 1)


SLOPES = torch.tensor([[1.0, 10.0, 100.0]])
STATES = states_of(1.0, 2.0, 3.0)  # own values 1, 20, 300


def test_exact_values_of_three_agents_by_hand():
    values = Linear(SLOPES)
    result = Reciprocity([0.5], Exact(), complete(3))(values, STATES)
    # agent 0 at state 1: .5 * 1 + .5 * (10 + 100) / 2 = 28; agent 1 at 2: .5 * 20 + .5 * (2 + 200) / 2 = 60.5;
    # agent 2 at 3: .5 * 300 + .5 * (3 + 30) / 2 = 158.25
    assert result.flatten().tolist() == [28.0, 60.5, 158.25]
    assert values.asked == ["own", "peers"]


def test_neighbours_are_asked_at_the_adjacent_state_and_oneself_at_the_true_one():
    result = Reciprocity([0.5], Shifted(1), complete(3))(Linear(SLOPES), STATES)
    # agent 0: .5 * 1 + .5 * (20 + 200) / 2 = 55.5
    assert result[0, 0, 0].item() == 55.5


def test_states_of_one_level_are_averaged():
    result = Reciprocity([1.0], Shifted(1, 1), complete(3))(Linear(SLOPES), STATES)
    # agent 0: states 2 and 3, mean 2.5, mean slope 55: 137.5
    assert result[0, 0, 0].item() == pytest.approx(137.5)


def test_levels_that_differ_are_weighted_by_exp_minus_rho():
    result = Reciprocity([1.0], Shifted(1, 2), complete(3))(Linear(SLOPES), STATES)
    # agent 0: state 2 of level 1 weighs .731059, state 3 of level 2 weighs .268941: 2.268941 * 55 = 124.79
    assert result[0, 0, 0].item() == pytest.approx(124.7918, abs=1e-3)


def test_weights_of_the_graph_are_those_of_the_blend():
    weights = torch.tensor([[0.0, 0.25, 0.75], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    result = Reciprocity([0.2], Exact(), weights)(Linear(SLOPES), STATES)
    # 0: .8 * 1 + .2 * (.25 * 10 + .75 * 100) = 16.3; 1 has no neighbours: 20; 2: .8 * 300 + .2 * 3 = 240.6
    assert result.flatten().tolist() == pytest.approx([16.3, 20.0, 240.6])
    assert result[0, 1].item() == 20.0


def test_peer_asks_each_critic_for_its_own_view():
    values = Linear(SLOPES)
    result = Reciprocity([0.5], Peer(), complete(3))(values, STATES)
    # own values 1, 20, 300: agent 0: .5 * 1 + .5 * (20 + 300) / 2 = 80.5
    assert result[0, 0, 0].item() == 80.5
    assert values.asked == ["own", "views"]


def test_with_the_identity_only_the_own_critic_is_asked():
    values = Linear(SLOPES)
    result = Reciprocity([0.5], Shifted(1), torch.eye(3))(values, STATES)
    assert result.flatten().tolist() == [1.5, 25.0, 350.0]  # halfway to slope * (state + 1): 2, 30, 400
    assert values.asked == ["own", "own"]


def test_exact_with_the_identity_is_the_base_algorithm():
    own = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    reciprocity = Reciprocity([0.3, 0.8], Exact(), torch.eye(3))
    torch.testing.assert_close(reciprocity(Linear(torch.ones(2, 3)), own.unsqueeze(-1)), own)


def test_one_agent_alone_learns_from_adjacent_states_of_its_own_critic():
    reciprocity = make_reciprocity(ReciprocityConfig(), [0.5], [0], 1)
    values = Linear(torch.ones(1, 1))
    result = reciprocity(values, torch.tensor([0.0, 8.0]).view(1, 1, 2, 1))
    assert result.flatten().tolist() == [4.0, 4.0]  # each row's only other row is the other: (0 + 8) / 2
    assert values.asked == ["own", "own"]


class Untouchable(AdjacencySpace):
    levels = (1,)

    def __call__(self, states: Tensor, real: Tensor | None = None):
        raise AssertionError("asked although kappa is 0")


def test_kappa_zero_returns_the_very_tensor_and_draws_nothing():
    config = ReciprocityConfig(graph="random", neighbours=1)
    reciprocity = make_reciprocity(config, [0.0, 0.0], [1, 2], 3)
    answer = torch.randn(2, 3, 4)

    class Given(Linear):
        def own(self, states: Tensor) -> Tensor:
            return answer

    before = reciprocity.state_dict()
    global_before = torch.get_rng_state()
    assert reciprocity(Given(torch.ones(2, 3)), torch.randn(2, 3, 4, 5, generator=torch.Generator())) is answer
    after = reciprocity.state_dict()
    assert torch.equal(before["space"]["streams"]["generators"], after["space"]["streams"]["generators"])
    assert torch.equal(before["graph"]["streams"]["generators"], after["graph"]["streams"]["generators"])
    assert torch.equal(global_before, torch.get_rng_state())
    assert Reciprocity([0.0], Untouchable(), complete(3))(Linear(SLOPES), STATES).flatten().tolist() == [1, 20, 300]
    assert reciprocity.gap is None


def test_members_of_kappa_zero_keep_their_bits_beside_others():
    states = torch.randn(3, 4, 20, 6, generator=torch.Generator().manual_seed(1))
    values = Linear(torch.randn(3, 4, generator=torch.Generator().manual_seed(2)))
    result = make_reciprocity(ReciprocityConfig(), [0.0, 0.5, 0.0], [1, 2, 3], 4)(values, states)
    own = values.own(states)
    assert torch.equal(result[0], own[0]) and torch.equal(result[2], own[2])
    assert not torch.isclose(result[1], own[1]).any(-1).all()


def test_a_neighbour_that_diverged_does_not_reach_an_agent_without_neighbours_or_kappa():
    own = torch.ones(2, 2, 3)
    others = torch.full((2, 2, 3), float("nan"))
    isolated = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])
    result = blend(own, others, torch.tensor([[0.5], [0.0]], dtype=torch.float64), isolated)
    assert torch.equal(result.isnan()[..., 0], torch.tensor([[False, True], [False, False]]))


def plain_loop(kappas, weights, own, peers):
    result = torch.empty_like(own)
    for p, kappa in enumerate(kappas):
        for i in range(own.shape[1]):
            heard = sum(weights[i, j] * peers[p, min(i, peers.shape[1] - 1), j] for j in range(own.shape[1]))
            result[p, i] = (1 - kappa) * own[p, i] + kappa * heard
    return result


@settings(max_examples=40)
@given(st.integers(1, 3), st.integers(1, 4), st.booleans(), st.sampled_from([(), (2,), (2, 3)]), st.integers(0, 10**6))
def test_blend_equals_a_plain_loop_for_any_trailing_dimensions(members, n, shared, trailing, seed):
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(members, n, 5, *trailing, generator=generator, dtype=torch.float64)
    peers = torch.randn(members, 1 if shared else n, n, 5, *trailing, generator=generator, dtype=torch.float64)
    kappas = torch.rand(members, generator=generator, dtype=torch.float64)
    weights = torch.rand(n, n, generator=generator, dtype=torch.float64)
    weights /= weights.sum(-1, keepdim=True)
    result = blend(own, mix(weights[None], peers), kappas[:, None], weights[None])
    torch.testing.assert_close(result, plain_loop(kappas, weights, own, peers))


def backup(own: Tensor, kappa: float, gamma: float, weights: Tensor, near: Tensor) -> Tensor:
    """gamma Z*: values ``[N, S]``; ``near [S, K]`` lists the adjacent states of each state."""
    heard = own[:, near].mean(-1)
    return gamma * blend(own[None], mix(weights[None], heard[None, None]), torch.tensor([[kappa]]), weights[None])[0]


@settings(max_examples=80)
@given(st.integers(2, 5), st.integers(1, 4), st.floats(0, 1), st.floats(0, 0.99), st.integers(0, 10**6))
def test_the_backup_is_a_contraction_by_gamma(n, count, kappa, gamma, seed):
    generator = torch.Generator().manual_seed(seed)
    one, two = torch.randn(2, n, 6, generator=generator, dtype=torch.float64) * 100
    near = torch.randint(6, (6, count), generator=generator)
    distance = (backup(one, kappa, gamma, complete(n), near) - backup(two, kappa, gamma, complete(n), near)).abs().max()
    assert distance <= gamma * (one - two).abs().max() + 1e-9  # rounding


def test_equation_12_as_printed_diverges_where_the_normalised_blend_finds_the_fixed_point():
    # reward 1 everywhere, gamma .99, kappa .5: the value is 1 / (1 - .99) = 100. As printed, with two neighbours and
    # one adjacent state, each backup multiplies by .99 * (.5 + .5 * 2) = 1.485; ours by .99.
    near = torch.tensor([[1], [0]])
    neighbours = (complete(3) > 0).double()
    printed = ours = torch.zeros(3, 2, dtype=torch.float64)
    for _ in range(2000):
        heard = printed[:, near].mean(-1)
        printed = 1 + 0.99 * (0.5 * printed + 0.5 * neighbours @ heard)
        ours = 1 + backup(ours, 0.5, 0.99, complete(3), near)
    assert not bool(printed.isfinite().all())
    torch.testing.assert_close(ours, torch.full_like(ours, 100.0))


def test_no_gradient_reaches_any_critic():
    slope = torch.ones(1, 3, requires_grad=True)
    for kappa in (0.0, 0.5):
        result = Reciprocity([kappa], Exact(), complete(3))(Linear(slope), STATES.clone().requires_grad_())
        assert not result.requires_grad


@pytest.mark.parametrize("graph", ["complete", "random", "self"])
@pytest.mark.parametrize("adjacency", ["resample", "mask", "gaussian", "knn", "peer", "exact"])
def test_a_member_alone_gets_the_values_it_gets_in_a_population(graph, adjacency):
    config = ReciprocityConfig(graph=graph, adjacency=adjacency, neighbours=1, rho=(1, 2), count=2)
    states = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(4))
    slope = torch.randn(3, 4, generator=torch.Generator().manual_seed(5))
    together = make_reciprocity(config, [0.0, 0.3, 0.7], [3, 5, 7], 4)
    alone = make_reciprocity(config, [0.3], [5], 4)
    for _ in range(2):
        population = together(Linear(slope), states)[1:2]
        torch.testing.assert_close(population, alone(Linear(slope[1:2]), states[1:2]))


@pytest.mark.parametrize("adjacency", ["resample", "mask", "gaussian", "knn", "peer", "exact"])
def test_values_continue_in_the_same_bits_after_a_restore(adjacency):
    config = ReciprocityConfig(graph="random", adjacency=adjacency, neighbours=2)
    batches = torch.randn(4, 2, 4, 6, 5, generator=torch.Generator().manual_seed(6))
    values = Linear(torch.randn(2, 4, generator=torch.Generator().manual_seed(7)))
    first, restored = (make_reciprocity(config, [0.5, 0.2], seeds, 4) for seeds in ([1, 2], [8, 9]))
    first(values, batches[0])
    restored.load_state_dict(first.state_dict())
    for batch in batches[1:]:
        assert torch.equal(first(values, batch), restored(values, batch))


def test_weights_set_during_the_run_are_saved():
    first = Reciprocity([0.5], Exact(), complete(3))
    first.set_graph(torch.eye(3).roll(1, 1))
    restored = Reciprocity([0.5], Exact(), complete(3))
    restored.load_state_dict(first.state_dict())
    # everybody listens to the next agent: .5 * 1 + .5 * 10, .5 * 20 + .5 * 200, .5 * 300 + .5 * 3
    assert restored(Linear(SLOPES), STATES).flatten().tolist() == [5.5, 110.0, 151.5]


@pytest.mark.parametrize("kind", ["complete", "ring", "self"])
def test_a_named_graph_is_not_saved_and_an_old_state_that_holds_it_is_loaded(kind):
    first, other = (make_reciprocity(ReciprocityConfig(graph=kind), [0.5], [seed], 4) for seed in (1, 2))
    state = first.state_dict()
    assert state["graph"] == {}
    other.load_state_dict({**state, "graph": first.graph.state_dict()})
    assert torch.equal(other.state_dict()["space"]["streams"]["generators"], state["space"]["streams"]["generators"])


def test_saved_weights_for_another_number_of_agents_are_refused():
    three, two = (Reciprocity([0.5], Exact(), complete(n)) for n in (3, 2))
    with pytest.raises(UserError, match="graph: expected saved weights for 2 agents, got some for 3"):
        two.load_state_dict(three.state_dict())


def test_a_function_may_change_the_graph_in_time():
    graphs = iter([torch.zeros(3, 3), complete(3)])
    reciprocity = Reciprocity([0.5], Exact(), lambda: next(graphs))
    assert reciprocity(Linear(SLOPES), STATES).flatten().tolist() == [1.0, 20.0, 300.0]
    assert reciprocity(Linear(SLOPES), STATES).flatten().tolist() == [28.0, 60.5, 158.25]


def test_one_joint_state_for_all_critics():
    # every critic at the joint state 2: 2, 20, 200; agent 0: .5 * 2 + .5 * (20 + 200) / 2 = 56
    result = Reciprocity([0.5], Exact(), complete(3))(Linear(SLOPES), states_of(2.0))
    assert result.flatten().tolist() == [56.0, 60.5, 105.5]


def test_gap_is_the_mean_distance_of_blended_and_own_value():
    reciprocity = Reciprocity([0.5], Exact(), complete(3))
    assert reciprocity.gap is None
    reciprocity(Linear(SLOPES), STATES)
    gap = reciprocity.gap
    assert gap is not None and gap.tolist() == [[27.0, 40.5, 141.75]]  # 28 - 1, 60.5 - 20, 300 - 158.25


def test_twins_are_blended_each_before_the_minimum():
    # twin values of two agents: (0, 4) and (4, 0); half and half each twin is 2, and so is the minimum; the minima,
    # taken before, are 0 and so is their blend
    own = torch.tensor([[0.0, 4.0], [4.0, 0.0]]).view(1, 2, 1, 2)
    result = blend(own, mix(complete(2)[None], own.unsqueeze(1)), torch.tensor([[0.5]]), complete(2)[None])
    assert result.amin(-1).flatten().tolist() == [2.0, 2.0]


def test_kappa_outside_zero_to_one_and_a_graph_of_another_size_are_refused():
    with pytest.raises(UserError, match=r"reciprocity.kappa: expected a number from 0 to 1, got 1.5"):
        make_reciprocity(ReciprocityConfig(), [0.5, 1.5], [0, 1], 2)
    with pytest.raises(UserError, match="weights for 4 agents arrived, but there are 3 critics"):
        Reciprocity([0.5], Exact(), complete(4))(Linear(SLOPES), STATES)


def test_double_precision_is_kept():
    space = Resample(Streams([0], "test"), (1,), 1)
    states = torch.randn(1, 3, 4, 2, dtype=torch.float64)
    assert Reciprocity([0.3], space, complete(3))(Linear(SLOPES.double()), states).dtype == torch.float64
