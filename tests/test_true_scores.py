"""Clipped rewards reach the learner and nobody else; evaluations play by the game's own rules."""

import dataclasses
from types import SimpleNamespace

import torch

from marl.config import LoopConfig
from marl.envs.small import SmallOptions
from marl.envs.small.gates import Gates, GatesBoard
from marl.loop import Training, Transition, first_view
from marl.recipe import make_recipe
from marl.replay import Replay
from marl.types import Acted, Schedule


class Fives(Gates):
    """Five for a wall instead of one, to be learnt from as one."""

    def __init__(self):
        super().__init__([0], 1, None, SmallOptions(1))
        self.spec = dataclasses.replace(self.spec, clip_rewards=True)

    def advance(self, board, action, random):
        after, reward, over = super().advance(board, action, random)
        return after, 5 * reward, over


def test_the_replay_holds_what_is_learnt_and_the_log_what_was_scored():
    env = Fives()
    replay = Replay(8, env.spec, 1, 1, [0], batch_size=4, schedule=Schedule(0, 1))
    learner, recorder = SimpleNamespace(memory_size=0), SimpleNamespace(members=[])
    training = Training(LoopConfig(steps=1), [0], env, learner, replay, recorder, first_view(env, learner))
    env.board = GatesBoard(*(torch.tensor([x]) for x in (4, 2, 3, 0)))  # the wall arrives, its gap in rows 3 to 5
    action = torch.zeros(1, 1, 1, dtype=torch.int64)
    step = env.step(action)
    training.remember(Transition(training.view, Acted(action), step))
    assert step.reward.item() == 5
    assert replay.draw().reward.tolist() == [[[1.0] * 4]]
    assert training.returns.take()["train/return_mean"].item() == 5


def test_only_training_ends_episodes_with_a_life(monkeypatch):
    asked = []
    monkeypatch.setattr("marl.recipe.make_env", lambda id, **given: asked.append(given["options"]))
    recipe = make_recipe("dqn", "atari/Alien-ram", [0], {}, {"life_loss_ends": True}, {})
    recipe.make_env(1)
    recipe.make_env(1, purpose="eval")
    assert [options["life_loss_ends"] for options in asked] == [True, False]
    assert all(options["clip_rewards"] and options["noop_max"] == 30 for options in asked)
