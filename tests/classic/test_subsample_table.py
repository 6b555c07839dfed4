"""SUB-SAMPLE-Q's tables against the full one over ordered agents, and its three backups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from subsample_tools import at_ordered_states, random_system

from marl.classic.subsample.cells import Cells
from marl.classic.subsample.demand import demand_response
from marl.classic.subsample.draws import alias_rows
from marl.classic.subsample.joint import joint_q
from marl.classic.subsample.multisets import MultisetIndex
from marl.classic.subsample.system import LocalGlobalSystem
from marl.classic.subsample.table import SubsampleQ
from marl.types import UserError


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3]), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=15)
def test_the_multiset_table_is_the_ordered_table_entry_by_entry(seed, k, follows_action, twins, merge):
    """With k = n this is value iteration on the whole joint chain."""
    system = random_system(seed, follows_action=follows_action, twins=twins)
    table = SubsampleQ(system, k, merge=merge).solve(1e-10)
    assert table.error <= 1e-10
    found = at_ordered_states(table.q(), MultisetIndex(system.local_states, k), k)
    np.testing.assert_allclose(found, joint_q(system, k, 1e-10), atol=1e-8)


def test_demand_response_of_two_users_is_solved_as_the_joint_chain_is():
    system = demand_response()
    found = at_ordered_states(SubsampleQ(system, 2).solve(1e-9).q(), MultisetIndex(50, 2), 2)
    np.testing.assert_allclose(found, joint_q(system, 2, 1e-9), atol=1e-7)


def test_states_that_move_alike_share_cells_and_lose_nothing():
    """Three states, two of them twins: 2 classes, C(2 + 3, 4) = 5 multisets of 4 instead of C(3 + 3, 4) = 15."""
    system = random_system(3, twins=True)
    merged, apart = SubsampleQ(system, 4), SubsampleQ(system, 4, merge=False)
    assert (merged.cells.size, apart.cells.size) == (2 * 5, 2 * 15)
    np.testing.assert_allclose(merged.solve(1e-10).q(), apart.solve(1e-10).q(), atol=1e-8)
    assert np.ptp(merged.q()[0, 0, [13, 14]]) > 0  # their rewards differ still


@pytest.mark.parametrize("backup", ["exact", "frozen"])
def test_the_error_that_a_table_reports_holds(backup):
    system = random_system(4, gamma=0.9)
    fixed = SubsampleQ(system, 2, backup, m=5).solve(1e-11)
    for tolerance in (1.0, 0.1, 1e-3):
        table = SubsampleQ(system, 2, backup, m=5).solve(tolerance)
        assert 0 < np.abs(table.values - fixed.values).max() <= table.error + 1e-9 <= tolerance + 1e-9


def test_lifted_from_fewer_agents_a_table_needs_fewer_sweeps_to_the_same_end():
    system = demand_response()
    lifted, plain = SubsampleQ(system, 3).solve(1e-3), SubsampleQ(system, 3).solve(1e-3, lifted=False)
    assert lifted.sweeps < plain.sweeps
    np.testing.assert_allclose(lifted.values, plain.values, atol=2e-3)


def python_samples(system, key, cell, sample, count):
    """The uniform numbers of a sample, hashed with Python's integers."""

    def mix(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    def child(key, number):
        return mix((key + 0x9E3779B97F4A7C15 * (number + 1)) % 2**64)

    own = child(child(key, cell), sample)
    return [(child(own, i) >> 11) / 2**53 for i in range(count)]


def python_draw(row, uniform):
    rows = alias_rows(row[None])
    whole = int(uniform * len(rows.keep))
    kept = uniform * len(rows.keep) - whole < rows.keep[whole]
    return int(rows.columns[whole] if kept else rows.others[whole])


@pytest.mark.parametrize("follows_action", [False, True])
def test_frozen_samples_are_those_of_a_dictionary_keyed_sweep(follows_action):
    """Equation (5) cell by cell over the same hashed numbers, two sweeps from Q = 0."""
    system, k, m = random_system(5, follows_action=follows_action), 2, 4
    table = SubsampleQ(system, k, "frozen", m=m, seed=7, merge=False).fit(2)
    key = int(np.random.SeedSequence(7).generate_state(1, np.uint64)[0])
    key = int(np.random.SeedSequence([key, 0]).generate_state(1, np.uint64)[0])
    index = MultisetIndex(system.local_states, k)
    q = np.zeros((system.global_states, system.actions, index.size))
    for _ in range(2):
        value, q = q.max(1), np.zeros_like(q)
        for s in range(system.global_states):
            for number, old in enumerate(index.unrank(np.arange(index.size))):
                for a in range(system.actions):
                    kernel = system.kernels(s)[a if follows_action else 0]
                    total = 0.0
                    for sample in range(m):
                        uniforms = python_samples(system, key, s * index.size + number, sample, k + 1)
                        new = [python_draw(kernel[x], u) for x, u in zip(old, uniforms, strict=False)]
                        total += value[python_draw(system.global_transition[s, a], uniforms[k]), index.rank(new)]
                    reward = system.global_reward[s, a] + system.local_reward[s, old].mean()
                    q[s, a, number] = reward + system.gamma * total / m
    np.testing.assert_allclose(table.q(), q, atol=1e-12)


def test_a_frozen_table_is_its_own_backup_and_another_seed_makes_another():
    system = random_system(6)
    table = SubsampleQ(system, 3, "frozen", m=5, seed=1).solve(1e-10)
    before = table.values.copy()
    np.testing.assert_allclose(table.fit(1).values, before, atol=1e-9)
    other = SubsampleQ(system, 3, "frozen", m=5, seed=2).solve(1e-10)
    assert np.abs(other.values - before).max() > 0.01


def test_more_samples_come_nearer_to_the_exact_table():
    """The noise falls as 1 / sqrt(m): 100 times the samples, about a tenth of it."""
    system = random_system(7)
    exact = SubsampleQ(system, 2).solve(1e-8).values
    few, many = (np.abs(SubsampleQ(system, 2, "frozen", m=m).solve(1e-6).values - exact).max() for m in (20, 2000))
    assert many < few / 4


def test_resampling_takes_steps_of_one_over_one_plus_t_times_one_minus_gamma():
    """Nothing moves, r = 3, gamma .5. Q_0 = 0, eta_1 = 1 / 1.5: Q_1 = 2. eta_2 = 1 / 2: Q_2 = 1 + (3 + 1) / 2 = 3."""
    system = LocalGlobalSystem(np.ones((1, 1, 1)), np.ones((1, 1, 1)), np.ones((1, 1)), 2 * np.ones((1, 1)), 0.5)
    table = SubsampleQ(system, 2, "resample", m=3)
    assert table.fit(1).q().item() == pytest.approx(2)
    assert table.fit(1).q().item() == pytest.approx(3)


def test_resampling_draws_anew_and_comes_nearer_to_the_exact_table():
    """Sample noise averages out: below that of the same m frozen."""
    system = random_system(8)
    exact = SubsampleQ(system, 2).solve(1e-8).q()
    noise = {b: np.abs(SubsampleQ(system, 2, b, m=5).fit(1500).q() - exact).max() for b in ("frozen", "resample")}
    assert noise["resample"] < noise["frozen"] / 2
    with pytest.raises(UserError, match="has no fixed point: use fit"):
        SubsampleQ(system, 2, "resample").solve()


@pytest.mark.parametrize("backup", ["exact", "frozen", "resample"])
def test_a_table_saved_in_the_middle_goes_on_bit_for_bit_and_threads_change_nothing(backup):
    system = random_system(9, global_states=3)
    whole = SubsampleQ(system, 3, backup, m=3).fit(6)
    first = SubsampleQ(system, 3, backup, m=3, threads=2).fit(4)
    second = SubsampleQ(system, 3, backup, m=3, threads=2)
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(second.fit(2).values, whole.values)
    assert (second.sweeps, second.error) == (whole.sweeps, whole.error)


def test_acting_is_the_argmax_of_the_table_and_of_equal_actions_the_lowest():
    system = random_system(10, global_states=3, actions=3)
    table = SubsampleQ(system, 2).solve()
    rng = np.random.default_rng(0)
    s, local = rng.integers(3, size=50), rng.integers(3, size=(50, 2))
    expected = table.q()[s, :, MultisetIndex(3, 2).rank(local)].argmax(1)
    np.testing.assert_array_equal(table.act(s, local), expected)
    assert (SubsampleQ(system, 2).act(s, local) == 0).all()


def test_a_single_precision_table_is_the_double_one_rounded():
    table = SubsampleQ(random_system(11), 2).solve()
    assert table.q(np.float32).dtype == np.float32
    np.testing.assert_array_equal(table.q(np.float32), table.q().astype(np.float32))


def test_a_table_beyond_the_caps_says_which_k_fits():
    """States 3 + 2 - 1 choose 2: 6 multisets x 2 global states = 12 cells at k = 2, 20 at k = 3."""
    system = random_system(0)
    with pytest.raises(UserError, match=r"k = 3 needs 20 cells .* allowed are 12 .* the largest k that fits is 2$"):
        SubsampleQ(system, 3, max_cells=12)
    with pytest.raises(UserError, match="the largest k that fits is 2"):
        SubsampleQ(system, 3, max_bytes=8 * (2 + 3) * 12)
    with pytest.raises(UserError, match="no k fits"):
        SubsampleQ(system, 3, max_cells=1)
    with pytest.raises(UserError, match=r"k = 22 needs .* the largest k that fits is 7"):
        Cells(demand_response(), 22)
    with pytest.raises(UserError, match="the whole table takes"):
        SubsampleQ(demand_response(), 4, max_bytes=8 * 2**20).q()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"gamma": 1.0}, "gamma: expected a number from 0 to less than 1, got 1.0"),
        ({"local_transition": np.full((1, 2, 2), 0.6)}, "local_transition.*sum to 1, got 1.2"),
        ({"global_transition": -np.ones((1, 1, 1))}, "global_transition.*expected a probability"),
        ({"local_transition": np.ones((1, 3, 3)) / 3}, r"local_transition: expected \[1, 2, 2\] or \[1, 1, 2, 2\]"),
        ({"global_reward": np.full((1, 1), np.nan)}, "global_reward: expected finite numbers"),
        ({"local_reward": np.ones(2)}, r"expected \[G, A\] and \[G, L\]"),
    ],
)
def test_a_system_that_is_none_is_refused_in_one_line(change, message):
    parts = {
        "global_transition": np.ones((1, 1, 1)),
        "local_transition": np.eye(2)[None],
        "global_reward": np.zeros((1, 1)),
        "local_reward": np.zeros((1, 2)),
        "gamma": 0.9,
    }
    LocalGlobalSystem(**parts)
    with pytest.raises(UserError, match=message) as caught:
        LocalGlobalSystem(**{**parts, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"k": 0}, "k = 0: expected 1 or more"),
        ({"k": 1, "backup": "exakt"}, "backup 'exakt': choose from exact, frozen, resample"),
        ({"k": 1, "m": 0}, "m = 0"),
    ],
)
def test_arguments_without_sense_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        SubsampleQ(random_system(0), **arguments)
