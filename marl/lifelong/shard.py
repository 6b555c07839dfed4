"""Some agents of a team, in one process: they identify, borrow or learn, and share, when they are told to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from marl.algos.common import load_parts, save_parts
from marl.algos.dqn import DQN
from marl.lifelong.ewc import EWC, fisher
from marl.lifelong.hub import Hub, Match
from marl.lifelong.memories import KEPT, Memories
from marl.lifelong.options import LifelongOptions
from marl.lifelong.play import mean_returns
from marl.lifelong.round import Lent, Round
from marl.lifelong.simnet import Fingerprint, fingerprints, steps_played
from marl.lifelong.tasks import Tasks
from marl.modules.q_values import worth
from marl.streams import Streams, derive
from marl.types import State


class Point(NamedTuple):
    """One evaluation of some agents, each on the task that it learns.

    Attributes:
        number: 0 .. ``evals`` within the round.
        scores: ``[n]``, mean returns.
        frames: that each has played in this round up to now.
    """

    number: int
    scores: list[float]
    frames: list[int]


class Ended(NamedTuple):
    """What some agents can do after a round.

    Attributes:
        last: the round's last evaluation.
        scores: ``[n, M]``, mean returns of every agent on every task.
        updates: of all networks together in this round.
    """

    last: Point
    scores: Tensor
    updates: int


class Shard:
    """n agents as the members of one stacked DQN. What they know of all other agents comes from the hub.

    Every round is ``identify``, ``begin``, ``advance`` until done, ``end``, ``share``. Called again from the state
    before it, each of them does the same again.

    Args:
        options: of the run.
        tasks: that there are.
        agents: their numbers in the team.
        seeds: each agent's.
        ewc: strength of the penalty against forgetting.
        hub: the team's; None: it has none.
    """

    def __init__(
        self,
        options: LifelongOptions,
        tasks: Tasks,
        agents: Sequence[int],
        seeds: Sequence[int],
        ewc: float,
        hub: Hub | None,
    ) -> None:
        self.options, self.tasks, self.seeds, self.hub = options, tasks, list(seeds), hub
        self.names = [f"agent_{i}" for i in agents]
        self.learner = DQN(tasks.spec, [options.dqn] * len(seeds), seeds)
        self.ewc = EWC(ewc, options.ewc_mode)
        if ewc > 0:
            self.learner.penalties.append(self.ewc)
        self.memories = Memories(options.dqn, tasks.spec, seeds)
        self.steps = tasks.steps(options.frames, options.copies)  # of a round
        self.now: Round | None = None
        self.point = -1

    def close(self) -> None:
        """Let go of the round's environments."""
        if self.now is not None:
            self.now.close()
        self.now = None

    # ---- a round --------------------------------------------------------------------------------------------------

    def identify(self, turn: int, tasks: Sequence[int]) -> list[Fingerprint]:
        """Each agent's fingerprint of the task before it, in round ``turn``."""
        if self.options.identify == "told":
            return [{"task": row} for row in torch.eye(len(self.tasks.names))[list(tasks)]]
        names = [self.tasks.names[m] for m in tasks]
        return fingerprints(names, self._round_seeds(turn), self.options.identify_steps, self.tasks.env)

    def begin(self, turn: int, tasks: Sequence[int], matches: Sequence[Match] | None) -> list[bool]:
        """Borrow what is known, else be ready to play; whether each agent borrows.

        Args:
            turn: the round.
            tasks: each agent's.
            matches: the hub's answers; None: there is no hub, and tasks met in different rounds count as different.
        """
        lent: dict[int, Lent] = {}
        for i, match in enumerate(matches or []):
            known = self.hub.fetch(match.task, self.names[i]) if self.hub is not None and match.learnt else None
            if known is not None and known.transitions is not None:
                lent[i] = Lent(known.transitions, known.network)
        numbers = [turn + 1] * len(tasks) if matches is None else [match.task for match in matches]
        self.learner.steps = 0  # exploration begins anew, whoever drew with it in the rounds before
        self.learner.explore = Streams(self._round_seeds(turn), "round/explore")
        self.now = self._round(turn, tasks, numbers, lent)
        self.point = -1
        return [i in lent for i in range(len(tasks))]

    def advance(self, seconds: float) -> tuple[int, list[Point]]:
        """Learn for about so long, one step of all copies at least, where the round is not over.

        Returns:
            The environment steps of this round up to now, and the evaluations that were due before them.

        Raises:
            UserError: see ``Round``.
        """
        now, points = self._in_round(), list[Point]()
        until = time.monotonic() + seconds
        while now.done < self.steps:
            due = min(now.done * self.options.evals // self.steps, self.options.evals - 1)
            if due > self.point:
                self.point = due
                points.append(self._evaluated(due, self._returns(now.tasks)))
            now.advance(self.learner)
            if time.monotonic() >= until:
                break
        return now.done, points

    def end(self) -> Ended:
        """Evaluate everybody on every task, and hold on to what was learnt."""
        now, names = self._in_round(), self.tasks.names
        now.remember()
        scores = torch.stack([self._returns([name] * len(self.seeds)) for name in names], dim=1)
        own = scores[torch.arange(len(now.tasks)), [names.index(task) for task in now.tasks]]
        last = self._evaluated(self.options.evals, own)
        if self.ewc.strength > 0:
            batch = now.draw(self.options.ewc_samples)
            matters = fisher(self.learner.critic, worth, batch.obs, batch.action)
            self.ewc.remember(self.learner.critic, matters, torch.tensor(now.numbers)[:, None])
        return Ended(last, scores, now.updates * len(self.seeds))

    def share(self, last: Point) -> State:
        """Give the hub what was learnt by playing, remember it; the round is over, and this is the state after it.

        Args:
            last: of what ``end`` said.
        """
        now = self._in_round()
        if self.hub is not None:
            for i in now.players:
                network = {name: p.detach()[i, 0].clone() for name, p in self.learner.critic.named_parameters()}
                self.hub.publish(now.numbers[i], network, now.experience(i), last.scores[i], self.names[i])
        for i, number in enumerate(now.numbers if self.options.rehearse > 0 else []):
            self.memories.keep(i, number, now.experience(i, newest=KEPT))
        self.close()
        return self.state_dict()

    # ---- how it is done -------------------------------------------------------------------------------------------

    def _in_round(self) -> Round:
        if self.now is None:
            raise RuntimeError("no round has begun")
        return self.now

    def _returns(self, names: Sequence[str]) -> Tensor:
        """``[n]``, of each agent on a task of its own."""
        return mean_returns(self.learner, names, self.seeds, self.options.eval_episodes, self.tasks.env)

    def _round_seeds(self, turn: int) -> list[int]:
        return [derive(seed, "round", turn) for seed in self.seeds]

    def _round(self, turn: int, tasks: Sequence[int], numbers: Sequence[int], lent: dict[int, Lent]) -> Round:
        names, seeds = [self.tasks.names[m] for m in tasks], self._round_seeds(turn)
        self.made_from = {"turn": turn, "tasks": list(tasks), "numbers": list(numbers)}
        past = [self.memories.of_others(i, number) for i, number in enumerate(numbers)]
        return Round(names, seeds, numbers, lent, past, self.tasks, self.options)

    def _evaluated(self, number: int, scores: Tensor) -> Point:
        now = self._in_round()
        identified = self.hub is not None and self.options.identify == "simnet"
        first = steps_played(self.options.identify_steps) if identified else 0
        steps = [first + (now.done if i in now.players else 0) for i in range(len(self.seeds))]
        return Point(number, scores.tolist(), [n * self.tasks.skip for n in steps])

    PARTS = ("learner", "ewc", "memories")

    def state_dict(self) -> State:
        """Everything that changes."""
        state: State = {**save_parts(self, self.PARTS), "point": self.point, "now": None}
        if self.now is not None:
            state["now"] = {**self.made_from, "round": self.now.state_dict()}
        return state

    def load_state_dict(self, state: State) -> None:
        self.close()
        load_parts(self, self.PARTS, state)
        self.point, now = state["point"], state["now"]
        if now is not None:
            borrowed = now["round"]["borrowed"]
            lent = {int(i): Lent(*(saved[name] for name in Lent._fields)) for i, saved in borrowed.items()}
            self.now = self._round(now["turn"], now["tasks"], now["numbers"], lent)
            self.now.load_state_dict(now["round"])
