"""Adjacent states: how far they lie from the true ones, by hand and by property."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_tools import in_threads
from torch._subclasses import FakeTensorMode

from marl.modules.adjacency import Exact, Gaussian, Mask, Nearest, Peer, Resample, level_weights
from marl.modules.reciprocity import ReciprocityConfig, make_space
from marl.streams import Streams
from marl.types import UserError


def streams(*seeds: int) -> Streams:
    return Streams(seeds or (0,), "adjacency")


def distinct(*shape: int) -> torch.Tensor:
    """No number occurs twice, none is zero."""
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)


def test_level_weights_fall_by_e_for_each_further_coordinate():
    # levels 1, 2: e^-1 / (e^-1 + e^-2) = 1 / (1 + e^-1) = 1 / 1.367879 = .731059
    assert level_weights([1, 2]) == pytest.approx([0.731059, 0.268941], abs=1e-6)


def test_states_of_one_level_weigh_the_same():
    assert level_weights([3, 3, 3, 3]) == [0.25] * 4


def test_level_weights_of_a_thousand_coordinates_do_not_underflow():
    assert level_weights([2000, 2000]) == [0.5, 0.5]


def test_exact_gives_the_states_themselves_without_a_copy():
    states = distinct(1, 2, 3, 4)
    assert next(Exact()(states)) is states
    assert not Exact().views and Peer().views


@settings(max_examples=60)
@given(
    st.sampled_from(["resample", "mask", "gaussian"]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(2, 7),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.integers(0, 10**6),
)
def test_at_most_rho_real_coordinates_change_and_padding_never_does(name, members, agents, rows, rho, seed):
    width = 5
    sizes = [1 + (seed + 2 * g) % width for g in range(agents)]
    mask = torch.arange(width) < torch.tensor(sizes).unsqueeze(-1)
    states = torch.randn(members, agents, rows, width, generator=torch.Generator().manual_seed(seed))  # padding too
    before = states.clone()
    config = ReciprocityConfig(adjacency=name, rho=tuple(rho), count=2)
    space = make_space(config, streams(*range(members)), mask)
    near = list(space(states))
    assert torch.equal(states, before)
    assert space.levels == tuple(level for level in rho for _ in range(2)) and len(near) == len(space.levels)
    for level, state in zip(space.levels, near, strict=True):
        changed = state != states
        assert int(changed.sum(-1).max()) <= level
        assert not bool((changed & ~mask.unsqueeze(-2)).any())


def test_resample_takes_the_coordinate_from_another_row_of_the_same_agent_and_member():
    states = distinct(2, 3, 5, 4)
    (near,) = Resample(streams(0, 1), (1,), 1)(states)
    changed = near != states
    assert bool((changed.sum(-1) == 1).all())  # no number occurs twice, so another row means another number
    for p, g, b, d in changed.nonzero().tolist():
        others = [states[p, g, row, d].item() for row in range(5) if row != b]
        assert near[p, g, b, d].item() in others


def test_what_only_fills_up_the_batch_is_no_other_row():
    """Rows 1 and 3 of the first member and row 0 of the second are padding; a member's draws are those it has alone."""
    states, real = distinct(2, 2, 4, 1), torch.tensor([[True, False, True, False], [False, True, True, True]])
    space = Resample(streams(0, 1), (1,), 1)
    near = torch.stack([next(space(states, real.unsqueeze(1))) for _ in range(200)])
    for p, g, b in itertools.product(range(2), range(2), range(4)):
        found = {row for row in range(4) if (near[:, p, g, b] == states[p, g, row]).any()}
        others = set(real[p].nonzero().flatten().tolist()) - {b}
        assert found == others if real[p, b] else found <= others  # of padding itself nothing is asked
    alone = Resample(streams(1), (1,), 1)
    assert all(torch.equal(next(alone(states[1:], real[1:, None])), each[1:]) for each in near)
    knn = next(Nearest(1, "euclidean")(states, real.unsqueeze(1)))
    assert knn[0, 0].flatten().tolist() == [3.0, 1.0, 1.0, 3.0]  # without padding row 1 (2.0) is the nearest to row 0


