"""Replay: every observation stored once, every successor the true one, nothing lost sampled, restored to the bit.

The world of these tests writes into each observation who saw it and when: (member, copy, agent, episode, step). So each
sampled transition proves itself: the successor's step is one more, in the same episode, of the same agent.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.checkpoint import Checkpoints
from marl.envs.base import EnvSpec, Step
from marl.replay import Replay
from marl.types import Acted, UserError, View

P, N, E = 2, 2, 2
SPEC = EnvSpec("diary", ("a", "b"), (5, 5), (1, 1), discrete=False)


class Diary:
    """P members x E copies; an episode ends where a random number says so, by termination or by a time limit."""

    def __init__(self, replay, chance=0.2, seed=0, members=P, copies=E):
        self.replay, self.chance = replay, chance
        self.generator = torch.Generator().manual_seed(seed)
        self.episode = torch.zeros(members, copies)
        self.time = torch.zeros(members, copies)
        self.obs = self.see()

    def see(self):
        """``[P, N, E, 5]``."""
        members, copies = self.time.shape
        who = torch.meshgrid(torch.arange(members), torch.arange(N), torch.arange(copies), indexing="ij")
        when = [x[:, None].expand(-1, N, -1) for x in (self.episode, self.time)]
        return torch.stack([who[0], who[2], who[1], *when], dim=-1).float()

    def run(self, steps, lost=0.0):
        for _ in range(steps):
            acted_on = self.see()
            self.time += 1
            next_obs = self.see()
            ended = torch.rand(self.time.shape, generator=self.generator) < self.chance
            gone = torch.rand(self.time.shape, generator=self.generator) < lost
            self.episode += ended | gone
            self.time *= ~(ended | gone)
            terminated = ended & (torch.rand(self.time.shape, generator=self.generator) < 0.5) & ~gone
            wide = [x[:, None].expand(-1, N, -1) for x in (terminated, ended | gone, gone)]
            next_obs = torch.where(wide[2][..., None], acted_on, next_obs)
            # Reward and action repeat the observation's time; an action has one more fact, whether the task ended.
            step = Step(self.see(), next_obs, acted_on[..., 4], wide[0], wide[1], wide[2] if lost else None)
            self.replay.add(View(acted_on), Acted(acted_on[..., 3:4]), step)


def make(capacity, seeds=(0, 1), copies=E):
    return Replay(capacity, SPEC, len(seeds), copies, list(seeds))


def lies(batch):
    """How many sampled transitions are not what happened."""
    now, then = batch.obs, batch.next_obs
    wrong = (now[..., :4] != then[..., :4]).any(-1) | (then[..., 4] != now[..., 4] + 1)
    wrong |= (batch.reward != now[..., 4]) | (batch.action[..., 0] != now[..., 3])
    mine = torch.arange(len(now)).view(-1, 1, 1) == now[..., 0]
    agent = torch.arange(N).view(1, -1, 1) == now[..., 2]
    return int((wrong | ~mine | ~agent).sum())


# ---- what is sampled ----------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 70), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_every_sampled_transition_happened_wherever_the_ring_is_and_however_episodes_end(capacity, steps, chance):
    replay = make(capacity)
    Diary(replay, chance).run(steps)
    batch = replay.sample(200)
    assert lies(batch) == 0
    assert len(replay) == min(steps, max(capacity // E, 1)) * E


def test_the_usual_bug_is_seen_a_successor_from_the_next_episode():
    """Without the side table of last observations the successor is the reset's, and a time limit bootstraps from it."""
    replay = make(100)
    Diary(replay, chance=0.2).run(50)
    replay.finals.at.fill_(-1)
    batch = replay.sample(500)
    # One of five transitions ends an episode; 500 draws x 2 members x 2 agents: about 400 lies.
    assert 300 < lies(batch) < 500
    assert (batch.next_obs[..., 4] == 0).any()  # time 0: an observation that no step can lead to


