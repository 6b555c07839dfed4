"""The benchmark's own machinery: its arithmetic on sides with scripted rates, its processes on real ones."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from benchmarks import duels, ours, rivals, venvs
from benchmarks.duels import Duel
from benchmarks.pair import ForeignSide, Missing, Side, Work, compare


class Scripted:
    """Stands for a ``Side``: each turn answers the next of its rates."""

    def __init__(self, setup: object, threads: int, arguments: Mapping[str, Iterator[float]]) -> None:
        if "missing" in arguments:
            raise Missing("some_package")
        self.rates = arguments["rates"]

    def turn(self, seconds: float) -> float:
        return next(self.rates)

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        return


def sleeper() -> Work:
    def work() -> float:
        time.sleep(0.001)
        return 2.0

    return work


def absent() -> Work:
    import no_such_package_at_all  # noqa: F401

    raise AssertionError("not reached")


def broken() -> Work:
    raise ZeroDivisionError("planted")


def test_the_ratio_is_the_median_of_the_rounds_ratios_and_the_first_turn_warms_up():
    """Ratios 6/2, 9/3, 8/1 after the warm-up of 1/1: the median is 3, where the ratio of medians would be 8/2 = 4."""
    ours = Scripted(None, 1, {"rates": iter([1.0, 5.0, 7.0, 9.0, 9.0, 4.0, 12.0])})
    rival = Scripted(None, 1, {"rates": iter([1.0, 1.0, 3.0, 2.0, 4.0, 1.0, 1.0])})
    assert compare(ours, rival, rounds=3, seconds=0) == (8.0, 2.0, 3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_of_equal_sides_whose_turn_after_the_others_is_slower_neither_is(rounds):
    """The usual bug: with an odd number of turns one side has more of them after its own."""
    last: list[Cold] = []

    class Cold:
        def turn(self, seconds: float) -> float:
            warm = last[-1:] == [self]
            last.append(self)
            return 10.0 if warm else 8.0

    assert compare(Cold(), Cold(), rounds, seconds=0) == (9.0, 9.0, 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("cost, goal, holds", [(0, 2, True), (0, 4, False), (1, 0.5, True), (1, 0.2, False)])
def test_a_row_compares_its_ratio_with_its_goal(monkeypatch, cost, goal, holds):
    """30 units a second against 10: as a rate 3 times as much, as a cost 33 ms against 100, a third."""
    sides = [(sleeper, {"rates": iter([rate] * 5)}) for rate in (30.0, 10.0)]
    monkeypatch.setattr(duels, "Side", Scripted)
    terms = Duel(sides[0], sides[1], "naps", goal, bool(cost))
    row = duels.duel("planted", terms, rounds=2, seconds=0, threads=1)
    assert row.ratio == pytest.approx(1 / 3 if cost else 3)
    assert (row.ours, row.rival) == (pytest.approx((1000 / 30, 100)) if cost else (30, 10))
    assert row.holds is holds


def test_a_row_of_several_pairs_of_processes_reports_their_medians_and_their_span(monkeypatch):
    """After one turn to warm up each pair has a round: 6 / 2 = 3, 9 / .75 = 12 and 8 / 1.5 = 16 / 3.

    Neighbours, of which either side has started one, make sqrt(3 * 12) = 6 and sqrt(12 * 16 / 3) = 8: 7.
    """
    ours = (sleeper, {"rates": iter([1.0, 6.0, 6.0, 1.0, 9.0, 9.0, 1.0, 8.0, 8.0])})
    rival = (sleeper, {"rates": iter([1.0, 2.0, 2.0, 1.0, 0.75, 0.75, 1.0, 1.5, 1.5])})
    monkeypatch.setattr(duels, "Side", Scripted)
    row = duels.duel("planted", Duel(ours, rival, "naps", 7), rounds=1, seconds=0, threads=1, pairs=3)
    assert (row.ours, row.rival, row.ratio, row.holds) == (8.0, 1.5, pytest.approx(7.0), True)
    assert row.ratios == pytest.approx((3.0, 12.0, 16 / 3))
    assert "| 7 (3 to 12) |" in duels.table([row])


def test_who_starts_first_has_no_part_in_the_ratio():
    """The usual bug: the median of all is 1.025, though ours is slower as often as it is quicker, by as much."""
    assert duels.balanced([1.25, 0.8, 1.25, 0.8]) == pytest.approx([1.0, 1.0, 1.0])  # sqrt(1.25 * .8) = 1
    assert duels.balanced([1.25]) == [1.25]


def test_sides_take_turns_in_starting_first(monkeypatch):
    """The usual bug: of two equal sides the one that starts first is slower, and it is always the same."""
    started = []

    class Noted(Scripted):
        def __init__(self, setup: object, threads: int, arguments: Mapping[str, Iterator[float]]) -> None:
            super().__init__(setup, threads, arguments)
            started.append(setup)

    monkeypatch.setattr(duels, "Side", Noted)
    terms = Duel((sleeper, {"rates": iter([3.0] * 12)}), (absent, {"rates": iter([1.0] * 12)}), "naps", None)
    row = duels.duel("planted", terms, rounds=1, seconds=0, threads=1, pairs=4)
    assert started == [sleeper, absent, absent, sleeper] * 2
    assert row.ratios == (3.0, 3.0, 3.0, 3.0)


def test_a_rival_that_is_not_installed_leaves_the_row_open(monkeypatch, capsys):
    monkeypatch.setattr(duels, "Side", Scripted)
    terms = Duel((sleeper, {"rates": iter([5.0, 7.0])}), (absent, {"missing": True}), "naps", 1)
    row = duels.duel("planted", terms, rounds=1, seconds=0, threads=1)
    assert row == ("planted", 7.0, None, "naps per second", None, "ratio >= 1", None, ())
    assert "some_package is not installed" in capsys.readouterr().err


def test_a_side_works_in_its_own_process_and_one_that_cannot_says_why():
    with Side(sleeper, 1, {}) as side:
        assert 0 < side.turn(0.05) <= 2000  # two units a millisecond at most
    with pytest.raises(Missing, match="no_such_package_at_all"):
        Side(absent, 1, {})
    with pytest.raises(RuntimeError, match="planted"):
        Side(broken, 1, {})


def test_a_side_works_in_another_python_too():
    """Its arguments travel as JSON: a batch of 2 sequences of 3 steps takes far less than a second."""
    small = {"agents": 1, "steps": 3, "batch": 2, "inputs": 4, "hidden": 4, "outputs": 2}
    with ForeignSide(rivals.loop_gru_unrolls, 1, small, Path(sys.executable)) as side:
        assert side.turn(0.05) > 1
    with pytest.raises(RuntimeError, match="unexpected keyword argument 'surprise'"):
        ForeignSide(rivals.loop_gru_unrolls, 1, {"surprise": 1}, Path(sys.executable))


def test_a_rival_with_an_environment_of_its_own_is_missing_until_just_what_is_wanted_was_installed(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(venvs, "HOME", tmp_path)
    monkeypatch.setattr(duels, "Side", Scripted)
    terms = Duel((sleeper, {"rates": iter([5.0, 7.0])}), (absent, {}), "naps", 3, venv="torchrl")
    row = duels.duel("planted", terms, rounds=1, seconds=0, threads=1)
    assert (row.ours, row.rival, row.holds) == (7.0, None, None)
    assert "torchrl is not installed: make bench" in capsys.readouterr().err

    (tmp_path / "torchrl").mkdir()
    (tmp_path / "torchrl" / "installed").write_text(venvs.wanted("torchrl"))
    assert venvs.python("torchrl") == tmp_path / "torchrl" / "bin" / "python"
    monkeypatch.setitem(venvs.PACKAGES, "torchrl", ["torchrl==0"])
    with pytest.raises(Missing, match="torchrl"):
        venvs.python("torchrl")


def test_a_row_without_a_goal_is_reported(monkeypatch):
    sides = [(sleeper, {"rates": iter([rate] * 5)}) for rate in (30.0, 10.0)]
    monkeypatch.setattr(duels, "Side", Scripted)
    terms = Duel(sides[0], sides[1], "naps", None)
    row = duels.duel("planted", terms, rounds=2, seconds=0, threads=1)
    assert (row.ratio, row.goal, row.holds) == (3, "none", None)
    assert duels.table([row]).endswith("| none | reported |")
    unanswered = row._replace(ours=None, rival=None, ratio=None)
    assert duels.table([unanswered]).endswith("| not installed |")


def test_our_own_side_that_is_not_installed_leaves_the_row_open(monkeypatch, capsys):
    """Our QMIX row steps smax, which needs JaxMARL as the rival does."""
    terms = Duel((absent, {}), (sleeper, {}), "naps", 1)
    row = duels.duel("planted", terms, rounds=1, seconds=0, threads=1)
    assert row == ("planted", None, None, "naps per second", None, "ratio >= 1", None, ())
    assert "no_such_package_at_all is not installed" in capsys.readouterr().err


def test_our_mappo_side_counts_the_environment_steps_of_whole_rollouts():
    """4 copies x 5 steps a call, each call with one update of 2 epochs x 2 minibatches."""
    work = ours.mappo_steps(copies=4, steps=5, epochs=2, minibatches=2, hidden=(8, 8))
    assert [work(), work()] == [20.0, 20.0]


@pytest.mark.jax
@pytest.mark.slow  # compiles the battle
def test_our_qmix_side_counts_updates_after_the_warm_up():
    """A round is 4 copies x 8 steps with 2 updates, so one is due every 16 environment steps."""
    pytest.importorskip("jaxmarl")
    work = ours.qmix_updates(map="3m", copies=4, steps=8, updates=2, batch=4, episodes=16, hidden=8, embed=4, hyper=4)
    assert [work(), work()] == [2.0, 2.0]


def test_both_sides_of_the_gru_row_have_the_same_parameters_and_reach_them_all(monkeypatch):
    """Each of 3 networks: 5 * 4 + 4 entering, 2 * (4 * 12 + 12) in the GRU, 4 * 2 + 2 leaving: 154 numbers."""
    small = {"agents": 3, "steps": 3, "batch": 2, "inputs": 5, "hidden": 4, "outputs": 2}
    counted: list[int] = []

    def count(module: torch.nn.Module, *_: object) -> None:
        reached = [p.grad for p in module.parameters()]
        assert all(grad is not None and grad.abs().sum() > 0 for grad in reached)
        counted.append(sum(p.numel() for p in module.parameters()))

    monkeypatch.setattr(torch.nn.Module, "zero_grad", count)
    ours.gru_unrolls(**small)()
    rivals.loop_gru_unrolls(**small)()
    assert counted == [3 * 154, 154, 154, 154]