def test_each_agent_has_rows_of_its_own_that_only_fill_up_and_one_without_others_keeps_its_states():
    """Of agent 0 rows 0 and 2 are real, of agent 1 row 3 alone, of agent 2 none."""
    states = torch.arange(12.0).view(1, 3, 4, 1)
    real = torch.tensor([[[True, False, True, False], [False, False, False, True], [False] * 4]])
    (near,) = Resample(streams(0), (1,), 1)(states, real)
    assert [near[0, 0, 0].item(), near[0, 0, 2].item()] == [2.0, 0.0]  # each other's
    assert near[0, 1, 3].item() == 7.0 and torch.equal(near[0, 2], states[0, 2])
    first, second = Nearest(2, "euclidean")(states, real)
    assert first[0, 0].flatten().tolist() == [2.0, 0.0, 0.0, 2.0]
    assert second[0, 0].flatten().tolist() == [0.0, 2.0, 2.0, 0.0]  # rows 0 and 2 have one other real row: themselves
    assert first[0, 1, 3].item() == 7.0 and torch.equal(first[0, 2], states[0, 2])


def test_resample_reaches_every_coordinate_and_every_other_row_equally_often():
    states = distinct(1, 1, 3, 2)
    space = Resample(streams(5), (1,), 4000)
    values = torch.stack([near[0, 0, 0] for near in space(states)])
    # row 0 is (1, 2); each of its coordinates takes the value of row 1 (3, 4) or row 2 (5, 6):
    # four outcomes, 1000 times each, with standard deviation sqrt(4000 * 1/4 * 3/4) = 27
    for outcome in ([3, 2], [5, 2], [1, 4], [1, 6]):
        assert abs(int((values == torch.tensor(outcome)).all(-1).sum()) - 1000) < 140


def one_at_a_time(states, stream):
    """``resample`` drawn call by call: of (B - 1) D places behind the row's own, each as likely."""
    _, groups, rows, width = states.shape
    ahead = stream.integers((rows - 1) * width, groups, rows)
    source = (ahead + torch.arange(1, rows + 1) * width) % (rows * width)
    return states.scatter(-1, (source % width).unsqueeze(-1), states.flatten(2).gather(-1, source).unsqueeze(-1))


def test_draws_for_many_calls_ahead_are_those_of_one_call_at_a_time():
    """150 calls, more than are drawn ahead at once, then others of another shape and back, with padding between."""
    space, stream = Resample(streams(0, 1), (1,), 1), streams(0, 1)
    few, many = distinct(2, 3, 5, 4), distinct(2, 1, 7, 2)
    for states in [few] * 150 + [many] * 3 + [few] + [many, few] * 3:
        assert torch.equal(next(space(states)), one_at_a_time(states, stream))
    real = torch.ones(2, 1, 5, dtype=torch.bool)
    expected = Resample(stream, (1,), 1)
    for mask in (real, None, real):
        assert torch.equal(next(space(few, mask)), next(expected(few, mask)))


def test_to_be_saved_in_between_changes_no_draw_and_a_saved_one_goes_on():
    """The usual bug: numbers drawn ahead are lost in a checkpoint, or a checkpoint throws them away."""
    space, stream, states = Resample(streams(3), (1,), 1), streams(3), distinct(1, 2, 6, 3)
    for call in range(40):
        if call % 7 == 5:
            saved = space.state_dict()
            other = Resample(streams(4), (1,), 1)
            next(other(states))
            other.load_state_dict(saved)
            assert torch.equal(saved["streams"]["generators"], stream.state_dict()["generators"])
            ahead = copy.deepcopy(stream)
            for _ in range(5):
                assert torch.equal(next(other(states)), one_at_a_time(states, ahead))
        assert torch.equal(next(space(states)), one_at_a_time(states, stream))


def test_nothing_is_drawn_ahead_from_streams_that_others_share():
    shared, alone, states = streams(0), streams(0), distinct(1, 2, 6, 3)
    shared.shared = True
    space = Resample(shared, (1,), 1)
    for _ in range(5):
        assert torch.equal(next(space(states)), one_at_a_time(states, alone))
        assert torch.equal(shared.uniform(3), alone.uniform(3))


