"""Lifelong agents: they recognise their task, borrow what is known of it or learn and share it, and do not forget.

After DistMT's deep agent (Section 4 of the paper); ``docs/lifelong/index.md`` says what was decided here.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import torch
from torch import Tensor

from marl.algos.common import load_parts, save_parts
from marl.algos.dqn import DQN
from marl.classic.experiments.base import Row
from marl.envs.base import EnvSpec
from marl.lifelong.ewc import EWC, fisher
from marl.lifelong.hub import Hub
from marl.lifelong.options import LifelongOptions
from marl.lifelong.play import mean_returns
from marl.lifelong.records import Records
from marl.lifelong.round import Round
from marl.lifelong.sequence import TaskSequence
from marl.lifelong.simnet import THRESHOLD, Fingerprint, fingerprints
from marl.lifelong.snapshot import copy_hub
from marl.modules.q_values import worth
from marl.streams import derive
from marl.types import State, UserError

CHUNK = 50
"""Steps of all copies in one ``advance``."""

TOLD = 0.5
"""The hub's threshold where agents are told their tasks: fingerprints are then 0 or the square root of 2 apart."""


class Team:
    """N agents of one seed, with one hub or without any; agent i's numbers depend on the others through the hub alone.

    All rounds of all agents begin and end together.

    Args:
        options: of the run.
        seed: of everything random.
        spec: of the tasks.
        skip: frames of the game in an environment step.
        name: of the rows' series.
        agents: N.
        shared: the agents have a hub; else each learns alone, and does not identify its tasks, as nobody knows them.
        ewc: strength of the penalty against forgetting.
        folder: where the hub is; what is there is not touched before the first round begins anew.

    Attributes:
        sequence: who meets which task when.
        learner: N members with one agent each.
        done: environment steps of learning, of ``total``, in all rounds.
    """

    def __init__(
        self,
        options: LifelongOptions,
        seed: int,
        spec: EnvSpec,
        skip: int,
        name: str,
        agents: int,
        shared: bool,
        ewc: float,
        folder: Path,
    ) -> None:
        self.options, self.spec, self.shared, self.folder, self.skip = options, spec, shared, folder, skip
        rounds = options.rounds or len(options.tasks)
        self.sequence = TaskSequence(len(options.tasks), agents, rounds, options.draws, derive(seed, "sequence"))
        self.seeds = [derive(seed, "agent", i) for i in range(agents)]
        self.names = [f"agent_{i}" for i in range(agents)]
        self.learner = DQN(spec, [options.dqn] * agents, self.seeds)
        self.ewc = EWC(ewc, options.ewc_mode)
        if ewc > 0:
            self.learner.penalties.append(self.ewc)
        self.steps = -(-options.frames // (skip * options.copies)) * options.copies  # of a task
        self.total = rounds * self.steps
        self.records = Records(name, options.tasks, agents)
        self.hub: Hub | None = None
        self.now: Round | None = None
        self.copies_made = 0

    @property
    def done(self) -> int:
        return self.sequence.round * self.steps + (self.now.done if self.now else 0)

    def advance(self) -> list[Row]:
        """A part of a round, and what was measured; while ``done < total``.

        Raises:
            UserError: see ``Round``; a full disk.
        """
        if self.now is None:
            self.now = self._begin()
            self._examine(self.now)
        for _ in range(CHUNK):
            self.now.advance(self.learner)
            if self.now.done >= self.steps:
                self._end(self.now)
                self.now = None
                break
            if self._point(self.now) > self.records.point:
                self._examine(self.now)
        return self.records.take()

    def close(self) -> None:
        """Let go of the hub and of the round's environments."""
        if self.hub is not None:
            self.hub.close()
            self.hub = None
        if self.now is not None:
            self.now.close()

    # ---- a round --------------------------------------------------------------------------------------------------

    def _begin(self) -> Round:
        """Identify, and borrow what somebody has learnt."""
        if self.sequence.round == 0:
            self._open_hub(None)
        tasks, turn = self.sequence.now(), self.sequence.round
        seeds = [derive(seed, "round", turn) for seed in self.seeds]
        numbers = [turn + 1] * len(tasks)
        lent: dict[int, dict[str, Tensor]] = {}
        if self.hub is not None:
            prints = self._fingerprints(tasks, seeds)
            for i, agent in enumerate(self.names):
                match = self.hub.meet(prints[i], agent)
                numbers[i] = match.task
                self.records.matched(tasks[i], match)
                known = self.hub.fetch(match.task, agent) if match.learnt else None
                if known is not None and known.transitions is not None:
                    lent[i] = known.transitions
        self.learner.steps = 0  # exploration begins anew
        return self._round(numbers, lent)

    def _round(self, numbers: list[int], lent: dict[int, dict[str, Tensor]]) -> Round:
        o, turn = self.options, self.sequence.round
        seeds = [derive(seed, "round", turn) for seed in self.seeds]
        tasks = [o.tasks[m] for m in self.sequence.now()]
        return Round(tasks, seeds, numbers, lent, self.spec, o.dqn, o.copies, self.steps)

    def _identification(self) -> int:
        """Frames that one agent plays to know its task."""
        return self.options.identify_steps * self.skip if self.shared and self.options.identify == "simnet" else 0

    def _fingerprints(self, tasks: list[int], seeds: list[int]) -> list[Fingerprint]:
        if self.options.identify == "told":
            return [{"task": row} for row in torch.eye(len(self.options.tasks))[tasks]]
        return fingerprints([self.options.tasks[m] for m in tasks], seeds, self.options.identify_steps)

    def _point(self, now: Round) -> int:
        """The evaluation that is due, from 0 on; the round's last one comes with its end."""
        return min(now.done * self.options.evals // self.steps, self.options.evals - 1)

    def _examine(self, now: Round) -> None:
        """Every agent on its own task."""
        scores = mean_returns(self.learner, now.tasks, self.seeds, self.options.eval_episodes)
        self._record(now, self._point(now), scores)

    def _record(self, now: Round, point: int, scores: Tensor) -> None:
        self.records.learning(point, self.sequence.now(), scores, self._played(now), self.options.evals)

    def _played(self, now: Round) -> list[int]:
        """Frames of each agent in this round."""
        first, played = self._identification(), now.done * self.skip
        return [first + (played if i in now.players else 0) for i in range(len(self.seeds))]

    def _end(self, now: Round) -> None:
        """Evaluate everybody on everything, share what was learnt, and hold on to it."""
        tasks = self.sequence.now()
        scores = torch.stack([self._all_on(task) for task in self.options.tasks], dim=1)
        own = scores[torch.arange(len(tasks)), tasks]
        self._record(now, self.options.evals, own)
        if self.hub is not None:
            for i in now.players:
                network = {name: p.detach()[i, 0].clone() for name, p in self.learner.critic.named_parameters()}
                self.hub.publish(now.numbers[i], network, now.experience(i), float(own[i]), self.names[i])
        if self.ewc.strength > 0:
            batch = now.draw(self.options.ewc_samples)
            matters = fisher(self.learner.critic, worth, batch.obs, batch.action)
            self.ewc.remember(self.learner.critic, matters, torch.tensor(now.numbers)[:, None])
        traffic = self.hub.traffic().values() if self.hub is not None else []
        total = sum(account.sent + account.received for account in traffic)
        self.records.end(tasks, scores, sum(self._played(now)), now.updates * len(tasks), total)
        now.close()
        self.sequence.advance()

    def _all_on(self, task: str) -> Tensor:
        """``[N]``, mean returns."""
        return mean_returns(self.learner, [task] * len(self.seeds), self.seeds, self.options.eval_episodes)

    # ---- the hub's folder, and going on ---------------------------------------------------------------------------

    def _open_hub(self, copy: int | None) -> None:
        """A new hub, or the one of which there is a copy of that number; nothing where there is no hub."""
        if not self.shared:
            return
        place = self.folder / "hub"
        if copy is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        elif not self._copy(copy).is_dir():
            raise UserError(f"{self._copy(copy)} is gone, the hub as it was at the checkpoint; make a new run")
        else:
            copy_hub(self._copy(copy), place)
        told = self.options.identify == "told"
        threshold = TOLD if told else THRESHOLD if self.options.threshold is None else self.options.threshold
        self.hub = Hub(place, threshold, self.options.hub_bytes)

    def _copy(self, number: int) -> Path:
        return self.folder / f"saved-{number}"

    PARTS = ("sequence", "learner", "ewc", "records")

    def state_dict(self) -> State:
        """Everything that changes. The hub is copied beside it: ``load_state_dict`` takes it back to this moment.

        The last two copies stay, so that there is one for the checkpoint on the disk until the new one is there too.
        """
        if self.hub is not None:
            self.copies_made += 1
            copy_hub(self.folder / "hub", self._copy(self.copies_made))
            with contextlib.suppress(OSError):
                shutil.rmtree(self._copy(self.copies_made - 2))
        now = None if self.now is None else self.now.state_dict()
        return {**save_parts(self, self.PARTS), "copies_made": self.copies_made, "now": now}

    def load_state_dict(self, state: State) -> None:
        """Go on from there, in a new team; raises ``UserError`` where the hub's copy is gone."""
        self.close()
        load_parts(self, self.PARTS, state)
        self.copies_made = state["copies_made"]
        if self.copies_made:
            self._open_hub(self.copies_made)
        self.now = None
        if state["now"] is not None:
            lent = {int(i): borrowed["bundle"] for i, borrowed in state["now"]["borrowed"].items()}
            self.now = self._round(state["now"]["numbers"], lent)
            self.now.load_state_dict(state["now"])