def test_both_ends_of_an_episode_give_their_last_observation_and_only_one_stops_the_bootstrap():
    replay = Replay(10, SPEC, 1, 1, [0])
    obs = torch.zeros(1, N, 1, 5)
    for t, (terminated, done) in enumerate([(False, True), (True, True), (False, False)]):
        flags = [torch.full((1, N, 1), flag) for flag in (terminated, done)]
        following = torch.full_like(obs, 10.0 * (t + 1))
        last = torch.full_like(obs, -1.0 - t) if done else following
        replay.add(
            View(obs), Acted(torch.zeros(1, N, 1, 1)), Step(following, last, torch.full((1, N, 1), float(t)), *flags)
        )
        obs = following
    batch = replay.sample(60)
    seen = set(zip(*(x[0, 0].tolist() for x in (batch.reward, batch.next_obs[..., 0], batch.terminated)), strict=True))
    # Step 0 hit the limit and step 1 the end: successors -1 and -2. Step 2 went on to the observation 30.
    assert seen == {(0.0, -1.0, False), (1.0, -2.0, True), (2.0, 30.0, False)}


def test_learners_whose_episodes_end_apart_each_get_their_own_last_observation():
    replay = Replay(10, SPEC, 1, 1, [0])
    obs, following = torch.zeros(1, N, 1, 5), torch.ones(1, N, 1, 5)
    last = following.clone()
    last[:, 0] = 7
    done = torch.tensor([True, False]).view(1, N, 1)
    replay.add(View(obs), Acted(torch.zeros(1, N, 1, 1)), Step(following, last, torch.zeros(1, N, 1), done, done))
    assert replay.sample(1).next_obs[0, :, 0, 0].tolist() == [7.0, 1.0]


def test_sampling_is_uniform_over_what_is_held():
    replay = make(100)
    Diary(replay, chance=0.1).run(130)  # wrapped: 50 slots of 2 copies are held
    batch = replay.sample(100_000)
    _, counts = batch.obs[0, 0].unique(dim=0, return_counts=True)
    assert len(counts) == 100
    # Chi-square with 99 degrees of freedom (mean 99, deviation 14) stays below 160 but once in 10 000 seeds.
    assert ((counts - 1000.0) ** 2 / 1000).sum() < 160


def test_discrete_actions_come_back_as_indices():
    for actions, value in ((7, 6), (300, 299)):
        replay = Replay(4, EnvSpec("x", ("a",), (1,), (actions,), discrete=True), 1, 1, [0])
        zero = torch.zeros(1, 1, 1, dtype=torch.bool)
        one = torch.zeros(1, 1, 1, 1)
        replay.add(View(one), Acted(torch.full((1, 1, 1), value)), Step(one, one, torch.zeros(1, 1, 1), zero, zero))
        batch = replay.sample(3)
        assert batch.action.dtype == torch.int64 and batch.action.tolist() == [[[value] * 3]]


def test_a_member_draws_the_batches_it_would_draw_alone():
    both, alone = make(30), make(30, seeds=(1,))
    Diary(both, chance=0.0).run(40)
    Diary(alone, chance=0.0, members=1).run(40)
    for _ in range(3):
        ours, theirs = both.sample(20), alone.sample(20)
        for x, y in zip(ours[:5], theirs[:5], strict=True):
            x, y = x[1], y[0]
            assert (
                torch.equal(x[..., 1:], y[..., 1:]) if x.dim() == 3 else torch.equal(x, y)
            )  # 0 is the member's number


# ---- what did not happen ------------------------------------------------------------------------------------------


def test_lost_transitions_are_never_sampled():
    replay = make(60)
    Diary(replay, chance=0.1).run(100, lost=0.3)
    assert replay.lost.any()
    assert lies(replay.sample(1000)) == 0


def test_where_all_were_lost_there_is_nothing_to_sample_until_one_comes_that_was_not():
    replay = make(E)  # one time slot
    diary = Diary(replay, chance=0.0)
    diary.run(1, lost=1.0)
    with pytest.raises(UserError, match=f"^buffer_size {E}: all {E} transitions in the replay were lost; expected a"):
        replay.sample(10)
    diary.run(1)
    assert lies(replay.sample(10)) == 0


@settings(max_examples=30)
@given(st.integers(2, 30), st.integers(0, 40), st.integers(1, 40))
def test_nothing_leads_over_an_interruption(capacity, before, after):
    replay = make(capacity * E)
    diary = Diary(replay, chance=0.1)
    diary.run(before)
    replay.interrupt()
    diary.episode += 1
    diary.time *= 0
    diary.run(after)
    assert lies(replay.sample(200)) == 0
    assert replay.written == before + after + (before > 0)


