"""A round's step: worker processes play while networks learn, and it makes no difference who plays."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from marl.algos.dqn import DQN, DQNConfig
from marl.lifelong.options import LifelongOptions
from marl.lifelong.round import Round
from marl.lifelong.tasks import Tasks
from marl.types import UserError

GAMES = ("gym/CartPole-v1",)
CONFIG = DQNConfig(hidden=(8,), batch_size=4, warmup=8, update_every=2, buffer_size=64)


def playing(workers: int) -> tuple[Round, DQN]:
    tasks = Tasks.of(GAMES, {})
    options = LifelongOptions(tasks=GAMES, frames=400, copies=4, env_workers=workers, dqn=CONFIG)
    return Round(GAMES * 2, [1, 2], [1, 1], {}, [[], []], tasks, options), DQN(tasks.spec, [CONFIG] * 2, [1, 2])


def test_two_agents_whose_copies_live_in_processes_come_to_the_same_bits():
    ends = []
    for workers in (0, 2):
        now, learner = playing(workers)
        try:
            for _ in range(30):
                now.advance(learner)
            ends.append((learner.critic.flat.data.clone(), now.view.obs, now.updates))
        finally:
            now.close()
    (here, seen_here, updates), (there, seen_there, same) = ends
    assert torch.equal(here, there) and torch.equal(seen_here, seen_there)
    assert updates == same == (30 * 4 - 8) // 2  # 56: as many as are due after 120 steps


def test_updates_lie_between_a_step_and_its_answer_and_draw_only_what_was_there_before():
    now, learner = playing(0)
    told = []
    ask, answer, draw = now.env.step_async, now.env.step_wait, now.replay.sample
    now.env.step_async = lambda action: (told.append("ask"), ask(action))[1]
    now.env.step_wait = lambda: (told.append("answer"), answer())[1]
    now.replay.sample = lambda size: (told.append(f"{size} of {now.replay.written}"), draw(size))[1]
    for _ in range(4):
        now.advance(learner)
    # 4 steps of 4 copies: nothing is due at 4 or 8; (12 - 8) / 2 = 2 updates at 12, 2 more at 16, drawn at once
    assert told == ["ask", "answer"] * 2 + ["ask", "8 of 2", "answer", "ask", "8 of 3", "answer"]


def test_without_a_warm_up_the_first_updates_wait_for_something_to_draw():
    tasks = Tasks.of(GAMES, {})
    config = DQNConfig(hidden=(8,), batch_size=4, warmup=0, update_every=4, buffer_size=64)
    options = LifelongOptions(tasks=GAMES, frames=400, copies=4, dqn=config)
    now = Round(GAMES, [1], [1], {}, [[]], tasks, options)
    learner, counts = DQN(tasks.spec, [config], [1]), []
    for _ in range(3):
        now.advance(learner)
        counts.append(now.updates)
    assert counts == [0, 2, 3]  # the one that was due at 4 steps is made up for


def test_a_step_waits_to_be_stored_until_the_next_one_is_asked_for_but_is_there_for_whoever_looks():
    now, learner = playing(0)
    for n in range(1, 4):
        now.advance(learner)
        assert now.replay.written == n - 1
    assert len(now.experience(0)["reward"]) == now.replay.written == 3
    saved = now.state_dict()
    now.advance(learner)
    assert now.replay.written == 3 and saved["playing"]["replay"]["state"]["written"] == 3
    assert now.draw(1).reward.shape == (2, 1, 1) and now.replay.written == 4  # once, whoever looks how often


@pytest.mark.parametrize("moment", ["a step", "a restored state"])
def test_a_worker_of_an_environment_that_died_is_said_with_the_task(moment, caplog):
    now, learner = playing(2)
    try:
        now.advance(learner)
        state = now.state_dict()
        now.env.parts[1].pool.workers[0].process.kill()
        if moment == "a step":
            now.advance(learner)
        else:
            now.load_state_dict(state)
        assert caplog.messages == ["gym/CartPole-v1: worker 0 of 2 died: started again, 2 copies begin new episodes"]
    finally:
        now.close()


def test_saving_after_every_step_changes_nothing_and_a_round_goes_on_from_there():
    ends = []
    for saving in (False, True):
        now, learner = playing(0)
        for _ in range(12):
            now.advance(learner)
            if saving:
                state, kept = now.state_dict(), learner.state_dict()
                now, learner = playing(0)
                now.load_state_dict(state)
                learner.load_state_dict(kept)
        ends.append((learner.critic.flat.data, now.view.obs, now.state_dict()["playing"]["replay"]["slots"]["obs"]))
    for without, saved in zip(*ends, strict=True):
        assert torch.equal(without, saved)


class Lottery(gymnasium.Env):
    """Three steps of seeing the number that its generator drew as the episode began. It cannot be saved."""

    observation_space, action_space = Box(0, 1, (1,)), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.drawn, self.steps = self.np_random.random(1, dtype=np.float32), 0
        return self.drawn, {}

    def step(self, action):
        self.steps += 1
        return self.drawn, 0.0, self.steps == 3, False, {}


gymnasium.register("marl-lifelong/Lottery-v0", entry_point=Lottery)


def test_a_resumed_round_whose_task_cannot_be_saved_plays_none_of_its_episodes_again():
    names = ("gym/marl-lifelong/Lottery-v0",)
    tasks, options = Tasks.of(names, {}), LifelongOptions(tasks=names, frames=400, copies=4, dqn=CONFIG)
    learner, state, met = DQN(tasks.spec, [CONFIG], [1]), None, []
    for _ in range(3):  # two resumes
        now = Round(names, [1], [1], {}, [[]], tasks, options)
        if state is not None:
            now.load_state_dict(state)
        for _ in range(30):
            met += now.view.obs.flatten().tolist()
            now.advance(learner)
        state = now.state_dict()
    assert len(set(met)) == 3 * 4 * 10  # 4 copies play 10 episodes of 3 steps each time


def test_a_reward_that_is_no_number_is_never_stored():
    now, learner = playing(0)
    now.advance(learner)
    view, action, step = now.newest
    now.newest = view, action, step._replace(reward=step.reward * torch.nan)
    with pytest.raises(UserError, match=r"reward of .* is not finite at step 0"):
        now.state_dict()
    with pytest.raises(UserError, match="at step 0"):
        now.advance(learner)
    assert now.replay.written == 0


def test_so_is_the_last_reward_of_a_round_when_it_ends():
    now, learner = playing(0)
    now.advance(learner)
    view, action, step = now.newest
    now.newest = view, action, step._replace(reward=step.reward * torch.inf)
    with pytest.raises(UserError, match="is not finite at step 0"):
        now.remember()
