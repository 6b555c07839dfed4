"""Rehearsal: which rows of a batch come from which task met before, what is kept of each, and how it goes on."""

import dataclasses

import pytest
import test_replay_stacks as reels
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from round_tools import CONFIG, TASKS, Spy, a_round, learn, lender, lived

from marl.algos.dqn import DQN
from marl.checkpoint import Checkpoints
from marl.engines import make_engine
from marl.lifelong import agent, shard
from marl.lifelong.agent import Plan, Team
from marl.lifelong.experience import extract, restored
from marl.lifelong.memories import Memories
from marl.lifelong.options import LifelongOptions
from marl.lifelong.tasks import Tasks
from marl.types import Batch


def rewards(spy, who):
    """Of that agent, update by update."""
    return [batch.reward[who, 0].tolist() for batch, _ in spy.told]


class All:
    """In place of a sampler: every transition once, from the oldest to the newest."""

    def integers(self, high, count):
        assert count == high
        return torch.arange(high).view(1, -1)


def everything(replay):
    """All that it holds, as one batch."""
    sampler, replay.sampler = replay.sampler, All()
    batch = replay.sample(len(replay))
    replay.sampler = sampler
    return batch


def assert_equal(ours, theirs):
    for name, x, y in zip(Batch._fields, ours, theirs, strict=True):
        assert (x is None) == (y is None) and (x is None or torch.equal(x, y)), name


# ---- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share, count", [(0.25, 2), (0.3, 2), (0.99, 7), (1.0, 8), (0.125, 1)])
def test_the_last_rows_of_each_agents_batch_come_from_its_own_other_tasks_in_turn(share, count):
    """Agents 0 and 1 borrow, their task's rewards are 1 and 2; agent 2 plays. Of others they kept 10, 11 and 20."""
    borrowed = {i: (lived("small/catch", 1.0 + i), lender(i)) for i in range(2)}
    past = [[lived("small/gather", 10.0), lived("small/gather", 11.0)], [lived("small/gather", 20.0)], []]
    spy = learn(a_round(3, borrowed, past, rehearse=share), Spy(TASKS.spec, [CONFIG] * 3, [0, 1, 2]))
    for k, (zero, one) in enumerate(zip(rewards(spy, 0), rewards(spy, 1), strict=True)):
        assert zero == [1.0] * (8 - count) + [10.0 + k % 2] * count
        assert one == [2.0] * (8 - count) + [20.0] * count
    assert max(map(max, rewards(spy, 2))) < 10.0  # who has met nothing else learns from its own task alone


@pytest.mark.parametrize("share", [0.0, 0.12])  # .12 * 8 is less than a row
def test_without_a_row_to_rehearse_it_is_learnt_to_the_bit_as_if_nothing_had_been_met(share):
    found = []
    for past in ([[lived("small/gather", 10.0)]], [[]]):
        found.append(learn(a_round(1, {}, past, rehearse=share), DQN(TASKS.spec, [CONFIG], [0])).critic.flat.data)
    assert torch.equal(found[0], found[1])


def test_an_agent_that_has_met_nothing_else_learns_to_the_bit_the_same_beside_one_that_rehearses():
    found = []
    for past in ([[], [lived("small/gather", 10.0)]], [[], []]):
        learner = learn(a_round(2, {}, past), DQN(TASKS.spec, [CONFIG] * 2, [0, 1]))
        found.append(learner.critic.flat.data)
    assert torch.equal(found[0][0], found[1][0]) and not torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("changes", [{}, {"n_step": 3}], ids=["one step", "three steps"])
def test_a_rehearsed_row_is_a_whole_transition(changes):
    config = dataclasses.replace(CONFIG, **changes)
    memory = lived("small/gather", 10.0, config=config)
    held = everything(memory)
    now = a_round(1, {0: (lived("small/catch", 1.0, config=config), lender(0, config))}, [[memory]], dqn=config)
    for batch, _ in learn(now, Spy(TASKS.spec, [config], [0])).told:
        for b in (6, 7):
            same = torch.ones(len(memory), dtype=torch.bool)
            for mine, theirs in zip(batch, held, strict=True):
                if theirs is not None:
                    same &= (mine[0, 0, b] == theirs[0, 0]).reshape(len(memory), -1).all(1)
            assert same.any()


