"""Members: every combination once, named by what sets it apart, each with its own settings."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from marl.algos.td3 import TD3Config
from marl.config import check_ranges
from marl.loop import LoopConfig
from marl.population import Member, configs, members, per_member
from marl.types import UserError


def test_members_are_the_sweep_times_the_seeds_in_the_order_given():
    found = members(TD3Config(), [4, 1], {"reciprocity.kappa": [0.0, 0.5]})
    assert found == [
        Member("kappa=0.0,seed=4", 4, {"reciprocity.kappa": 0.0}),
        Member("kappa=0.0,seed=1", 1, {"reciprocity.kappa": 0.0}),
        Member("kappa=0.5,seed=4", 4, {"reciprocity.kappa": 0.5}),
        Member("kappa=0.5,seed=1", 1, {"reciprocity.kappa": 0.5}),
    ]
    assert members(TD3Config(), [7], {}) == [Member("seed=7", 7, {})]


def test_numbers_of_numpy_and_whole_ones_for_fractions_are_what_the_setting_holds():
    found = members(TD3Config(), np.arange(2), {"reciprocity.kappa": np.linspace(0, 1, 2), "gamma": [1]})
    assert [m.name for m in found][:2] == ["kappa=0.0,gamma=1.0,seed=0", "kappa=0.0,gamma=1.0,seed=1"]
    assert json.loads(json.dumps(found)) == [list(m) for m in found]


values = st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True).map(lambda v: [x / 10 for x in v])
sweeps = st.dictionaries(st.sampled_from(["gamma", "tau", "noise", "reciprocity.kappa"]), values, max_size=3)


@given(st.lists(st.integers(), min_size=1, max_size=3, unique=True), sweeps)
def test_each_member_has_its_own_values_and_shares_the_rest(seeds, sweep):
    base = TD3Config(actor_lr=0.125)
    population = members(base, seeds, sweep)
    assert len({m.name for m in population}) == len(population)
    expected = [(*combination, seed) for combination in itertools.product(*sweep.values()) for seed in seeds]
    assert [(*m.sweep.values(), m.seed) for m in population] == expected
    own = configs(base, population)
    assert [c.actor_lr for c in own] == [0.125] * len(population)
    for name in sweep:
        tensor = per_member(own, name)
        assert tensor.shape == (len(population), 1, 1) and tensor.dtype == torch.float32
        assert tensor.flatten().tolist() == pytest.approx([m.sweep[name] for m in population])


@pytest.mark.parametrize(
    "seeds, sweep, answer",
    [
        ([], {}, "seeds: expected one or more different values, got []"),
        ([1, 1], {}, "seeds: expected one or more different values, got [1, 1]"),
        ("01", {}, "seeds: expected a list of values, got '01'"),
        (3, {}, "seeds: expected a list of values, got 3"),
        ([0.5], {}, "seeds: expected int, got 0.5"),
        ([True, 0], {}, "seeds: expected int, got True"),
        ([1], {"gamma": 0.5}, "gamma: expected a list of values, got 0.5"),
        ([1], {"gamma": ["x"]}, "gamma: expected float, got 'x'"),
        ([1], ["gamma"], "sweep: expected a dictionary of values by setting, got a list"),
        ([1], {"gamma": []}, "gamma: expected one or more different values, got []"),
        ([1], {"hidden": [(3,)]}, "members cannot differ in 'hidden'"),
        ([1], {"reciprocity.kapa": [0.1]}, "did you mean 'reciprocity.kappa'?"),
    ],
)
def test_what_cannot_be_a_population_is_refused(seeds, sweep, answer):
    with pytest.raises(UserError) as caught:
        members(TD3Config(), seeds, sweep)
    assert answer in str(caught.value)


def test_the_defaults_are_in_range_and_every_limit_is_enforced():
    for good in (LoopConfig(), TD3Config(), TD3Config(max_grad_norm=1)):
        check_ranges(good)
    for bad in (LoopConfig(copies=0), TD3Config(tau=1.5), TD3Config(hidden=(8, 0)), TD3Config(noise=float("nan"))):
        with pytest.raises(UserError, match="expected"):
            check_ranges(bad)