# ---- what is saved ------------------------------------------------------------------------------------------------


def reborn(folder, capacity):
    loaded = Checkpoints(folder).load()
    replay = make(capacity)
    replay.load_state_dict(loaded.state)
    replay.restore(loaded.chunks)
    return replay


@settings(max_examples=25)
@given(
    st.integers(1, 12),
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 0.2]),
)
def test_a_restored_buffer_answers_like_the_saved_one_and_goes_on_like_it(
    tmp_path_factory, capacity, rhythm, chance, lost
):
    folder, replay = tmp_path_factory.mktemp("c"), make(capacity * E)
    saver, diary = Checkpoints(folder), Diary(replay, chance)
    diary.run(3)
    for i, steps in enumerate(rhythm):
        diary.run(steps, lost if steps > 3 else 0.0)
        saver.save(i, replay.state_dict(), replay)
    other = reborn(folder, capacity * E)
    held = slice(max(replay.written - replay.capacity, 0), replay.written)
    ours, theirs = (r.read(held.start, held.stop) for r in (replay, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    episode, time, generator = diary.episode.clone(), diary.time.clone(), diary.generator.get_state()
    diary.run(4)
    diary.replay, diary.episode, diary.time = other, episode, time
    diary.generator.set_state(generator)
    diary.run(4)
    for _ in range(2):
        assert all(torch.equal(x, y) for x, y in zip(replay.sample(50)[:5], other.sample(50)[:5], strict=True))


def test_slots_that_are_missing_are_noticed():
    replay = make(40)
    Diary(replay).run(30)
    for chunks in ([(12, replay.read(12, 30))], [(10, replay.read(10, 20))], []):
        other = make(40)
        other.load_state_dict(replay.state_dict())
        with pytest.raises(ValueError, match="its replay lacks the time slots from"):
            other.restore(chunks)


# ---- what it costs ------------------------------------------------------------------------------------------------

HOPPER = EnvSpec("mujoco/Hopper-v5", ("learner_0",), (11,), (3,), discrete=False)


def size(replay):
    tables = [
        replay.finals.at,
        replay.lost,
        *replay.seen.values(),
        *replay.moves.values(),
        *replay.finals.rows.values(),
    ]
    return sum(x.untyped_storage().nbytes() for x in tables)


def test_a_million_hopper_transitions_take_less_than_80_megabytes():
    """Measured on 20 000 transitions in episodes of 20 steps, overwritten once: 66 bytes each, and 44 for each end."""
    replay = Replay(20_000, HOPPER, 1, 100, [0])
    obs, action, zero = torch.zeros(1, 1, 100, 11), torch.zeros(1, 1, 100, 3), torch.zeros(1, 1, 100)
    for t in range(400):
        done = torch.full((1, 1, 100), t % 20 == 19)
        replay.add(View(obs), Acted(action), Step(obs, obs, zero, done & False, done))
    assert len(replay) == 20_000
    # obs 4 * 11, action 4 * 3, reward 4, terminated 1, which final observation 4, lost 1; one slot of 100 more.
    fixed = 66 * 20_100
    assert fixed < size(replay) < fixed + 1.6 * 44 * 20_000 / 20 + 44 * 200
    assert size(replay) * 50 < 80e6


def test_the_side_table_grows_with_the_ends_that_are_held_and_not_with_those_that_were():
    replay = make(20)
    diary = Diary(replay, chance=0.5)
    diary.run(30)
    after = len(replay.finals.rows["obs"])
    diary.run(1000)
    assert len(replay.finals.rows["obs"]) <= after * 3 // 2 + 1


def test_a_lost_row_of_one_member_leaves_the_draws_of_the_others_alone():
    """Member 0 redraws where its rows were lost; member 1, which lost none, must sample as it would have anyway."""
    spec = EnvSpec("x/y", ("a",), (1,), (1,), False)
    plain, wounded = (Replay(100, spec, members=2, copies=1, seeds=[0, 1]) for _ in range(2))
    zeros = torch.zeros(2, 1, 1)
    for t in range(20):
        obs = torch.full((2, 1, 1, 1), float(t))
        step = Step(obs + 1, obs + 1, zeros, zeros.bool(), zeros.bool())
        lost = torch.tensor([t % 2 == 0, False]).view(2, 1, 1)
        plain.add(View(obs), Acted(obs), step)
        wounded.add(View(obs), Acted(obs), step._replace(lost=lost, done=lost))
    for _ in range(5):
        a, b = plain.sample(50), wounded.sample(50)
        assert torch.equal(a.obs[1], b.obs[1])
        assert (b.obs[0] % 2 == 1).all()  # the even slots of member 0 never happened


def test_masks_and_notes_are_kept_with_their_moment_and_the_successors_mask_is_the_true_one():
    """At time t action t % 3 alone may be taken, and t is noted; every third step ends an episode at time 100 + t."""
    spec = EnvSpec("x/y", ("a",), (1,), (3,), True, masked=True, state_size=2)
    replay = Replay(7, spec, members=1, copies=1, seeds=[0], memory_size=1, with_state=True)

    def at(time):
        may = torch.arange(3).view(1, 1, 1, 3) == time % 3
        return torch.full((1, 1, 1, 1), float(time)), may, torch.full((1, 1, 2), float(time))

    for t in range(20):
        (obs, avail, state), (after, after_avail, after_state) = at(t), at(t + 1)
        done = torch.tensor([[[t % 3 == 2]]])
        last, last_avail, last_state = at(100 + t) if done else at(t + 1)
        reward, never = torch.zeros(1, 1, 1), done & False
        step = Step(after, last, reward, never, done, None, after_avail, last_avail, after_state, last_state)
        replay.add(View(obs, avail, state), Acted(torch.full((1, 1, 1), t % 3), obs), step)
    other = Replay(7, spec, members=1, copies=1, seeds=[0], memory_size=1, with_state=True)
    other.load_state_dict(replay.state_dict())
    other.restore([(13, replay.read(13, 20))])
    for buffer in (replay, other):
        batch = buffer.sample(200)
        time = batch.obs[0, 0, :, 0].long()
        assert set(time.tolist()) == set(range(13, 20))
        assert torch.equal(batch.action[0, 0], time % 3)
        assert torch.equal(batch.memory[0, 0, :, 0].long(), time)
        assert torch.equal(batch.avail[0, 0].int().argmax(-1), time % 3) and (batch.avail.sum(-1) == 1).all()
        after = torch.where(time % 3 == 2, 100 + time, time + 1)
        assert torch.equal(batch.next_obs[0, 0, :, 0].long(), after)
        assert torch.equal(batch.next_avail[0, 0].int().argmax(-1), after % 3)
    assert torch.equal(other.seen["state"], replay.seen["state"])
    assert torch.equal(other.read(13, 20)["final_state"], replay.read(13, 20)["final_state"])


def departure(steps, left=(), over=()):
    """A replay of one member and one copy: agent 1 terminates at the steps ``left``, the episode ends at ``over``."""
    replay = make(50, seeds=(0,), copies=1)
    for time in range(steps):
        terminated = torch.tensor([False, time in left]).view(1, 2, 1)
        done = torch.full((1, 2, 1), time in over)
        obs = torch.full((1, 2, 1, 5), float(time))
        step = Step(obs + 1, obs + 1, obs[..., 0], terminated, done, None)
        replay.add(View(obs), Acted(torch.zeros(1, 2, 1, 1)), step)
    return replay


def test_rows_of_an_agent_that_left_do_not_count_until_its_copys_episode_ends():
    """It leaves at step 1 and the episode ends at step 3; what is said of it in between never happened."""
    replay = departure(6, left=(1, 2, 3), over=(3,))
    batch = replay.sample(300)
    time = batch.obs[..., 0]
    gone = (time == 2) | (time == 3)
    assert torch.equal(batch.valid[:, 1], ~gone[:, 1]) and batch.valid[:, 0].all() and gone.any()
    assert torch.equal(batch.reward[:, 0], time[:, 0]) and not batch.reward[:, 1][gone[:, 1]].any()
    assert departure(6, left=(3,), over=(3,)).sample(300).valid is None  # it left with all others


def test_who_has_left_is_saved_and_forgotten_where_the_environment_starts_anew():
    replay, saved = departure(2, left=(1,)), make(50, seeds=(0,), copies=1)
    saved.load_state_dict(replay.state_dict())
    saved.restore([(0, replay.read(0, 2))])
    assert saved.left.tolist() == [[[False], [True]]]
    saved.interrupt()
    assert not saved.left.any()