def test_what_is_rehearsed_is_forgotten_less():
    """The past paid 5 for everything, what is borrowed now pays 1, and nothing beyond the reward counts. Seen: the mean
    error on the past is .0006 with rehearsal, 3.7 without."""
    config = dataclasses.replace(CONFIG, gamma=0.0, hidden=(32,), lr=3e-3, batch_size=32, update_every=1)
    past, now = lived("small/gather", 5.0, config=config), lived("small/catch", 1.0, config=config)
    error = {}
    for share in (0.0, 0.25):
        learner = DQN(TASKS.spec, [config], [0])
        for replay, memories in ((past, []), (now, [past])):
            for _ in range(4):
                borrowed = {0: (replay, lender(0, config))}
                learn(a_round(1, borrowed, [memories], dqn=config, borrow="replay", rehearse=share), learner)
        batch = everything(past)
        with torch.no_grad():
            value = learner.critic(batch.obs).gather(-1, batch.action[..., None])
        error[share] = float((value - 5.0).abs().mean())
    assert error[0.25] < 0.1 < 2.0 < error[0.0]


# ---- what is kept --------------------------------------------------------------------------------------------------


def test_the_newest_transitions_are_kept_in_whole_steps_of_all_copies():
    replay = lived("small/catch", 1.0, steps=20, copies=4)
    whole = everything(replay)
    for newest, slots in ((80, 20), (1000, 20), (20, 5), (23, 5), (4, 1), (1, 1)):
        part = restored(extract(replay, 0, newest), CONFIG, TASKS.spec, 0)
        assert len(part) == 4 * slots
        assert_equal(everything(part), Batch(*(x if x is None else x[:, :, -4 * slots :] for x in whole)))


STACKED = {
    "stack": st.integers(1, 5),
    "capacity": st.integers(1, 12),
    "n_step": st.integers(1, 3),
    "chance": st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    "seed": st.integers(0, 99),
}


@settings(max_examples=60)
@given(steps=st.integers(1, 30), newest=st.integers(1, 30), **STACKED)
def test_with_stacked_frames_the_newest_are_what_the_whole_bundle_ends_with(
    stack, capacity, n_step, chance, seed, steps, newest
):
    once, _ = reels.pair(stack, capacity, n_step)
    reels.Reel(stack, seed, chance).run(steps, once)
    config, copies = dataclasses.replace(CONFIG, n_step=n_step), reels.E
    for member in range(reels.P):
        whole = everything(restored(extract(once, member), config, once.spec, 0))
        part = restored(extract(once, member, newest * copies), config, once.spec, 0)
        count = min(newest, steps, capacity) * copies
        assert len(part) == count
        assert_equal(everything(part), Batch(*(x if x is None else x[:, :, -count:] for x in whole)))


def test_the_usual_bug_is_seen_a_window_of_stacked_frames_that_forgets_what_was_before_it():
    once, _ = reels.pair(4, 30)
    reels.Reel(4, 0, 0.0).run(20, once)  # one long episode
    bundle = extract(once, 0, 5 * reels.E)
    right = everything(restored(bundle, CONFIG, once.spec, 0))
    assert bundle["begun"][0].all() and not bundle["begun"][1:].any()
    bundle["older_frames"] = torch.zeros_like(bundle["older_frames"])  # as if the episode had begun there
    wrong = everything(restored(bundle, CONFIG, once.spec, 0))
    differ = (right.obs != wrong.obs).any(-1)[0, 0].view(5, reels.E).all(1)
    assert differ.tolist() == [True, True, True, False, False]  # the fourth stack is the first one without them


def test_a_task_that_is_met_again_replaces_its_memory_and_others_stay():
    memories = Memories(CONFIG, TASKS.spec, [3, 4])
    for task, mark in ((1, 1.0), (2, 2.0), (1, 3.0)):
        memories.keep(0, task, extract(lived("small/catch", mark), 0))
    held = {task: [everything(r).reward.unique().tolist() for r in memories.of_others(0, task)] for task in (1, 2, 7)}
    assert held == {1: [[2.0]], 2: [[3.0]], 7: [[3.0], [2.0]]}
    assert memories.of_others(1, 1) == []  # the other agent has its own


def test_two_agents_draw_different_rows_of_the_same_experience_and_each_the_same_again():
    bundle, drawn = extract(lived("small/catch", 1.0), 0), []
    for _ in range(2):
        memories = Memories(CONFIG, TASKS.spec, [3, 4])
        for i in range(2):
            memories.keep(i, 1, bundle)
            drawn.append(memories.of_others(i, 2)[0].sample(8).obs)
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])


# ---- to go on ------------------------------------------------------------------------------------------------------


def from_disk(folder, state):
    saver = Checkpoints(folder)
    saver.save(0, state)
    return Checkpoints(folder).load().state