@pytest.mark.parametrize(("rho", "count"), [((1,), 1), ((1,), 2), ((1, 2), 1), ((2,), 1)])
@pytest.mark.parametrize("rows", [6, 1400])  # 4200 numbers are more than are taken one by one
def test_one_critics_states_have_the_same_around_them_as_those_of_a_population_of_one(rho, count, rows):
    states = distinct(1, 1, rows, 3)
    one, several = (Resample(streams(0), rho, count) for _ in range(2))
    for _ in range(5):
        near = one.around(states[0, 0])
        assert [list(each.shape) for each in near] == [[rows, 3]] * len(rho) * count
        assert all(map(torch.equal, near, (each[0, 0] for each in several(states))))


def test_draws_ahead_have_a_bound():
    space = Resample(streams(0), (1,), 1)
    for _ in range(8):
        next(space(distinct(1, 2, 4096, 1)))  # 8192 numbers a call: those of 2 calls are 2 ** 14
        assert space.ahead.pool.calls <= 2


def test_a_draw_that_fails_leaves_the_next_as_it_would_be():
    space, stream, states = Resample(streams(0), (1,), 1), streams(0), distinct(1, 2, 6, 3)
    for width in (3, 0, 3, 3, 0, 3):
        if width:
            assert torch.equal(next(space(states)), one_at_a_time(states, stream))
        else:
            with pytest.raises(RuntimeError):
                next(space(states[..., :0]))
    assert torch.equal(space.state_dict()["streams"]["generators"], stream.state_dict()["generators"])


def test_draws_made_in_inference_mode_or_with_fake_tensors_are_not_kept():
    space, stream, states = Resample(streams(0), (1,), 1), streams(0), distinct(1, 2, 6, 3)
    for _ in range(3):
        with torch.inference_mode():
            next(space(states))
            one_at_a_time(states, stream)
        expected = one_at_a_time(states, stream)
        near = next(space(states.clone().requires_grad_()))
        near.sum().backward()
        assert torch.equal(near.detach(), expected)
    with FakeTensorMode(allow_non_fake_inputs=True):
        next(space(torch.ones(1, 2, 6, 3)))
    assert type(next(space(states))) is torch.Tensor


def test_threads_that_draw_from_one_space_fail_in_none():
    """Numbers are drawn by whoever comes first; none is given out twice, and no call finds an empty pool."""
    space, both = Resample(streams(0), (1,), 1), [distinct(1, 1, 4, 2), distinct(1, 1, 6, 2)]
    faults = []

    def work():
        try:
            for turn in range(600):
                next(space(both[turn % 2]))
        except Exception as fault:
            faults.append(fault)

    in_threads(work, 4)
    assert not faults


def test_masked_draws_reach_every_real_coordinate_also_when_they_do_not_come_first():
    mask = torch.tensor([[False, True, False, True]])
    hit = sum((near == 0).long() for near in Mask(streams(2), (1,), 400, mask)(distinct(1, 1, 1, 4)))
    # two real coordinates, 200 times each, with standard deviation 10
    assert hit[0, 0, 0, 0] == hit[0, 0, 0, 2] == 0 and abs(int(hit[0, 0, 0, 1]) - 200) < 50


def test_rho_coordinates_are_different_ones_and_more_than_there_are_means_all():
    states = distinct(1, 2, 6, 4)
    three, all_of_them = Mask(streams(), (3, 99), 1)(states)
    assert bool(((three == 0).sum(-1) == 3).all())
    assert not bool(all_of_them.any())


def test_resample_of_all_coordinates_is_another_whole_row():
    states = distinct(1, 1, 4, 3)
    (near,) = Resample(streams(), (3,), 1)(states)
    rows = states[0, 0].tolist()
    for b, row in enumerate(near[0, 0].tolist()):
        assert row in rows and rows.index(row) != b


def test_gaussian_noise_has_sigma_times_the_running_standard_deviation():
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 10.0, 0.0])
    states = torch.randn(1, 1, 20000, 3, generator=generator) * scale + 5
    (near,) = Gaussian(streams(), (3,), 1, 0.05)(states)
    noise = (near - states)[0, 0]
    # .05 * (1, 10, 0); the standard error of a standard deviation over 20000 rows is 1 / sqrt(40000) = .5 %
    torch.testing.assert_close(noise.std(0), torch.tensor([0.05, 0.5, 0.0]), rtol=0.03, atol=1e-6)
    assert abs(noise[:, 1].mean().item()) < 0.02


