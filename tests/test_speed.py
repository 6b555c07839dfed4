"""The benchmark's own machinery: its arithmetic on sides with scripted rates, its processes on real ones."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import pytest

from benchmarks import speed
from benchmarks.pair import Missing, Side, Work, compare


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


def test_the_ratio_is_the_median_of_the_turns_ratios_and_the_first_turn_warms_up():
    """Ratios 6/2, 9/3, 8/1 after the warm-up of 1/1: the median is 3, where the ratio of medians would be 8/2 = 4."""
    ours = Scripted(None, 1, {"rates": iter([1.0, 6.0, 9.0, 8.0])})
    rival = Scripted(None, 1, {"rates": iter([1.0, 2.0, 3.0, 1.0])})
    assert compare(ours, rival, rounds=3, seconds=0) == (8.0, 2.0, 3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("cost, goal, holds", [(0, 2, True), (0, 4, False), (1, 0.5, True), (1, 0.2, False)])
def test_a_row_compares_its_ratio_with_its_goal(monkeypatch, cost, goal, holds):
    """30 units a second against 10: as a rate 3 times as much, as a cost 33 ms against 100, a third."""
    sides = [(sleeper, {"rates": iter([rate] * 3)}) for rate in (30.0, 10.0)]
    monkeypatch.setattr(speed, "Side", Scripted)
    monkeypatch.setitem(speed.DUELS, "planted", speed.Duel(sides[0], sides[1], "naps", goal, bool(cost)))
    row = speed.duel("planted", rounds=2, seconds=0, threads=1)
    assert row.ratio == pytest.approx(1 / 3 if cost else 3)
    assert (row.ours, row.rival) == (pytest.approx((1000 / 30, 100)) if cost else (30, 10))
    assert row.holds is holds


def test_a_rival_that_is_not_installed_leaves_the_row_open(monkeypatch, capsys):
    monkeypatch.setattr(speed, "Side", Scripted)
    terms = speed.Duel((sleeper, {"rates": iter([5.0, 7.0])}), (absent, {"missing": True}), "naps", 1)
    monkeypatch.setitem(speed.DUELS, "planted", terms)
    row = speed.duel("planted", rounds=1, seconds=0, threads=1)
    assert row == ("planted", 7.0, None, "naps per second", None, "ratio >= 1", None)
    assert "some_package is not installed" in capsys.readouterr().err


def test_a_side_works_in_its_own_process_and_one_that_cannot_says_why():
    with Side(sleeper, 1, {}) as side:
        assert 0 < side.turn(0.05) <= 2000  # two units a millisecond at most
    with pytest.raises(Missing, match="no_such_package_at_all"):
        Side(absent, 1, {})
    with pytest.raises(RuntimeError, match="planted"):
        Side(broken, 1, {})