def test_memories_on_disk_go_on_to_the_bit_with_their_samplers_and_in_their_order(tmp_path):
    first = Memories(CONFIG, TASKS.spec, [3, 4])
    for i, task, mark in ((0, 12, 1.0), (0, 2, 2.0), (1, 3, 3.0)):  # a sort by name or number would bring 2 first
        first.keep(i, task, extract(lived("small/catch", mark, seed=task), 0, 12))
    for replay in first.of_others(0, 12) + first.of_others(1, 12):
        replay.sample(5)  # some streams went on, one did not
    second = Memories(CONFIG, TASKS.spec, [3, 4])
    second.keep(1, 9, extract(lived("small/gather", 9.0), 0))  # to be forgotten
    second.load_state_dict(from_disk(tmp_path, first.state_dict()))
    for i in range(2):
        ours, theirs = first.of_others(i, 0), second.of_others(i, 0)
        assert len(ours) == len(theirs) == 2 - i
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one.sample(9), other.sample(9))
            assert_equal(everything(one), everything(other))


THREE = LifelongOptions(
    tasks=("small/catch", "small/gather", "small/shoot"),
    frames=96,
    copies=4,
    identify="told",
    ewc_samples=4,
    evals=2,
    eval_episodes=2,
    rehearse=0.5,
    dqn=dataclasses.replace(CONFIG, warmup=40, buffer_size=60),
    env={"max_steps": 8},
)
ORDERS = [[0, 1, 2], [1, 0, 2]]  # agent 1 calls what it met 2, 1, 3


def team(folder, orders=ORDERS, shared=True, **changes):
    options = dataclasses.replace(THREE, **changes)
    plan = Plan("team", len(orders), shared, 10.0)
    made = Team(options, 0, Tasks.of(THREE.tasks, THREE.env), plan, folder / "team", make_engine("local"))
    made.sequence.table = torch.tensor(orders).T.contiguous()
    made.total = len(orders[0]) * made.steps
    return made


def run(made, until=None):
    while made.done < (made.total if until is None else until):
        made.advance()
    return made.crew.workers[0].made[1] if made.crew is not None else None


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """A piece of work is one step of all copies, and a memory holds 20 transitions."""
    monkeypatch.setattr(agent, "SECONDS", 0.0)
    monkeypatch.setattr(shard, "KEPT", 20)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("stop", [96 + 60, 192, 192 + 60])
def test_a_team_that_rehearses_goes_on_from_the_disk_bit_for_bit(tmp_path, shared, stop):
    straight = run(team(tmp_path / "a", shared=shared))
    first, second = team(tmp_path / "b", shared=shared), team(tmp_path / "b", shared=shared)
    run(first, stop)
    state = from_disk(tmp_path / "c", first.state_dict())
    first.close()
    second.load_state_dict(state)
    found = run(second)
    assert torch.equal(found.learner.critic.flat.data, straight.learner.critic.flat.data)
    for i in range(2):
        ours, theirs = found.memories.of_others(i, 0), straight.memories.of_others(i, 0)
        assert len(ours) == len(theirs) == 3
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one.sample(9), other.sample(9))


def test_in_the_middle_of_a_round_an_agent_rehearses_all_it_met_before_but_not_what_it_learns_now(tmp_path):
    made = team(tmp_path, [[0, 1, 0], [1, 0, 2]])
    past = [run(made, stop).now.past for stop in (60, 96 + 60, 192 + 60)]
    assert [[len(mine) for mine in each] for each in past] == [[0, 0], [1, 1], [1, 2]]
    kept = made.crew.workers[0].made[1].memories
    assert [list(each) for each in kept._kept] == [[1, 2], [2, 1]]
    assert past[2][0] == kept.of_others(0, 1) and len(past[2][0][0]) == 20


def test_players_keep_the_newest_that_they_lived_through_and_borrowers_what_they_borrowed(tmp_path):
    made = team(tmp_path, [[0, 1], [1, 0]])
    shard_ = run(made, 96)
    lent = {task: made.hub.fetch(task, "reader").transitions for task in (1, 2)}
    run(made)
    for i, task in ((0, 1), (0, 2), (1, 1), (1, 2)):
        mine = extract(shard_.memories._kept[i][task], 0)
        assert mine["reward"].shape == (5, 1, 4, 1)  # 20 transitions: the last 5 of 24 steps of 4 copies
        for name in ("obs", "action", "reward", "terminated"):
            assert torch.equal(mine[name], lent[task][name][-5:]), name


def test_an_isolated_agent_keeps_its_own_and_calls_it_by_the_round(tmp_path):
    """Both meet catch first, each its own; nobody tells them that it is the same one again."""
    shard_ = run(team(tmp_path, [[0, 0], [0, 0]], shared=False))
    kept = shard_.memories._kept
    assert [list(each) for each in kept] == [[1, 2], [1, 2]]
    held = [extract(kept[i][task], 0)["obs"] for i in range(2) for task in (1, 2)]
    assert all(not torch.equal(a, b) for k, a in enumerate(held) for b in held[:k])


def test_nothing_is_kept_where_nothing_is_rehearsed(tmp_path):
    shard_ = run(team(tmp_path, rehearse=0.0))
    assert shard_.memories.state_dict() == {"0": {}, "1": {}}