def test_a_row_that_only_fills_up_the_batch_is_no_part_of_gaussians_deviation():
    space = Gaussian(streams(), (1,), 1, 0.05)
    list(space(torch.tensor([[[[1.0], [3.0], [500.0]]]]), torch.tensor([[[True, True, False]]])))
    assert space.moments.std().tolist() == [[[1.0]]]  # of 1 and 3


def test_gaussian_changes_rho_coordinates_only():
    states = torch.randn(1, 1, 50, 6, generator=torch.Generator().manual_seed(1))
    (near,) = Gaussian(streams(), (2,), 1, 0.05)(states)
    assert bool(((near != states).sum(-1) == 2).all())


def test_knn_finds_the_nearest_other_row_in_both_metrics():
    states = torch.tensor([[[[1.0, 0.0], [2.0, 1.0], [9.0, 0.5]]]])
    # from (1, 0): (2, 1) is sqrt(2) away and 45 degrees off; (9, .5) is 8.02 away but 3.2 degrees off
    (euclidean,) = Nearest(1, "euclidean")(states)
    (cosine,) = Nearest(1, "cosine")(states)
    assert euclidean[0, 0, 0].tolist() == [2.0, 1.0]
    assert cosine[0, 0, 0].tolist() == [9.0, 0.5]


def test_knn_gives_the_nearest_rows_in_order_within_each_agent_alone():
    line = torch.tensor([0.0, 1.0, 3.0, 7.0]).view(1, 1, 4, 1)
    states = torch.cat([line, line.flip(2) * 10], dim=1)
    first, second = Nearest(2, "euclidean")(states)
    assert first[0, 0, :, 0].tolist() == [1, 0, 1, 3]
    assert second[0, 0, :, 0].tolist() == [3, 3, 0, 1]  # 1: 0 at distance 1, then 3; 3: 1, then 0; 7: 3, then 1
    assert first[0, 1, :, 0].tolist() == [30, 10, 0, 10]
    assert Nearest(2, "euclidean").levels == (1, 1)


def test_knn_finds_the_nearest_of_many_rows_far_from_the_origin():
    """From 26 rows on torch takes distances from squares: of 1000 and .1 in float32 nothing of the latter is left."""
    wide = torch.tensor([1000.0, 0.0, 0.0])
    states = wide + 0.1 * torch.randn(1, 1, 256, 3, generator=torch.Generator().manual_seed(0))
    (near,), (exact,) = (Nearest(1, "euclidean")(rows) for rows in (states, states.double()))
    distance = (states[0, 0].double().unsqueeze(1) - states[0, 0].double()).norm(dim=-1).fill_diagonal_(torch.inf)
    assert torch.equal(exact[0, 0], states[0, 0].double()[distance.argmin(-1)])
    assert torch.equal(near, exact.float())


def test_a_row_that_is_no_number_spoils_nobody_elses_neighbours():
    line = torch.tensor([0.0, 1.0, 5.0, 6.0, torch.inf]).view(1, 1, 5, 1)
    (near,) = Nearest(1, "euclidean")(line)
    assert near[0, 0, :4, 0].tolist() == [1.0, 0.0, 6.0, 5.0]


def test_knn_finds_the_same_rows_under_autocast():
    states = torch.tensor([1.0, 2.0, 3.0]) + torch.randn(1, 1, 64, 3, generator=torch.Generator().manual_seed(0)) * 0.05
    for metric in ("euclidean", "cosine"):
        (plain,) = Nearest(1, metric)(states)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (near,) = Nearest(1, metric)(states)
        assert torch.equal(near, plain)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_knn_finds_the_nearest_of_states_in_half_precision(metric, kind):
    states = torch.randn(1, 2, 64, 3, generator=torch.Generator().manual_seed(0)).to(kind)
    (near,), (exact,) = (Nearest(1, metric)(rows) for rows in (states, states.float()))
    assert near.dtype == kind and torch.equal(near.float(), exact)


def test_an_empty_batch_leaves_the_moments_of_gaussian_as_they_were():
    space, states = Gaussian(streams(), (1,), 1, 0.05), torch.arange(8.0).view(1, 1, 4, 2)
    list(space(states))
    before = space.moments.std()
    (near,) = space(states[:, :, :0])
    assert near.shape == (1, 1, 0, 2) and torch.equal(space.moments.std(), before)


