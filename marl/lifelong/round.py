"""One round: every agent has a task, and plays it or replays what another agent lived through."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from marl.algos.common import Metrics
from marl.algos.dqn import DQN, DQNConfig
from marl.envs import make_env
from marl.envs.base import EnvSpec, Step
from marl.finite import require_finite
from marl.lifelong.abreast import Abreast
from marl.lifelong.experience import extract, in_order, load_replay, parted, restored, save_replay
from marl.lifelong.options import LifelongOptions
from marl.lifelong.tasks import Tasks
from marl.loop import random_actions
from marl.modules.q_values import QNetwork
from marl.replay import Replay
from marl.streams import Streams, derive
from marl.types import Acted, Batch, Schedule, State, View

log = logging.getLogger("marl")


class Lent(NamedTuple):
    """What an agent borrows.

    Attributes:
        transitions: see ``experience.extract``.
        network: the lender's, by parameter.
    """

    transitions: dict[str, Tensor]
    network: dict[str, Tensor]


class Round:
    """The agents are the members of one stacked learner, and all are updated at once, whoever plays.

    Args:
        tasks: each agent's, by id.
        seeds: each agent's for this round.
        numbers: what each agent calls its task: the hub's number.
        borrowed: by agent, what it learns from; the others play.
        past: each agent's replays of other tasks, which it rehearses.
        all_tasks: that there are.
        options: of the run.

    Attributes:
        players: who plays, in ascending order.
        done: environment steps up to now, of each agent that plays.
        updates: of each network up to now.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        seeds: Sequence[int],
        numbers: Sequence[int],
        borrowed: Mapping[int, Lent],
        past: Sequence[Sequence[Replay]],
        all_tasks: Tasks,
        options: LifelongOptions,
    ) -> None:
        config, copies = options.dqn, options.copies
        steps = all_tasks.steps(options.frames, copies)
        self.tasks, self.numbers, self.copies = list(tasks), list(numbers), copies
        self.spec = spec = all_tasks.spec
        self.players = [i for i in range(len(tasks)) if i not in borrowed]
        self.lent, self.past, self.rehearsed = dict(borrowed), past, int(config.batch_size * options.rehearse)
        self.borrowed = {i: restored(lent.transitions, config, spec, seeds[i]) for i, lent in borrowed.items()}
        taught = [lent.network for lent in borrowed.values()] if options.borrow == "distil" else []
        self.teachers = _stacked(taught, config, spec)
        own = [seeds[i] for i in self.players]
        self.warmup = Streams(own, "warmup")
        self.schedule, self.batch_size = Schedule(config.warmup, config.update_every), config.batch_size
        self.env: Abreast | None = None
        if self.players:
            self.seeds, self.workers, self.options = own, options.env_workers, all_tasks.env
            self.env = self._make("play")
            config = dataclasses.replace(config, buffer_size=min(config.buffer_size, steps))
            self.replay = Replay.of(config, spec, copies, own, 0)
            self.view = self.env.start()
        self.newest: tuple[View, Tensor, Step] | None = None  # not in the replay yet
        self.done = self.updates = 0

    def advance(self, learner: DQN) -> Metrics:
        """One step of every copy, and the updates that are due; what the last of them says, empty without any.

        Worker processes play while the networks learn, from what was lived through before this step.

        Raises:
            UserError: a gradient, or a reward of the step before, is not finite.
        """
        if self.env is None:
            self.done += self.copies
            return self._learn(learner, self.done)
        action = self._action(learner)
        self.env.step_async(action)
        self.remember()
        metrics = self._learn(learner, self.done + self.copies) if self.done else {}  # at first nothing can be drawn
        step = self.env.step_wait()
        self._say(self.env.events())
        self.newest = self.view, action, step
        self.view = step.view
        self.done += self.copies
        return metrics

    def remember(self) -> None:
        """Store the newest step; ``advance`` lets worker processes begin the next one before it does that.

        Raises:
            UserError: a reward is not finite.
        """
        if self.newest is not None:
            view, action, step = self.newest
            require_finite(step.reward, "reward", self.done - self.copies, self.spec.agents)
            self.replay.add(view, Acted(action), self.spec.taught(step))
            self.newest = None

    def _learn(self, learner: DQN, steps: int) -> Metrics:
        """The updates that are due after so many steps."""
        metrics: Metrics = {}
        due = max(self.schedule.due(steps) - self.updates, 0)
        for batch in parted(self.draw(due * self.batch_size), due) if due else ():
            lesson = self._lesson(batch)
            self._rehearse(batch, lesson)
            metrics = learner.update(batch, lesson)
            self.updates += 1
            require_finite(metrics["grad/critic_norm"], "gradient", self.done, self.spec.agents)
        return metrics

    def draw(self, size: int) -> Batch:
        """``size`` transitions of its task for each agent, ``[N, 1, size, ...]``."""
        self.remember()
        batches = [self.replay.sample(size)] if self.players else []
        batches += [replay.sample(size) for replay in self.borrowed.values()]
        return in_order(batches, [*self.players, *self.borrowed])

    def experience(self, agent: int, newest: int | None = None) -> dict[str, Tensor]:
        """What an agent learns from, its own or borrowed; see ``experience.extract``."""
        self.remember()
        if agent in self.borrowed:
            return extract(self.borrowed[agent], 0, newest)
        return extract(self.replay, self.players.index(agent), newest)

    def close(self) -> None:
        if self.env is not None:
            self.env.close()

    def _lesson(self, batch: Batch) -> Tensor | None:
        """Their lenders' values for those who borrow, NaN for all others, ``[N, 1, B, A]``; None if there are none."""
        if self.teachers is None:
            return None
        who = list(self.borrowed)
        lesson = torch.full((*batch.action.shape, self.spec.action_size), torch.nan)
        with torch.no_grad():
            lesson[who] = self.teachers(batch.obs[who])
        return lesson

    def _rehearse(self, batch: Batch, lesson: Tensor | None) -> None:
        """Put transitions of one earlier task of each agent, in turn, in the place of a batch's last rows."""
        for i, mine in enumerate(self.past):
            if not mine or not self.rehearsed:
                continue
            again = mine[self.updates % len(mine)].sample(self.rehearsed)
            for new, old in zip(batch, again, strict=True):
                if new is not None and old is not None:
                    new[i, :, -self.rehearsed :] = old[0]
            if lesson is not None:
                lesson[i, :, -self.rehearsed :] = torch.nan

    def _action(self, learner: DQN) -> Tensor:
        """What the players do next."""
        if self.done < self.schedule.warmup:
            return random_actions(self.warmup, self.spec, self.copies, self.view.avail)
        action = learner.act(self._for_all(self.view), explore=True).action
        return action[self.players] if self.borrowed else action

    def _for_all(self, view: View) -> View:
        """What those who play see, as rows of the whole team; the others see nothing."""
        return View(self._spread(view.obs, 0.0), None if view.avail is None else self._spread(view.avail, True))

    def _make(self, purpose: str) -> Abreast:
        """The players' tasks, each in episodes of the agent's own."""
        return Abreast(
            [
                make_env(
                    self.tasks[i],
                    seeds=[derive(seed, purpose)],
                    copies=self.copies,
                    workers=self.workers,
                    options=self.options,
                )
                for i, seed in zip(self.players, self.seeds, strict=True)
            ]
        )

    def _spread(self, x: Tensor, other: float | bool) -> Tensor:
        if not self.borrowed:
            return x
        whole = torch.full((len(self.tasks), *x.shape[1:]), other, dtype=x.dtype)
        whole[self.players] = x
        return whole

    def _say(self, events: Sequence[str]) -> None:
        for event in events:
            log.warning("%s", event)

    def state_dict(self) -> State:
        self.remember()
        lent = {
            str(i): {**self.lent[i]._asdict(), "sampler": replay.sampler.state_dict()}
            for i, replay in self.borrowed.items()
        }
        state: State = {"numbers": self.numbers, "borrowed": lent, "done": self.done, "updates": self.updates}
        if self.env is not None:
            seen = {name: x.clone() for name, x in self.view._asdict().items() if x is not None}
            state["playing"] = {
                "env": self.env.state_dict(),
                "replay": save_replay(self.replay),
                "view": seen,
                "warmup": self.warmup.state_dict(),
            }
        return state

    def load_state_dict(self, state: State) -> None:
        """Go on from there, in a round made with the same arguments; where an environment cannot, in new episodes.

        These have other seeds, else an agent would meet again what its replay holds already.
        """
        for i, replay in self.borrowed.items():
            replay.sampler.load_state_dict(state["borrowed"][str(i)]["sampler"])
        self.done, self.updates = state["done"], state["updates"]
        if self.env is None:
            return
        self.newest = None
        playing = state["playing"]
        if not self.env.spec.exact_state:
            self.env.close()
            self.env = self._make(f"play from {self.done}")
        self.env.load_state_dict(playing["env"])
        load_replay(self.replay, playing["replay"])
        self.warmup.load_state_dict(playing["warmup"])
        self.view = View(**playing["view"])
        if not self.env.spec.exact_state:
            self.view = self.env.start()
            self.replay.interrupt()
        self._say(self.env.events())


def _stacked(networks: Sequence[Mapping[str, Tensor]], config: DQNConfig, spec: EnvSpec) -> QNetwork | None:
    """Lenders' networks as the members of one stack; None without any."""
    if not networks:
        return None
    init = Streams(range(len(networks)), "lent")
    stack = QNetwork(init, spec, config.hidden, config.conv, config.duelling)
    with torch.no_grad():
        for name, parameter in stack.named_parameters():
            parameter[:, 0] = torch.stack([network[name] for network in networks])
    return stack
