import subprocess
import sys

import numpy as np
import pytest

from marl.classic.subsample.demand import demand_response
from marl.classic.subsample.evaluate import policy_values
from marl.classic.subsample.execute import Crowd, execute
from marl.classic.subsample.histogram_dqn import HistogramDQN, _draw_multisets, _histograms
from marl.classic.subsample.multisets import MultisetIndex
from marl.classic.subsample.system import LocalGlobalSystem
from marl.classic.subsample.table import SubsampleQ
from marl.types import UserError


def random_system(seed, gamma=0.8, follows=False):
    rng = np.random.default_rng(seed)
    kernels = rng.dirichlet(np.ones(4) * 0.3, (3, 2, 4) if follows else (3, 4))
    transition = rng.dirichlet(np.ones(3) * 0.3, (3, 2))
    return LocalGlobalSystem(transition, kernels, rng.normal(size=(3, 2)), rng.normal(size=(3, 4)), gamma)


def lost(dqn, table):
    """V* - V^greedy of the surrogate, exactly, ``[cells]``."""
    cells = table.cells
    cell_lists = [(s, index.unrank(np.arange(index.size))) for s, index in enumerate(cells.indices)]
    actions = np.concatenate([dqn.act(np.full(len(elements), s), elements) for s, elements in cell_lists])
    chances = np.eye(table.system.actions)[:, actions]
    return table.values.max(0) - policy_values(table.system, cells, chances)


@pytest.mark.parametrize("follows", [False, True])
def test_the_greedy_policy_is_worth_what_the_exact_table_is(follows):
    system = random_system(1, follows=follows)
    table = SubsampleQ(system, 3, merge=False).solve(1e-7)
    dqn = HistogramDQN(system, 3)
    before = lost(dqn, table)
    after = lost(dqn.fit(800), table)
    assert before.max() > 0.5
    assert after.max() < 0.02  # the tolerance of this test: 4 % of what the untrained network loses, or less
    cells = table.cells
    values = np.concatenate(
        [dqn.values(np.full(i.size, s), i.unrank(np.arange(i.size))) for s, i in enumerate(cells.indices)]
    )
    assert np.abs(values.max(1) - table.values.max(0)).max() < 0.25  # of values that span several units


def test_in_demand_response_little_is_lost_to_the_table():
    # one type of users, k = 2: 1625 cells. A uniformly random regulator loses 5.2 of about 31 on average
    table = SubsampleQ(demand_response(types=(1,)), 2, merge=False).solve()
    assert lost(HistogramDQN(table.system, 2).fit(2000), table).mean() < 0.4


def test_it_plays_like_a_table_beyond_the_cap():
    system, k = demand_response(), 22
    with pytest.raises(UserError, match="k = 22 needs"):
        SubsampleQ(system, k)
    dqn = HistogramDQN(system, k, batch=64).fit(300)
    learnt, still = (execute(Crowd(system, 50, 30, 0), policy, 60).discounted.mean() for policy in (dqn, Still(k)))
    assert learnt > still + 1


class Still:
    def __init__(self, k):
        self.k = k

    def act(self, global_state, local_states):
        return np.ones(len(global_state), np.int64)  # the target stays


def test_it_goes_on_bit_for_bit_where_it_was_saved():
    system = random_system(0)
    whole = HistogramDQN(system, 3, hidden=16, batch=32, seed=4).fit(25)
    half = HistogramDQN(system, 3, hidden=16, batch=32, seed=4).fit(10)
    other = HistogramDQN(system, 3, hidden=16, batch=32, seed=5)
    other.load_state_dict(half.state_dict())
    other.fit(15)
    first, second = whole.state_dict(), other.state_dict()
    assert (first["steps"], first["level"], first["loss"]) == (second["steps"], second["level"], second["loss"])
    for part in ("weights", "target", "first", "second"):
        assert all((first[part][i] == second[part][i]).all() for i in first[part])
    fresh = HistogramDQN(system, 3, hidden=16, batch=32, seed=5)
    assert (fresh.state_dict()["weights"]["0"] != first["weights"]["0"]).any()


def test_a_network_without_steps_is_saved_too():
    system = random_system(0)
    first, second = HistogramDQN(system, 2, seed=1), HistogramDQN(system, 2, seed=2)
    second.load_state_dict(first.state_dict())
    assert (first.fit(3).state_dict()["weights"]["0"] == second.fit(3).state_dict()["weights"]["0"]).all()


def test_cells_are_drawn_uniformly():
    index = MultisetIndex(3, 2)
    drawn = np.empty((60_000, 2), np.int64)
    _draw_multisets(drawn, 3, np.random.default_rng(0))
    share = np.bincount(index.rank(drawn), minlength=6) / len(drawn)
    np.testing.assert_allclose(share, 1 / 6, atol=0.008)  # five standard errors
    # independent states would give the three pairs of equal ones 1/9 each


def test_a_histogram_by_hand():
    np.testing.assert_allclose(_histograms(np.array([[0, 2, 2, 2], [1, 1, 0, 0]]), 3), [[0.25, 0, 0.75], [0.5, 0.5, 0]])


def test_importing_it_does_not_import_torch():
    code = "import sys, marl.classic.subsample.histogram_dqn; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda s: HistogramDQN(s, 0), "k = 0, hidden = 64, batch = 256: expected 1 or more of each"),
        (lambda s: HistogramDQN(s, 2, follow=0.0), "follow = 0.0: expected a number above 0, 1 at most"),
        (lambda s: HistogramDQN(s, 2).act(np.array([0]), np.array([[1]])), "local states [1, 1]: expected [1, 2]"),
        (lambda s: HistogramDQN(s, 2).act(np.array([0]), np.array([[1, 4]])), "local state 4: expected 0 to 3"),
    ],
)
def test_bad_input_is_one_clear_line(act, message):
    with pytest.raises(UserError) as error:
        act(random_system(0))
    assert str(error.value) == message
