"""Episodes: whole ones only, of any lengths, each ending with what was truly seen last; restored to the bit.

The world of these tests writes into each observation who saw it and when: (member, copy, agent, episode, step). So each
sampled episode proves itself: it starts at step 0, every entry is one step later in the same episode of the same agent,
and its number of steps is the one that the world noted.
"""

import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.checkpoint import Checkpoints
from marl.envs.base import EnvSpec, Step
from marl.episodes import Episodes
from marl.types import Acted, View

P, N, E, LIMIT = 2, 2, 2, 5
SPEC = EnvSpec("diary", ("a", "b"), (5, 5), (300, 300), True, max_steps=LIMIT, state_size=3, masked=True)


class Diary:
    """P members x E copies; an episode ends by termination where chance says so, or after ``LIMIT`` steps."""

    def __init__(self, episodes, chance=0.2, seed=0, members=range(P), copies=E):
        self.buffer, self.chance, self.members = episodes, chance, torch.tensor(list(members))
        self.generators = [torch.Generator().manual_seed(seed + p) for p in members]
        self.episode = torch.zeros(len(self.members), copies)
        self.time = torch.zeros(len(self.members), copies)
        self.lengths = {}  # (member, copy, episode) -> steps, of whole episodes

    def see(self):
        """What is seen now; an agent may take action ``time`` only, and the state is (member, copy, time)."""
        copies = self.time.shape[1]
        who = torch.meshgrid(self.members, torch.arange(N), torch.arange(copies), indexing="ij")
        when = [x[:, None].expand(-1, N, -1) for x in (self.episode, self.time)]
        obs = torch.stack([who[0], who[2], who[1], *when], dim=-1).float()
        return View(obs, torch.arange(300) == obs[..., 4:], obs[:, 0][..., [0, 1, 4]])

    def uniform(self):
        return torch.stack([torch.rand(self.time.shape[1], generator=g) for g in self.generators])

    def run(self, steps, lost=0.0):
        for _ in range(steps):
            before = self.see()
            self.time += 1
            last = self.see()
            over = self.uniform() < self.chance
            gone = self.uniform() < lost
            ended = over | gone | (self.time >= LIMIT)
            for p, e in (ended & ~gone).nonzero().tolist():
                self.lengths[int(self.members[p]), e, int(self.episode[p, e])] = int(self.time[p, e])
            self.episode += ended
            self.time *= ~ended
            wide = [x[:, None].expand(-1, N, -1) for x in (over & ~gone, ended, gone)]
            now, earned = self.see(), before.obs[..., 4]
            step = Step(
                now.obs,
                last.obs,
                earned,
                *wide[:2],
                wide[2] if lost else None,
                now.avail,
                last.avail,
                now.state,
                last.state,
            )
            self.buffer.add(before, Acted(before.obs[..., 4].long()), step)

    def restart(self):
        self.buffer.interrupt()
        self.episode += 1
        self.time *= 0


def make(slots=50, batch=16, seeds=(0, 1), copies=E):
    config = types.SimpleNamespace(buffer_size=slots * copies, batch_size=batch, warmup=0, update_every=1)
    return Episodes.of(config, SPEC, copies, list(seeds), 7)


def lies(batch, diary):
    """How many drawn entries are not what happened, and how many episodes are not whole."""
    steps = batch.filled.sum(1)  # [P, B]
    assert (steps > 0).all()
    time = torch.arange(LIMIT + 1)[:, None]
    expected = torch.minimum(time, steps[:, None])  # [P, T + 1, B]
    obs, first = batch.obs, batch.obs[:, :, :1]
    wrong = (obs[..., :4] != first[..., :4]).any(-1) | (obs[..., 4] != expected[:, None])
    agent = torch.arange(N).view(1, -1, 1, 1)
    wrong |= (obs[..., 2] != agent) | (obs[..., 0] != diary.members.view(-1, 1, 1, 1))
    wrong |= ~batch.avail.gather(-1, obs[..., 4:].long()).squeeze(-1) | (batch.avail.sum(-1) != 1)
    wrong |= (batch.state != obs[:, 0][..., [0, 1, 4]]).any(-1)[:, None]
    taken = torch.minimum(time[:-1], steps[:, None] - 1)[:, None]
    wrong[:, :, :-1] |= (batch.action != taken) | (batch.reward != taken)
    wrong[:, :, :-1] |= batch.terminated & (taken < steps[:, None, None] - 1)  # none but the last may terminate
    names = first[:, 0, 0, :, [0, 1, 3]].int().tolist()
    unknown = [
        n for p, rows in enumerate(names) for b, n in enumerate(rows) if diary.lengths.get(tuple(n)) != steps[p, b]
    ]
    return int(wrong.sum()) + len(unknown)


# ---- what is drawn ------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.integers(1, 30), st.integers(LIMIT, 90), st.sampled_from([0.0, 0.2, 0.7, 1.0]))
def test_every_drawn_episode_happened_as_it_is_told_wherever_the_ring_is(slots, steps, chance):
    episodes = make(slots)
    diary = Diary(episodes, chance)
    diary.run(steps)
    assert lies(episodes.draw(), diary) == 0


def test_the_usual_bug_is_seen_the_last_successor_is_from_the_next_episode():
    episodes = make()
    diary = Diary(episodes)
    diary.run(40)
    for table in episodes.slots.finals.rows.values():
        table.zero_()
    assert lies(episodes.draw(), diary) > 0


