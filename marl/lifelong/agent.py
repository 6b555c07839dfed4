"""A team of lifelong agents: they recognise their task, borrow what is known of it or learn and share it.

After DistMT's deep agent (Section 4 of the paper); ``docs/lifelong/index.md`` says what was decided here.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from marl.classic.experiments.base import Row
from marl.engines import Engine, Worker
from marl.lifelong.crew import Crew
from marl.lifelong.hub import Hub, Match, Traffic
from marl.lifelong.options import LifelongOptions
from marl.lifelong.records import Records
from marl.lifelong.sequence import TaskSequence
from marl.lifelong.shard import Ended, Point, Shard
from marl.lifelong.simnet import THRESHOLD
from marl.lifelong.snapshot import Damaged, copy_hub
from marl.lifelong.tasks import Tasks
from marl.lifelong.weights import save_agents
from marl.streams import derive
from marl.types import State

log = logging.getLogger("marl")

SECONDS = 1.0
"""How long all workers learn before they are asked what came of it."""

TOLD = 0.5
"""The hub's threshold where agents are told their tasks: fingerprints are then 0 or the square root of 2 apart."""


class Plan(NamedTuple):
    """Who runs, in one seed of a run.

    Attributes:
        name: of the rows' series.
        agents: N.
        shared: the agents have a hub; else each learns alone, and does not identify its tasks, as nobody knows them.
        ewc: strength of the penalty against forgetting.
    """

    name: str
    agents: int
    shared: bool
    ewc: float


