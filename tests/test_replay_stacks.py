"""Stacked frames, each stored once: what is drawn equals, bit for bit, what a buffer of whole stacks draws.

The two buffers are told the same story. A new episode shows one frame several times, or frames that nobody saw, or it
goes on with the old ones (as after a life that was lost in Atari).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from marl.algos.dqn import DQNConfig
from marl.checkpoint import Checkpoints
from marl.envs.base import EnvSpec, Step
from marl.episodes import Episodes
from marl.lifelong.experience import extract, load_replay, restored, save_replay
from marl.replay import Replay
from marl.types import Acted, Batch, View

P, N, E, F = 2, 2, 2, 5


def spec(stack: int, agents: int = N, bytes: bool = True) -> EnvSpec:
    names = tuple("ab"[:agents])
    return EnvSpec("reel", names, (stack * F,) * agents, (3,) * agents, True, max_steps=6, bytes=bytes, stack=stack)


class Reel:
    """P x N x E films; ``run`` tells every buffer the same."""

    def __init__(self, stack: int, seed: int, chance: float, lost: float = 0.0) -> None:
        self.stack, self.chance, self.lost = stack, chance, lost
        self.generator = torch.Generator().manual_seed(seed)
        self.obs = self.pictures(stack)

    def pictures(self, count: int) -> Tensor:
        """Frames that nobody saw before, ``[P, N, E, count * F]``: among so many bytes no two are alike."""
        return torch.randint(256, (P, N, E, count * F), generator=self.generator).float()

    def flags(self, chance: float) -> Tensor:
        """``[P, 1, E]``."""
        return torch.rand(P, 1, E, generator=self.generator) < chance

    def run(self, steps: int, *buffers: Replay | Episodes) -> None:
        for _ in range(steps):
            over, gone, fresh, still = (self.flags(p) for p in (self.chance, self.lost, 0.5, 0.5))
            frame = self.pictures(1)
            after = torch.cat([self.obs[..., F:], frame], -1)
            first = torch.where(still[..., None], frame.repeat(1, 1, 1, self.stack), self.pictures(self.stack))
            first = torch.where(fresh[..., None], first, after)  # or the same again
            done = (over | gone).expand(P, N, E)
            now = torch.where(done[..., None], first, after)
            action = torch.randint(3, (P, N, E), generator=self.generator)
            terminated = (over & ~gone & self.flags(0.5)).expand(P, N, E)
            lost = gone.expand(P, N, E) if self.lost else None
            step = Step(now, torch.where(gone[..., None], 0.0, after), frame[..., 0], terminated, done, lost)
            for buffer in buffers:
                buffer.add(View(self.obs), Acted(action), step)
            self.obs = now


def pair(stack: int, capacity: int, n_step: int = 1, seeds: tuple[int, ...] = (0, 1)) -> tuple[Replay, Replay]:
    """Frames stored once, and whole stacks."""
    whole = dataclasses.replace(spec(stack), stack=1)
    once, all_of_them = (Replay(capacity * E, s, P, E, seeds, n_step=n_step) for s in (spec(stack), whole))
    return once, all_of_them


def assert_equal(ours: Batch, theirs: Batch) -> None:
    for name, x, y in zip(Batch._fields, ours, theirs, strict=True):
        assert (x is None) == (y is None) and (x is None or (x.dtype == y.dtype and torch.equal(x, y))), name


def drawable(replay: Replay) -> bool:
    """Whether every member holds something that happened."""
    held = torch.arange(max(replay.written - replay.capacity, 0), replay.written) % replay.ring
    return bool((~replay.lost[held]).any(0).any(-1).all())


STORIES = {
    "stack": st.integers(2, 5),
    "capacity": st.integers(1, 12),
    "n_step": st.integers(1, 4),
    "chance": st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    "lost": st.sampled_from([0.0, 0.2]),
    "seed": st.integers(0, 99),
}


@settings(max_examples=80)
@given(parts=st.lists(st.integers(1, 15), min_size=1, max_size=4), **STORIES)
def test_what_is_drawn_equals_what_whole_stacks_give_at_every_moment_and_over_interruptions(
    stack, capacity, n_step, chance, lost, seed, parts
):
    once, whole = pair(stack, capacity, n_step)
    reel = Reel(stack, seed, chance, lost)
    for steps in parts:
        for _ in range(steps):
            reel.run(1, once, whole)
            if drawable(whole):
                assert_equal(once.sample(8), whole.sample(8))
        for buffer in (once, whole):
            buffer.interrupt()
        reel.obs = reel.pictures(stack)


@settings(max_examples=40)
@given(rhythm=st.lists(st.integers(1, 9), min_size=1, max_size=6), **STORIES)
def test_a_restored_buffer_draws_and_goes_on_as_the_saved_one(
    tmp_path_factory, stack, capacity, n_step, chance, lost, seed, rhythm
):
    once, whole = pair(stack, capacity, n_step)
    reel, saver = Reel(stack, seed, chance, lost), Checkpoints(tmp_path_factory.mktemp("c"))
    for i, steps in enumerate(rhythm):
        reel.run(steps, once, whole)
        saver.save(i, once.state_dict(), once)
    loaded, (other, copied) = Checkpoints(saver.folder).load(), (pair(stack, capacity, n_step)[0] for _ in range(2))
    other.load_state_dict(loaded.state)
    other.restore(loaded.chunks)
    load_replay(copied, save_replay(once))
    for _ in range(12):
        if drawable(whole):
            wanted = whole.sample(8)
            for buffer in (once, other, copied):
                assert_equal(buffer.sample(8), wanted)
        reel.run(1, once, whole, other, copied)


@settings(max_examples=30)
@given(steps=st.integers(1, 30), **STORIES)
def test_one_member_taken_out_and_lent_gives_what_whole_stacks_give(stack, capacity, n_step, chance, lost, seed, steps):
    once, whole = pair(stack, capacity, n_step)
    Reel(stack, seed, chance, lost).run(steps, once, whole)
    config = DQNConfig(n_step=n_step)
    for member in range(P):
        bundle = extract(once, member)
        assert all(x.is_contiguous() for x in bundle.values())
        lent = [restored(extract(r, member), config, r.spec, 7) for r in (once, whole)]
        if drawable(lent[1]):
            assert_equal(lent[0].sample(20), lent[1].sample(20))
        again = extract(lent[0], 0)
        assert again.keys() == bundle.keys() and all(torch.equal(again[name], bundle[name]) for name in bundle)


def test_the_usual_bugs_are_seen_frames_of_the_episode_before_and_frames_that_were_overwritten():
    once, whole = pair(4, 30)
    Reel(4, 0, 0.05).run(60, once, whole)
    assert_equal(once.sample(400), whole.sample(400))
    ours = once.older.at
    once.older.at = torch.full_like(ours, -1)  # as if episodes went on for ever
    blind, seeing = once.sample(400), whole.sample(400)
    assert 0 < (blind.obs != seeing.obs).any(-1).float().mean() < 1
    once.older.at = ours
    once.seen["obs"][(once.written - once.capacity - 3) % once.ring] = 0  # the oldest slot that a stack still needs
    assert not torch.equal(once.sample(400).obs, whole.sample(400).obs)


def test_an_episodes_first_stacks_by_hand():
    """Frames are single numbers. The first stack shows 7 8 9; then 1, 2, 3 come, and the episode ends with 3."""
    one = EnvSpec("reel", ("a",), (3,), (1,), True, stack=3)
    replay, zero = Replay(10, one, 1, 1, [0]), torch.zeros(1, 1, 1)
    stacks = [torch.tensor(x).view(1, 1, 1, 3) for x in ([7.0, 8, 9], [8.0, 9, 1], [9.0, 1, 2], [1.0, 2, 3])]
    fresh = torch.tensor([5.0, 5, 5]).view(1, 1, 1, 3)
    for t in range(3):
        done = torch.full((1, 1, 1), t == 2)
        step = Step(fresh if t == 2 else stacks[t + 1], stacks[t + 1], zero + t, done, done)
        replay.add(View(stacks[t]), Acted(zero.long()), step)
    assert replay.seen["obs"][:4].flatten().tolist() == [9, 1, 2, 5]
    assert replay.older.rows["frames"][0].flatten().tolist() == [7, 8]
    batch = replay.sample(50)
    assert batch.reward.unique().tolist() == [0, 1, 2]
    for t, obs, after in zip(batch.reward[0, 0].int().tolist(), batch.obs[0, 0], batch.next_obs[0, 0], strict=True):
        assert torch.equal(obs, stacks[t].flatten()) and torch.equal(after, stacks[t + 1].flatten())


def test_stacked_atari_pictures_take_little_more_than_a_quarter():
    """200 slots of 2 copies in episodes of 50 steps, overwritten twice."""
    atari = EnvSpec("atari/x", ("agent",), (4 * 84 * 84,), (18,), True, bytes=True, pixels=(4, 84, 84), stack=4)
    sizes = []
    for kind in (atari, dataclasses.replace(atari, stack=1)):
        replay, obs, zero = Replay(400, kind, 1, 2, [0]), torch.zeros(1, 1, 2, 4 * 84 * 84), torch.zeros(1, 1, 2)
        for t in range(600):
            done = torch.full((1, 1, 2), t % 50 == 49)
            replay.add(View(obs), Acted(zero.long()), Step(obs, obs, zero, done, done))
        rings = [*replay.seen.values(), *replay.moves.values(), replay.lost]
        tables = [x for rare in (replay.finals, replay.older) if rare for x in (rare.at, *rare.rows.values())]
        sizes.append(sum(x.untyped_storage().nbytes() for x in [*rings, *tables]))
    once, whole = sizes
    # Frames: 204 slots x 2 x 7056 bytes, four times as much in whole stacks. Ends and beginnings: at most 5 x 2 of
    # each, of 7056 and 3 x 7056 bytes (28 224 whole), in tables with half as much room again.
    assert whole > 201 * 2 * 28_224 and once < 1.12 * 204 * 2 * 7056
    assert whole / once > 3.5


def test_whole_episodes_of_stacks_are_drawn_whole():
    reel = Reel(3, 1, 0.4)
    config = DQNConfig(buffer_size=60, batch_size=6)
    episodes = Episodes.of(config, spec(3), E, [0, 1], 0)
    plain = Episodes.of(config, dataclasses.replace(spec(3), stack=1), E, [0, 1], 0)
    reel.run(25, episodes, plain)
    ours, theirs = episodes.draw(), plain.draw()
    assert ours.filled.any() and torch.equal(ours.obs, theirs.obs)


def test_an_old_checkpoint_of_whole_stacks_is_refused_by_name(tmp_path: Path):
    once, whole = pair(3, 5)
    Reel(3, 0, 0.2).run(8, once, whole)
    other = pair(3, 5)[0]
    with pytest.raises((KeyError, RuntimeError)):  # which ``marl.recipe.explain`` turns into one line
        other.load_state_dict(whole.state_dict())