@pytest.mark.parametrize("name", ["gaussian", "knn"])
def test_whole_numbers_are_refused_where_distances_are_needed(name):
    with pytest.raises(UserError, match=f"adjacency {name} needs states in floating point, got int64; resample"):
        list(make_space(ReciprocityConfig(adjacency=name), streams())(torch.ones(1, 1, 4, 2, dtype=torch.int64)))


def test_gaussian_refuses_states_of_another_size_than_before():
    space = Gaussian(streams(), (1,), 1, 0.05)
    list(space(torch.ones(1, 1, 4, 2)))
    with pytest.raises(UserError, match="gaussian has seen states of 2 numbers, got some of 3"):
        list(space(torch.ones(1, 1, 4, 3)))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_knn_looks_away_from_padding_and_leaves_it_as_it_is(metric):
    # by the two real coordinates (1, 0) is nearest to (2, 1); with the junk in the third, to (9, 9)
    states = torch.tensor([[[[1.0, 0.0, 70.0], [2.0, 1.0, -70.0], [9.0, 9.0, 70.0]]]])
    masked = ReciprocityConfig(adjacency="knn", metric=metric)
    (near,) = make_space(masked, streams(), torch.tensor([[True, True, False]]))(states)
    assert near[0, 0, 0].tolist() == [2.0, 1.0, 70.0]
    (unaware,) = Nearest(1, metric)(states)
    assert unaware[0, 0, 0].tolist() == [9.0, 9.0, 70.0]


@pytest.mark.parametrize(("name", "rows"), [("resample", 1), ("knn", 2)])
def test_a_batch_too_small_for_the_adjacency_is_refused(name, rows):
    space = make_space(ReciprocityConfig(adjacency=name, count=2), streams())
    needed = rows + 1
    with pytest.raises(UserError, match=f"needs a batch of {needed} states or more, got {rows}"):
        list(space(torch.ones(1, 1, rows, 3)))


@pytest.mark.parametrize("name", ["resample", "mask", "gaussian"])
def test_draws_and_moments_continue_in_the_same_bits_after_a_restore(name):
    config = ReciprocityConfig(adjacency=name, rho=(1, 2))
    batches = torch.randn(4, 2, 3, 6, 5, generator=torch.Generator().manual_seed(7))
    space, restored = make_space(config, streams(1, 2)), make_space(config, streams(8, 9))
    list(space(batches[0]))
    restored.load_state_dict(space.state_dict())
    for batch in batches[1:]:
        assert torch.equal(torch.stack([*space(batch)]), torch.stack([*restored(batch)]))


@pytest.mark.parametrize("name", ["resample", "mask", "gaussian", "knn"])
def test_a_member_has_the_same_adjacent_states_alone_as_in_a_population(name):
    config = ReciprocityConfig(adjacency=name, rho=(1, 2), count=2)
    states = torch.randn(3, 2, 6, 5, generator=torch.Generator().manual_seed(4))
    together, alone = make_space(config, streams(3, 5, 7)), make_space(config, streams(5))
    for _ in range(2):
        for all_members, member in zip(together(states), alone(states[1:2]), strict=True):
            torch.testing.assert_close(all_members[1:2], member, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": ()}, "reciprocity.rho: expected levels of 1 or more, got none"),
        ({"rho": (2, 0)}, "reciprocity.rho: expected levels of 1 or more, got 2,0"),
        ({"count": 0}, "reciprocity.count: expected a whole number of 1 or more, got 0"),
        ({"count": 1.5}, "reciprocity.count: expected a whole number of 1 or more, got 1.5"),
        ({"sigma": float("nan")}, "reciprocity.sigma: expected a finite number of 0 or more, got nan"),
        ({"sigma": -1.0}, "reciprocity.sigma: expected a finite number of 0 or more, got -1.0"),
        ({"adjacency": "resampel"}, "did you mean 'resample'"),
        ({"adjacency": "knn", "metric": "cosin"}, "did you mean 'cosine'"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message):
        make_space(ReciprocityConfig(**settings), streams())
