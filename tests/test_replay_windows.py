"""Replay for n-step returns and for observations of bytes: read from the ring, nothing stored twice.

The world of these tests is a list: every transition is remembered in full beside the buffer, and each sampled window is
told again from the list, step by step.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from marl.envs.base import EnvSpec, Step
from marl.episodes import Episodes
from marl.replay import Replay
from marl.types import Acted, Batch, Schedule, View

P, N, E = 2, 2, 2
SPEC = EnvSpec("list", ("a", "b"), (1, 1), (2, 2), True)


class Lived(NamedTuple):
    """One transition of one copy: what it saw (a number told once), and what became of it."""

    seen: int
    reward: float
    then: int
    terminated: bool
    done: bool
    lost: bool


def live(replay: Replay, steps: int, ends: float, lost: float, seed: int = 0) -> list[list[list[Lived]]]:
    """Fill the buffer and return what happened, ``[P][E][time]``. Agent 1 sees and earns the negative of agent 0."""
    generator = torch.Generator().manual_seed(seed)
    chance = lambda p: torch.rand(P, E, generator=generator) < p  # noqa: E731
    fresh = iter(range(1, 10_000_000, P * E))
    number = lambda: next(fresh) + torch.arange(P * E).view(P, E)  # noqa: E731
    both = lambda x: torch.stack([x, -x], dim=1).float()  # noqa: E731
    wide = lambda x: x[:, None].expand(-1, N, -1)  # noqa: E731
    told: list[list[list[Lived]]] = [[[] for _ in range(E)] for _ in range(P)]
    now = number()
    for _ in range(steps):
        gone, over, cut = chance(lost), chance(ends), chance(0.5)
        reward = torch.randint(1, 10, (P, E), generator=generator)
        terminated, done = over & ~gone & cut, over | gone
        after = number()
        last = torch.where(gone, now, number())
        following = torch.where(done, last, after)
        flags = (wide(terminated), wide(done), wide(gone) if lost else None)
        step = Step(both(after)[..., None], both(following)[..., None], both(reward), *flags)
        replay.add(View(both(now)[..., None]), Acted(wide(reward % 2)), step)
        for p in range(P):
            for e in range(E):
                facts = (x[p, e].item() for x in (now, reward, following, terminated, done, gone))
                told[p][e].append(Lived(*facts))
        now = after
    return told


def window(story: list[Lived], start: int, n: int) -> list[Lived]:
    """The steps that an n-step return from ``start`` counts."""
    found = [story[start]]
    for step in story[start + 1 : start + n]:
        if found[-1].done or step.lost:
            break
        found.append(step)
    return found


def lies(told: list[list[list[Lived]]], batch: Batch, n: int) -> int:
    """How many rows of the batch are not what happened."""
    wrong = 0
    for p in range(P):
        where = {s.seen: (e, t) for e in range(E) for t, s in enumerate(told[p][e])}
        for b in range(batch.reward.shape[-1]):
            e, start = where[int(batch.obs[p, 0, b, 0])]
            steps = window(told[p][e], start, n)
            rewards = [s.reward for s in steps] + [0.0] * (n - len(steps))
            found = (
                batch.rewards[p, 0, b].tolist() == rewards,
                batch.rewards[p, 1, b].tolist() == [-r for r in rewards],
                batch.reward[p, :, b].tolist() == [rewards[0], -rewards[0]],
                batch.steps[p, 0, b].item() == len(steps),
                batch.next_obs[p, :, b, 0].tolist() == [steps[-1].then, -steps[-1].then],
                batch.terminated[p, :, b].tolist() == [steps[-1].terminated] * N,
                batch.action[p, 0, b].item() == rewards[0] % 2,
                not steps[0].lost,
            )
            wrong += not all(found)
    return wrong


@settings(max_examples=60)
@given(
    st.integers(1, 12),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.sampled_from([0.0, 0.2]),
    st.integers(2, 6),
)
def test_every_window_happened_and_ends_with_its_episode_the_newest_step_or_before_what_was_lost(
    capacity, steps, ends, lost, n
):
    replay = Replay(capacity * E, SPEC, P, E, [0, 1], n_step=n)
    told = live(replay, steps, ends, lost)
    held = [story[-replay.capacity :] for member in told for story in member]
    if any(all(s.lost for story in held[p * E : p * E + E] for s in story) for p in range(P)):
        return  # nothing to draw
    assert lies(told, replay.sample(40), n) == 0


def test_the_usual_bug_is_seen_a_window_that_runs_on_into_the_next_episode():
    replay = Replay(100, SPEC, P, E, [0, 1], n_step=3)
    told = live(replay, 40, ends=0.3, lost=0.0)
    replay.finals.at.fill_(-1)
    # 2 members x 200 rows. A window of 3 meets an end at one of its steps with 1 - .7^3 = .66: about 260 lies.
    assert 200 < lies(told, replay.sample(200), 3) < 320


def test_the_first_step_of_a_window_is_what_a_buffer_without_windows_draws():
    plain, ahead = (Replay(40, SPEC, P, E, [0, 1], n_step=n) for n in (1, 4))
    for replay in (plain, ahead):
        live(replay, 30, ends=0.2, lost=0.1)
    ours, theirs = plain.sample(50), ahead.sample(50)
    assert ours.rewards is None and ours.steps is None
    for name in ("obs", "action", "reward"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    one = theirs.steps[:, 0] == 1
    assert one.any() and torch.equal(ours.next_obs[:, 0][one], theirs.next_obs[:, 0][one])


def test_after_an_interruption_a_window_ends_at_what_was_seen_last():
    replay = Replay(20, SPEC, P, E, [0, 1], n_step=5)
    first = live(replay, 3, ends=0.0, lost=0.0)
    replay.interrupt()
    second = live(replay, 3, ends=0.0, lost=0.0, seed=1)
    batch = replay.sample(100)
    assert batch.steps.max() == 3
    # Both stories number what is seen from 1 on and so agree in that; their rewards differ.
    for p in range(P):
        starts = {tuple(r) for e in range(E) for told in (first, second) for r in [[s.reward for s in told[p][e]]]}
        longest = {tuple(r[:3].tolist()) for r, m in zip(batch.rewards[p, 0], batch.steps[p, 0], strict=True) if m == 3}
        assert longest == starts


# ---- bytes --------------------------------------------------------------------------------------------------------

BYTES = EnvSpec("list", ("a", "b"), (3, 3), (2, 2), True, max_steps=4, bytes=True)


def fill(buffer: Replay | Episodes, steps: int) -> None:
    """Time t is seen as (t, 255 - t, 255); every fourth step ends an episode at (100 + t, 0, 7)."""
    for t in range(steps):
        now, after = (torch.tensor([s, 255.0 - s, 255.0]).expand(1, N, 1, 3) for s in (t, t + 1))
        done = torch.full((1, N, 1), t % 4 == 3)
        last = torch.tensor([100.0 + t, 0.0, 7.0]).expand(1, N, 1, 3) if t % 4 == 3 else after
        zero = torch.zeros(1, N, 1)
        buffer.add(View(now), Acted(zero.long()), Step(after, last, zero, done, done))


@pytest.mark.parametrize("n_step", [1, 2])
def test_bytes_are_kept_as_bytes_and_drawn_as_the_numbers_that_they_are(n_step):
    replay = Replay(20, BYTES, 1, 1, [0], n_step=n_step)
    fill(replay, 30)
    assert replay.seen["obs"].dtype == replay.finals.rows["obs"].dtype == torch.uint8
    assert replay.seen["obs"].nbytes == 21 * N * 3  # one byte a number, one slot for the newest successor
    other = Replay(20, BYTES, 1, 1, [0], n_step=n_step)
    other.load_state_dict(replay.state_dict())
    other.restore([(10, replay.read(10, 30))])
    for buffer in (replay, other):
        batch = buffer.sample(200)
        assert batch.obs.dtype == batch.next_obs.dtype == torch.float32
        t = batch.obs[0, 0, :, 0]
        assert set(t.tolist()) == set(range(10, 30))
        assert torch.equal(batch.obs[0, 1], torch.stack([t, 255 - t, torch.full_like(t, 255)], dim=-1))
        steps = batch.steps[0, 0] if n_step == 2 else torch.ones_like(t)
        newest = t + steps - 1
        ended = newest % 4 == 3
        assert torch.equal(batch.next_obs[0, 0, :, 0], torch.where(ended, 100 + newest, newest + 1))


def test_whole_episodes_of_bytes_are_drawn_as_numbers_too():
    episodes = Episodes(Replay(40, BYTES, 1, 1, [0], with_state=True), 6, Schedule(0, 1))
    fill(episodes, 12)
    obs = episodes.draw().obs
    assert obs.dtype == torch.float32
    first: Tensor = obs[0, 0, 0, :, 0]
    assert set(first.tolist()) <= {0.0, 4.0, 8.0}
    assert torch.equal(obs[0, 0, 4, :, 0], 103 + first)
