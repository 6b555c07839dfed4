"""Rollout: every step in its slot, successors true, what never happened marked, restored in the middle to the bit."""

import itertools

import pytest
import torch

from marl.checkpoint import Checkpoints
from marl.envs.base import EnvSpec, Step
from marl.rollout import Rollout
from marl.types import Acted, View

P, N, T, E = 2, 3, 4, 2
COUNT = itertools.count()


def make(steps=T, masked=True, state_size=2, discrete=True, memory_size=3):
    actions = (2,) * N if discrete else (1,) * N
    spec = EnvSpec("test/diary", ("a", "b", "c"), (5,) * N, actions, discrete, masked=masked, state_size=state_size)
    return Rollout(steps, spec, P, E, memory_size)


def numbers(*shape):
    """Different everywhere, and never seen before."""
    size = int(torch.tensor(shape).prod())
    return (torch.arange(size) + 1000 * next(COUNT)).view(shape).float()


def flags(*true):
    """``[P, N, E]`` bool, True at the places given as (member, agent, copy)."""
    x = torch.zeros(P, N, E, dtype=torch.bool)
    for place in true:
        x[place] = True
    return x


def moment(terminated=(), done=(), lost=None):
    """A step with numbers of its own; copies in ``done`` (member, copy) end for all agents."""
    ended = flags(*((p, i, e) for p, e in done for i in range(N)))
    some = [torch.randint(2, (P, N, E, 2), generator=torch.Generator().manual_seed(next(COUNT))).bool() for _ in "ab"]
    step = Step(
        obs=numbers(P, N, E, 5),
        next_obs=numbers(P, N, E, 5),
        reward=numbers(P, N, E),
        terminated=flags(*terminated),
        done=ended,
        lost=None if lost is None else flags(*((p, i, e) for p, e in lost for i in range(N))),
        avail=some[0],
        next_avail=some[1],
        state=numbers(P, E, 2),
        next_state=numbers(P, E, 2),
    )
    view = View(numbers(P, N, E, 5), some[1], numbers(P, E, 2), numbers(P, N, E, 3))
    return view, Acted(numbers(P, N, E).long() % 2, numbers(P, N, E, 3)), step


def fill(rollout, *moments):
    for each in moments:
        rollout.add(*each)
    return rollout


def test_each_step_lies_in_its_slot_as_it_was_seen_done_and_answered():
    moments = [moment(done=[(0, 1)] if t == 1 else []) for t in range(T)]
    rollout = fill(make(), *moments)
    assert len(rollout) == T * E
    batch = rollout.draw()
    for t, (view, acted, step) in enumerate(moments):
        assert torch.equal(batch.obs[:, :, t], view.obs) and torch.equal(batch.avail[:, :, t], view.avail)
        assert torch.equal(batch.state[:, t], view.state) and torch.equal(batch.next_state[:, t], step.next_state)
        assert torch.equal(batch.memory[:, :, t], view.memory)  # before the step, not what act noted
        assert torch.equal(batch.action[:, :, t], acted.action)
        for name in ("reward", "next_obs", "terminated", "done"):  # next_obs: the last of an episode where it ended
            assert torch.equal(getattr(batch, name)[:, :, t], getattr(step, name))
    assert batch.valid.all() and len(rollout) == 0


def test_what_an_environment_or_a_learner_does_not_have_is_none():
    batch = fill(make(masked=False, state_size=0, memory_size=0), moment()).draw()
    assert batch.avail is None and batch.state is None and batch.next_state is None and batch.memory is None


def test_an_agent_that_left_is_not_learnt_from_until_its_copys_episode_ends():
    # copy 0 of member 1: agent 2 terminates at step 0, the episode ends at step 2, the next one begins at step 3
    rollout = fill(make(), moment(terminated=[(1, 2, 0)]), moment(terminated=[(1, 2, 0)]))
    fill(rollout, moment(terminated=[(1, 2, 0)], done=[(1, 0)]), moment())
    valid = rollout.draw().valid
    assert valid[1, 2, :, 0].tolist() == [True, False, False, True]
    assert (~valid).sum() == 2
    # and over the border of two rollouts
    fill(rollout, *[moment()] * 3, moment(terminated=[(0, 0, 1)]))
    assert rollout.draw().valid.all()
    fill(rollout, moment(terminated=[(0, 0, 1)]))
    assert (~rollout.draw().valid).nonzero().tolist() == [[0, 0, 0, 1]]


def test_a_lost_transition_is_not_valid_and_the_step_before_it_ends_there():
    rollout = fill(make(), moment(), moment(done=[(0, 1)], lost=[(0, 1)]), moment(), moment())
    batch = rollout.draw()
    assert batch.valid[0, :, :, 1].tolist() == [[True, False, True, True]] * N
    assert batch.done[0, :, :, 1].tolist() == [[True, True, False, False]] * N
    assert not batch.terminated.any()  # cut, as by a time limit
    assert batch.valid[1].all() and batch.valid[0, :, :, 0].all() and not batch.done[1].any()


def test_after_an_interruption_the_step_before_is_cut_and_everybody_is_back():
    rollout = fill(make(), moment(terminated=[(0, 0, 0)]))
    rollout.interrupt()
    batch = fill(rollout, moment()).draw()
    assert batch.done[:, :, 0].all() and not batch.done[:, :, 1].any()
    assert batch.valid.all() and batch.terminated.sum() == 1
    rollout.interrupt()  # an empty one has nothing to cut
    assert not fill(rollout, moment()).draw().done.any()


def test_a_full_rollout_takes_no_more_and_the_schedule_says_when_to_draw():
    rollout = fill(make(), *[moment() for _ in range(T)])
    with pytest.raises(ValueError, match="4 steps is full"):
        rollout.add(*moment())
    assert rollout.schedule.warmup == 0
    assert [rollout.schedule.due(steps) for steps in (0, T * E - 1, T * E, 2 * T * E)] == [0, 0, 1, 2]


def same(a, b):
    return all(x is y or torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("held", range(T + 1))
def test_a_checkpoint_in_the_middle_of_a_rollout_goes_on_in_the_same_bits(tmp_path, held):
    moments = [moment(terminated=[(0, 1, 1)] if t < 3 else []) for t in range(T)]
    rollout = fill(make(), *moments[:held])
    Checkpoints(tmp_path).save(held, {"buffer": rollout.state_dict()}, rollout)
    fill(rollout, *moments[held:])
    expected = [x if x is None else x.clone() for x in rollout.draw()]
    again = fill(make(), *[moment()] * 2)  # whatever it held before
    loaded = Checkpoints(tmp_path).load()
    again.load_state_dict(loaded.state["buffer"])
    again.restore(loaded.chunks)
    assert len(again) == held * E
    assert same(fill(again, *moments[held:]).draw(), expected)


def test_a_saved_state_does_not_change_with_the_rollout():
    rollout = fill(make(), moment())
    state = rollout.state_dict()
    kept = {name: x.clone() for name, x in state["rows"].items()}
    fill(rollout, moment(), moment()).draw()
    fill(rollout, moment())
    assert all(torch.equal(x, kept[name]) for name, x in state["rows"].items())


def test_vectors_are_kept_as_they_are():
    rollout = make(discrete=False, masked=False)
    view, _, step = moment()
    action = numbers(P, N, E, 1)
    rollout.add(view, Acted(action), step)
    assert torch.equal(rollout.draw().action[:, :, 0], action)
