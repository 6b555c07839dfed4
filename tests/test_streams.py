"""Random streams: one for each member and purpose, equal everywhere, restored to the bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from marl.streams import Streams, derive

seeds = st.lists(st.integers(0, 2**40), min_size=1, max_size=4, unique=True)
DRAWS = {
    "uniform": lambda s: s.uniform(3),
    "normal": lambda s: s.normal(2, 2),
    "double": lambda s: s.normal(2, dtype=torch.float64),
    "integers": lambda s: s.integers(100, 5),
}


def test_a_derived_seed_is_the_same_on_every_machine():
    # printf 0/init | sha256sum begins with these 16 digits; a seed is that number halved. Saved runs depend on it.
    assert derive(0, "init") == 0x2A29A3E290B9715C // 2
    assert derive(0, "a", 1) == derive(0, "a", "1") != derive(0, "a1")


@given(seeds, st.sampled_from(list(DRAWS)))
def test_a_member_draws_what_it_would_draw_alone(seeds, kind):
    together = Streams(seeds, "explore")
    rows = torch.stack([DRAWS[kind](together) for _ in range(3)])
    for p, seed in enumerate(seeds):
        alone = Streams([seed], "explore")
        assert torch.equal(rows[:, p], torch.stack([DRAWS[kind](alone)[0] for _ in range(3)]))


def test_other_names_and_other_seeds_give_other_numbers():
    drawn = [Streams([seed], name).uniform(4)[0] for seed in (0, 1) for name in ("explore", "replay")]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    # Four streams of 10 000 uniform numbers: correlations of independent ones are below 4 / sqrt(10 000) = 0.04.
    many = torch.stack([Streams([seed], name).uniform(10_000)[0] for seed in (0, 1) for name in ("a", "b")])
    assert (torch.corrcoef(many) - torch.eye(4)).abs().max() < 0.04


@given(seeds, st.sampled_from(list(DRAWS)))
def test_restored_streams_go_on_where_they_were_however_many_members(seeds, kind):
    """A row of the saved tensor handed to torch without a copy used to end the process."""
    streams = Streams(seeds, "x")
    DRAWS[kind](streams)
    saved = streams.state_dict()
    expected = [DRAWS[kind](streams) for _ in range(2)]
    other = Streams([seed + 1 for seed in seeds], "y")
    other.load_state_dict(saved)
    assert all(torch.equal(DRAWS[kind](other), e) for e in expected)


def test_a_saved_state_does_not_move_with_the_stream():
    streams = Streams([0, 1], "x")
    saved = streams.state_dict()["generators"].clone()
    state = streams.state_dict()
    streams.uniform(3)
    assert torch.equal(state["generators"], saved)


def test_the_state_of_another_population_is_refused():
    with pytest.raises(ValueError, match="argument 2 is"):
        Streams([0, 1], "x").load_state_dict(Streams([0], "x").state_dict())


@given(st.integers(1, 6), st.integers(0, 5))
def test_integers_stay_below_their_bound(high, seed):
    drawn = Streams([seed, seed + 1], "x").integers(high, 50)
    assert drawn.shape == (2, 50) and drawn.dtype == torch.int64 and 0 <= drawn.min() <= drawn.max() < high
