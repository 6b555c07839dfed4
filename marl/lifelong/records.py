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
        point: which evaluation of this round was the last.
    """

    def __init__(self, team: str, tasks: Sequence[str], agents: int) -> None:
        self.team, self.tasks = team, list(tasks)
        self.rows: list[Row] = []
        self.point = 0
        self.round = self.frames = self.updates = self.right = self.wrong = 0
        self.visits = [[0] * len(tasks) for _ in range(agents)]
        self.truth: dict[str, int] = {}  # the hub's number -> the task of whoever met it first

    def take(self) -> list[Row]:
        """The rows, which are forgotten."""
        rows, self.rows = self.rows, []
        return rows

    def matched(self, task: int, match: Match) -> None:
        """An agent before that task was given that answer by the hub."""
        if match.new:
            right = task not in self.truth.values()
            self.truth[str(match.task)] = task
        else:
            right = self.truth.get(str(match.task)) == task
        self.right, self.wrong = self.right + right, self.wrong + (not right)

    def learning(self, point: int, tasks: Sequence[int], scores: Tensor, frames: Sequence[int], points: int) -> None:
        """Each agent's return ``[N]`` on the task that it learns.

        Args:
            point: which evaluation of this round, 0 .. points.
            tasks: each agent's.
            scores: the returns.
            frames: that each agent has played in this round.
            points: the last evaluation's number.
        """
        self.point = point
        for i, (task, score, played) in enumerate(zip(tasks, scores.tolist(), frames, strict=True)):
            name, x = agent_series(self.team, self.tasks[task], i), self.visits[i][task] * (points + 1) + point
            self.rows += [Row(name, "learning_return", x, score), Row(name, "learning_frames", x, float(played))]

    def end(self, tasks: Sequence[int], scores: Tensor, frames: int, updates: int, traffic: int) -> None:
        """A round is over.

        Args:
            tasks: each agent's.
            scores: ``[N, M]``, returns of every agent on every task.
            frames: that all agents played in this round.
            updates: of all networks in this round.
            traffic: bytes between the agents and the hub up to now.
        """
        self.round += 1
        self.frames, self.updates = self.frames + frames, self.updates + updates
        add = self.rows.append
        for m, name in enumerate(self.tasks):
            add(Row(task_series(self.team, name), "return", self.round, float(scores[:, m].mean())))
            for i in range(len(tasks)):
                add(Row(agent_series(self.team, name, i), "agent_return", self.round, float(scores[i, m])))
        for i, task in enumerate(tasks):
            self.visits[i][task] += 1
            add(Row(f"{self.team}, agent {i}", "task", self.round, float(task)))
        totals = {"frames": self.frames, "updates": self.updates, "traffic": traffic}
        for metric, value in {**totals, "right": self.right, "wrong": self.wrong}.items():
            add(Row(self.team, metric, self.round, float(value)))

    NUMBERS = ("point", "round", "frames", "updates", "right", "wrong")

    def state_dict(self) -> State:
        numbers = {name: getattr(self, name) for name in self.NUMBERS}
        return {**numbers, "visits": [list(row) for row in self.visits], "truth": dict(self.truth)}

    def load_state_dict(self, state: State) -> None:
        for name in self.NUMBERS:
            setattr(self, name, state[name])
        self.visits, self.truth = [list(row) for row in state["visits"]], dict(state["truth"])