class Team:
    """N agents of one seed, with one hub or without any; agent i's numbers depend on the others through the hub alone.

    All rounds of all agents begin and end together. The agents live in an engine's workers, several of them stacked in
    each; when a worker dies, its agents are placed anew and do once more, to the same numbers, what they did since
    they were last saved.

    Args:
        options: of the run.
        seed: of everything random.
        tasks: that there are.
        plan: who runs.
        folder: where the hub is; what is there is not touched before the first round begins anew.
        engine: where the agents live.

    Attributes:
        sequence: who meets which task when.
        done: environment steps of learning, of ``total``, in all rounds; those of the agents that are behind.
        groups: each worker's agents.
        crew: the workers, once a round has begun.
    """

    def __init__(
        self, options: LifelongOptions, seed: int, tasks: Tasks, plan: Plan, folder: Path, engine: Engine
    ) -> None:
        self.options, self.tasks, self.plan, self.folder, self.engine = options, tasks, plan, folder, engine
        rounds = options.rounds or len(tasks.names)
        self.sequence = TaskSequence(len(tasks.names), plan.agents, rounds, options.draws, derive(seed, "sequence"))
        self.seeds = [derive(seed, "agent", i) for i in range(plan.agents)]
        self.groups = self._divided(min(options.workers or engine.capacity, plan.agents))
        self.steps = tasks.steps(options.frames, options.copies)  # of a round
        self.total = rounds * self.steps
        self.records = Records(plan.name, tasks.names, plan.agents)
        self.hub: Any = None  # a Hub, or what reaches it
        self.crew: Crew | None = None
        self.saved: list[State | None] = [None] * len(self.groups)
        self.reached = [0] * len(self.groups)
        self.matches: list[Match] | None = None
        self.begun = False
        self.copies_made = 0

    @property
    def done(self) -> int:
        return self.sequence.round * self.steps + (min(self.reached) if self.begun else 0)

    def advance(self) -> list[Row]:
        """A part of a round, and what was measured; while ``done < total``.

        Raises:
            UserError: see ``Round``; a full disk; a worker that dies again and again.
        """
        if self.crew is None:
            self._open_hub(None)
            self.crew = self._gather()
        if not self.begun:
            self._begin(self.crew)
        behind = [k for k, reached in enumerate(self.reached) if reached < self.steps]
        news = self.crew.ask(behind, "advance", [(SECONDS,)] * len(behind))
        for k, (reached, points) in zip(behind, news, strict=True):
            if reached > self.reached[k]:
                self.reached[k] = reached
                self.crew.progressed(k)
            self._record(k, points)
        if min(self.reached) >= self.steps:
            self._end(self.crew)
        return self.records.take()

    def close(self) -> None:
        """Let go of the workers and of the hub."""
        if self.crew is not None:
            self.crew.close()
        if self.hub is not None:
            self.hub.close()
        self.crew, self.hub = None, None

    # ---- a round --------------------------------------------------------------------------------------------------

    def _begin(self, crew: Crew) -> None:
        """Identify, and borrow what somebody has learnt."""
        tasks, turn = self.sequence.now(), self.sequence.round
        self.records.begin(tasks)
        self.matches = None
        if self.hub is not None:
            prints = [each for group in crew.ask_all("identify", turn, tasks) for each in group]
            self.matches = [self.hub.meet(prints[i], f"agent_{i}") for i in range(len(tasks))]
            for task, match in zip(tasks, self.matches, strict=True):
                self.records.matched(task, match)
        self.begun, self.reached = True, [0] * len(self.groups)
        borrow: list[bool] = []
        for k in range(len(self.groups)):  # one after the other: the hub notes in which order replays were fetched
            borrow += crew.ask([k], "begin", [crew.part(k, (turn, tasks, self.matches))])[0]
        for i, match in enumerate(self.matches or []):
            if match.learnt and not borrow[i]:
                message = "%s: what was learnt of task %d is gone; agent_%d learns it anew"
                log.warning(message, self.plan.name, match.task, i)
        if self.matches is not None:  # whoever takes over for a worker decides as it did
            self.matches = [match._replace(learnt=lent) for match, lent in zip(self.matches, borrow, strict=True)]
            if self.options.hub_bytes is not None:  # and keeps what it borrowed, which the hub may drop meanwhile
                self.saved = crew.ask_all("state_dict")

    def _end(self, crew: Crew) -> None:
        """Everybody is evaluated on everything, and shares what it learnt, in the agents' order."""
        ended: list[Ended] = crew.ask_all("end")
        for k, group in enumerate(ended):
            self._record(k, [group.last])
        self.saved = [crew.ask([k], "share", [(group.last,)])[0] for k, group in enumerate(ended)]
        traffic = self.hub.traffic() if self.hub is not None else {}
        counts = [traffic.get(f"agent_{i}", Traffic()) for i in range(self.plan.agents)]
        total = [count.sent + count.received for count in counts]
        frames = [n for group in ended for n in group.last.frames]
        scores = torch.cat([group.scores for group in ended])
        self.records.end(scores, frames, sum(group.updates for group in ended), total)
        self.begun = False
        self.sequence.advance()
        if self.sequence.finished:
            save_agents(self.folder, [state["learner"]["critic"] for state in self.saved if state is not None])

    def _record(self, k: int, points: Sequence[Point]) -> None:
        """Evaluations of worker k's agents."""
        for point in points:
            self.records.evaluated(point.number, self.groups[k], point.scores, point.frames)

    # ---- workers --------------------------------------------------------------------------------------------------

    def _divided(self, workers: int) -> list[list[int]]:
        return [part.tolist() for part in torch.arange(self.plan.agents).tensor_split(workers)]

    def _gather(self) -> Crew:
        return Crew(self.plan.name, self.groups, self._place, self._restore)

    def _place(self, agents: Sequence[int]) -> Worker:
        seeds = [self.seeds[i] for i in agents]
        return self.engine.place(Shard, self.options, self.tasks, agents, seeds, self.plan.ewc, self.hub)

    def _restore(self, k: int, worker: Worker, method: str) -> None:
        """From where worker k was last saved, in this round or before it, to where it was to do ``method``."""
        assert self.crew is not None
        state = self.saved[k]
        if state is not None:
            worker.call("load_state_dict", state).result()
        if not self.begun or method in ("begin", "load_state_dict"):
            return
        if state is None or state["now"] is None:
            begin = (self.sequence.round, self.sequence.now(), self.matches)
            worker.call("begin", *self.crew.part(k, begin)).result()
        reached = 0
        while reached < self.reached[k]:
            reached, points = worker.call("advance", SECONDS).result()
            self._record(k, points)  # it may get further than it was
        if method == "share":
            worker.call("end").result()

    # ---- the hub's folder, and going on ---------------------------------------------------------------------------

    def _open_hub(self, copy: int | None) -> None:
        """A new hub, or the one of which there is a copy of that number; nothing where there is no hub."""
        if not self.plan.shared:
            return
        place = self.folder / "hub"
        if copy is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            copy_hub(self._copy(copy), place)
        told = self.options.identify == "told"
        threshold = TOLD if told else THRESHOLD if self.options.threshold is None else self.options.threshold
        self.hub = self.engine.serve(Hub, place, threshold, self.options.hub_bytes)

    def _copy(self, number: int) -> Path:
        return self.folder / f"saved-{number}"

    PARTS = ("sequence", "records")
    NUMBERS = ("begun", "copies_made")

    def state_dict(self) -> State:
        """Everything that changes. The hub is copied beside it: ``load_state_dict`` takes it back to this moment.

        The last two copies stay, so that there is one for the checkpoint on the disk until the new one is there too.
        """
        if self.crew is not None:
            self.saved = self.crew.ask_all("state_dict")
        if self.hub is not None:
            self.copies_made += 1
            copy_hub(self.folder / "hub", self._copy(self.copies_made))
            with contextlib.suppress(OSError):
                shutil.rmtree(self._copy(self.copies_made - 2))
        state: State = {name: getattr(self, name) for name in self.NUMBERS}
        state["reached"] = list(self.reached)
        state |= {name: getattr(self, name).state_dict() for name in self.PARTS}
        state["matches"] = None if self.matches is None else [list(match) for match in self.matches]
        return {**state, "shards": {str(k): each for k, each in enumerate(self.saved)}}

    def load_state_dict(self, state: State) -> None:
        """Go on from there, in a new team.

        Where the hub's copy is gone or damaged the team begins anew instead, to the same numbers, and says no row that
        it has said before.

        Raises:
            UserError: the disk is full or cannot be written.
        """
        self.groups = self._divided(len(state["shards"]))  # this machine may have other cores than that of before
        self.copies_made = state["copies_made"]
        if self.copies_made:
            try:
                self._open_hub(self.copies_made)
            except Damaged as error:
                if "counted" not in state["records"]:  # an older version did not say how many rows there were
                    raise
                log.warning("%s; %s begins anew, to the same numbers", error, self.plan.name)
                self.records.repeat(state["records"])
                return
        for name in self.PARTS:
            getattr(self, name).load_state_dict(state[name])
        for name in self.NUMBERS:
            setattr(self, name, state[name])
        self.reached = list(state["reached"])
        self.matches = None if state["matches"] is None else [Match(*match) for match in state["matches"]]
        self.saved = [state["shards"][str(k)] for k in range(len(self.groups))]
        if self.saved[0] is None:  # nothing had begun
            return
        self.crew = self._gather()
        self.crew.ask(range(len(self.groups)), "load_state_dict", [(state,) for state in self.saved])
