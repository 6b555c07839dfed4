"""Rounds of lifelong agents whose experience is made up: every reward says where it comes from."""

import dataclasses

import torch

from marl.algos.dqn import DQN, DQNConfig
from marl.envs import make_env
from marl.lifelong.experience import extract, restored
from marl.lifelong.options import LifelongOptions
from marl.lifelong.round import Lent, Round
from marl.lifelong.tasks import Tasks
from marl.replay import Replay
from marl.streams import Streams
from marl.types import Acted

CONFIG = DQNConfig(hidden=(8,), conv="small", warmup=4, update_every=4, batch_size=8)
OPTIONS = LifelongOptions(
    tasks=("small/catch", "small/gather"), frames=80, copies=4, rehearse=0.25, dqn=CONFIG, env={"max_steps": 8}
)
TASKS = Tasks.of(OPTIONS.tasks, OPTIONS.env)


def lived(task, mark, steps=20, copies=2, config=CONFIG, seed=0):
    """A replay of one member that played at random; every reward is ``mark``."""
    env = make_env(task, seeds=[seed], copies=copies, options=OPTIONS.env)
    replay, choice, view = Replay(steps * copies, TASKS.spec, 1, copies, [seed]), Streams([seed], "choice"), env.start()
    for _ in range(steps):
        action = choice.integers(TASKS.spec.action_size, 1, copies)
        step = env.step(action)
        replay.add(view, Acted(action), step._replace(reward=torch.full_like(step.reward, mark)))
        view = step.view
    return restored(extract(replay, 0), config, TASKS.spec, seed)


def lender(seed, config=CONFIG):
    """A network by parameter, as the hub has it."""
    return {name: p.detach()[0, 0] for name, p in DQN(TASKS.spec, [config], [seed]).critic.named_parameters()}


def a_round(agents, borrowed, past, **changes):
    """Agents that all have ``small/catch``: those in ``borrowed`` (agent -> replay, network) do not play."""
    lent = {i: Lent(extract(replay, 0), network) for i, (replay, network) in borrowed.items()}
    seeds, options = list(range(10, 10 + agents)), dataclasses.replace(OPTIONS, **changes)
    return Round(["small/catch"] * agents, seeds, [1] * agents, lent, past, TASKS, options)


class Spy(DQN):
    """Keeps what it was told to learn."""

    def update(self, batch, lesson=None):
        self.told = [*getattr(self, "told", []), (batch, lesson)]
        return super().update(batch, lesson)


def learn(now, learner):
    """The whole round."""
    while now.done < 80:
        now.advance(learner)
    now.close()
    return learner