def test_a_batch_has_the_shapes_that_it_promises():
    episodes = make(batch=3)
    diary = Diary(episodes)
    diary.run(20)
    batch = episodes.draw()
    assert batch.obs.shape == (P, N, LIMIT + 1, 3, 5) and batch.avail.shape == (P, N, LIMIT + 1, 3, 300)
    assert batch.state.shape == (P, LIMIT + 1, 3, 3) and batch.filled.shape == (P, LIMIT, 3)
    assert batch.action.shape == batch.reward.shape == batch.terminated.shape == (P, N, LIMIT, 3)
    assert batch.action.dtype == torch.int64 and batch.filled.dtype == batch.terminated.dtype == torch.bool


def test_drawing_is_uniform_over_the_episodes_and_not_over_their_steps():
    episodes = make(slots=100, batch=20_000)
    diary = Diary(episodes, chance=0.4)
    diary.run(60)
    first = episodes.draw().obs[0, 0, 0][:, [1, 3]]
    _, counts = first.unique(dim=0, return_counts=True)
    known = sum(member == 0 for member, _, _ in diary.lengths)
    assert len(counts) == known > 40
    # Chi-square with K - 1 degrees of freedom: mean K - 1, variance 2 (K - 1); five deviations.
    mean = 20_000 / known
    assert ((counts - mean) ** 2 / mean).sum() < known + 5 * (2 * known) ** 0.5


def test_an_episode_goes_with_its_first_overwritten_slot():
    """Episodes of five steps of one copy in a ring of 12: slots 0-4, 5-9, 10-14, ..."""
    episodes = make(slots=12, seeds=(0,), copies=1, batch=200)
    diary = Diary(episodes, chance=0.0, members=[0], copies=1)
    for steps, held in [(12, {0, 1}), (1, {1}), (2, {1, 2}), (3, {2})]:
        diary.run(steps)  # 12, 13, 15, 18 slots written: those from 0, 1, 3, 6 on are held
        assert set(episodes.draw().obs[0, 0, 0, :, 3].tolist()) == held


def test_a_member_draws_the_episodes_it_would_draw_alone():
    both, alone = make(), make(seeds=(1,))
    Diary(both).run(40)
    Diary(alone, members=[1]).run(40)
    for _ in range(3):
        for x, y in zip(both.draw(), alone.draw(), strict=True):
            assert torch.equal(x[1], y[0])


def test_the_first_update_waits_for_as_many_episodes_as_it_draws():
    config = types.SimpleNamespace(buffer_size=1, batch_size=16, warmup=3, update_every=10)
    episodes = Episodes.of(config, SPEC, 6, [0], 0)
    # 16 episodes of at most 5 steps from 6 copies: 3 rounds, so 15 time slots, so 90 environment steps.
    assert episodes.schedule == (90, 10) and episodes.schedule.due(100) == 1
    assert episodes.capacity == 10  # two episodes of each copy
    assert Episodes.of(config, SPEC, 1, [0], 0).schedule.warmup == 80
    config.warmup = 500
    assert Episodes.of(config, SPEC, 6, [0], 0).schedule.warmup == 500


# ---- what did not happen ------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(10, 40), st.sampled_from([0.1, 0.3]))
def test_an_episode_with_a_lost_transition_is_never_drawn(steps, lost):
    episodes = make()
    diary = Diary(episodes)
    diary.run(LIMIT)
    diary.run(steps, lost)
    diary.run(LIMIT)
    assert lies(episodes.draw(), diary) == 0


@settings(max_examples=30)
@given(st.integers(LIMIT, 30), st.integers(0, 30))
def test_no_episode_leads_over_an_interruption(before, after):
    episodes = make()
    diary = Diary(episodes)
    diary.run(before)
    diary.restart()
    diary.run(after)
    assert lies(episodes.draw(), diary) == 0


def test_without_any_whole_episode_nothing_is_filled_and_no_number_is_drawn():
    episodes = make(seeds=(0, 1))
    diary = Diary(episodes, chance=0.0)
    diary.run(LIMIT - 1)
    before = episodes.state_dict()["slots"]["sampler"]["generators"]
    batch = episodes.draw()
    assert not batch.filled.any() and all(x.isfinite().all() for x in batch)
    assert torch.equal(before, episodes.state_dict()["slots"]["sampler"]["generators"])


def test_an_environment_without_a_limit_is_refused():
    spec = EnvSpec("endless", ("a",), (1,), (2,), True)
    with pytest.raises(ValueError, match="endless has no time limit"):
        Episodes.of(types.SimpleNamespace(buffer_size=9, batch_size=1, warmup=0, update_every=1), spec, 1, [0], 0)


# ---- what is saved ------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    st.integers(1, 25),
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.booleans(),
)
def test_a_restored_buffer_draws_like_the_saved_one_and_goes_on_like_it(
    tmp_path_factory, slots, rhythm, chance, interrupted
):
    folder, episodes = tmp_path_factory.mktemp("c"), make(slots)
    saver, diary = Checkpoints(folder), Diary(episodes, chance)
    diary.run(LIMIT)
    for i, steps in enumerate(rhythm):
        diary.run(steps, 0.2 if steps > 5 else 0.0)
        if interrupted:
            diary.restart()
        saver.save(i, episodes.state_dict(), episodes)
    loaded = Checkpoints(folder).load()
    other = make(slots, seeds=(8, 9))
    other.load_state_dict(loaded.state)
    other.restore(loaded.chunks)
    then = diary.episode.clone(), diary.time.clone(), [g.get_state() for g in diary.generators]
    diary.run(7)
    diary.buffer, diary.episode, diary.time = other, *then[:2]
    for generator, state in zip(diary.generators, then[2], strict=True):
        generator.set_state(state)
    diary.run(7)
    for _ in range(2):
        ours, theirs = episodes.draw(), other.draw()
        assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
    assert lies(ours, diary) == 0
