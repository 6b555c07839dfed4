"""What lifelong agents measured, as the rows of an experiment; and the numbers that add up."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from marl.classic.experiments.base import Row
from marl.lifelong.hub import Match
from marl.types import State


def task_series(team: str, task: str) -> str:
    """The series of a team's mean over agents on a task, which is named without its family."""
    return f"{team}: {task.partition('/')[2]}"


def agent_series(team: str, task: str, agent: int) -> str:
    """The series of one agent on a task."""
    return f"{task_series(team, task)}, agent {agent}"


class Records:
    """Of one team. It knows the tasks' true names, which the agents do not.

    Args:
        team: its name.
        tasks: ids, M of them.
        agents: N.

    Attributes:
        rows: of what was measured since ``take``.
    """

    def __init__(self, team: str, tasks: Sequence[str], agents: int) -> None:
        self.team, self.tasks, self.agents = team, list(tasks), agents
        self.rows: list[Row] = []
        self.counted = self.known = 0  # rows up to the last ``take``; how many of the first of them are not given again
        self.now = [0] * agents  # each agent's task
        self.due = 0  # which evaluation of the round comes next
        self.waiting: dict[int, dict[int, tuple[float, int]]] = {}  # evaluation -> agent -> score, frames
        self.round = self.frames = self.updates = self.right = self.wrong = 0
        self.visits = [[0] * len(tasks) for _ in range(agents)]  # evaluations of each agent on each task
        self.truth: dict[str, int] = {}  # the hub's number -> the task of whoever met it first

    def take(self) -> list[Row]:
        """The rows, which are forgotten; after ``repeat`` without those that were given before."""
        rows, self.rows = self.rows, []
        fresh = rows[max(self.known - self.counted, 0) :]
        self.counted += len(rows)
        return fresh

    def repeat(self, state: State) -> None:
        """Before a first round played anew: ``take`` leaves out the rows that were given up to ``state``."""
        self.known = max(state["known"], state["counted"])

    def begin(self, tasks: Sequence[int]) -> None:
        """A round in which each agent has that task."""
        self.now, self.due, self.waiting = list(tasks), 0, {}

    def matched(self, task: int, match: Match) -> None:
        """An agent before that task was given that answer by the hub."""
        if str(match.task) not in self.truth:  # new; or made new by a question whose answer was lost on its way
            right = task not in self.truth.values()
            self.truth[str(match.task)] = task
        else:
            right = self.truth[str(match.task)] == task
        self.right, self.wrong = self.right + right, self.wrong + (not right)

    def evaluated(self, number: int, agents: Sequence[int], scores: Sequence[float], frames: Sequence[int]) -> None:
        """Some agents' returns on the tasks that they learn; rows come once all agents' are there, in their order.

        Args:
            number: which evaluation of this round, from 0 on. What is there already is not counted twice.
            agents: whose.
            scores: their returns.
            frames: that each of them has played in this round.
        """
        if number < self.due:
            return
        there = self.waiting.setdefault(number, {})
        there.update(zip(agents, zip(scores, frames, strict=True), strict=True))
        while len(self.waiting.get(self.due, {})) == self.agents:
            for i, (score, played) in sorted(self.waiting.pop(self.due).items()):
                task = self.now[i]
                name, x = agent_series(self.team, self.tasks[task], i), self.visits[i][task] + self.due
                self.rows += [Row(name, "learning_return", x, score), Row(name, "learning_frames", x, float(played))]
            self.due += 1

    def end(self, scores: Tensor, frames: Sequence[int], updates: int, traffic: Sequence[int]) -> None:
        """A round is over.

        Args:
            scores: ``[N, M]``, returns of every agent on every task.
            frames: that each agent played in this round.
            updates: of all networks in this round.
            traffic: bytes between each agent and the hub up to now.
        """
        self.round += 1
        self.frames, self.updates = self.frames + sum(frames), self.updates + updates
        add = self.rows.append
        for m, name in enumerate(self.tasks):
            add(Row(task_series(self.team, name), "return", self.round, float(scores[:, m].mean())))
            for i in range(self.agents):
                add(Row(agent_series(self.team, name, i), "agent_return", self.round, float(scores[i, m])))
        for i, task in enumerate(self.now):
            self.visits[i][task] += self.due
            add(Row(f"{self.team}, agent {i}", "task", self.round, float(task)))
            add(Row(f"{self.team}, agent {i}", "agent_traffic", self.round, float(traffic[i])))
        totals = {"frames": self.frames, "updates": self.updates, "traffic": sum(traffic)}
        for metric, value in {**totals, "right": self.right, "wrong": self.wrong}.items():
            add(Row(self.team, metric, self.round, float(value)))

    NUMBERS = ("due", "round", "frames", "updates", "right", "wrong")

    def state_dict(self) -> State:
        waiting = {str(number): {str(i): list(x) for i, x in there.items()} for number, there in self.waiting.items()}
        lists = {"now": list(self.now), "visits": [list(row) for row in self.visits]}
        numbers = {name: getattr(self, name) for name in self.NUMBERS}
        numbers |= {"counted": self.counted, "known": self.known}
        return {**numbers, **lists, "waiting": waiting, "truth": dict(self.truth)}

    def load_state_dict(self, state: State) -> None:
        for name in self.NUMBERS:
            setattr(self, name, state[name])
        self.counted, self.known = state.get("counted", 0), state.get("known", 0)  # older checkpoints have neither
        self.now, self.visits = list(state["now"]), [list(row) for row in state["visits"]]
        self.truth = dict(state["truth"])
        self.waiting = {
            int(number): {int(i): (float(score), int(played)) for i, (score, played) in there.items()}
            for number, there in state["waiting"].items()
        }
