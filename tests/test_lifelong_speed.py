"""Our sides of ``benchmarks/lifelong.py``, small: they count what they say that they count."""

from __future__ import annotations

import pytest

from benchmarks import lifelong, ours_lifelong
from benchmarks.terms import AtariTerms

TINY = {"hidden": (8, 8), "batch": 4, "replay": 200, "warmup": 20, "chunk": 16}


def test_the_agents_side_counts_frames_of_all_copies():
    """Chunks of 16 environment steps or more, in steps of 3 copies: 18 steps of 4 frames."""
    pytest.importorskip("ale_py")
    work = ours_lifelong.atari_frames(copies=3, **TINY)
    assert [work(), work()] == [72.0, 72.0]


@pytest.mark.parametrize("copies, updates", [(1, 1.0), (8, 2.0)])
def test_a_step_of_stacked_agents_counts_the_updates_of_each_network(monkeypatch, copies, updates):
    """An update is due every 4 environment steps of an agent: after 4 steps of one copy, 2 at each step of eight."""
    pytest.importorskip("ale_py")
    small = ours_lifelong.DQNConfig(hidden=(8,), batch_size=4, warmup=40, buffer_size=200)
    monkeypatch.setattr(ours_lifelong, "ATARI", small)
    work = ours_lifelong.atari_steps(agents=2, copies=copies, emulator=False)
    work()
    assert work() == updates


def test_a_hub_finds_every_task_it_is_asked_for():
    pytest.importorskip("ale_py")
    assert all(took > 0 for took in ours_lifelong.hub_milliseconds(tasks=5, questions=7))


def test_the_replay_of_each_game_is_packed():
    pytest.importorskip("ale_py")
    found = ours_lifelong.compression(["Krull", "Alien"], steps=2_100, copies=8)
    assert list(found) == ["Krull", "Alien"]
    assert all(times > 1 for times in found.values())


def test_both_sides_of_a_duel_are_given_the_same_settings_but_for_who_plays():
    for name, terms in lifelong.DUELS.items():
        if terms.venv == "sb3":
            ours, theirs = ({**side[1], "workers": 0} for side in (terms.ours, terms.rival))
            assert ours == theirs, name
            AtariTerms(**terms.ours[1])
