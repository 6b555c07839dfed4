"""Which agent meets which task in which round."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from marl.config import suggestion
from marl.streams import Streams, derive
from marl.types import State, UserError

Draws: TypeAlias = Literal["permutation", "uniform"]


class TaskSequence:
    """Rounds in each of which every agent is given one of M tasks; where it stands can be saved.

    An agent's tasks depend on the seed and its own number: with more agents or more rounds, those that were there
    before stay as they were, and agent 0 alone meets what agent 0 among others meets.

    Args:
        tasks: M, how many there are.
        agents: N.
        rounds: T.
        draws: ``permutation``: each agent meets all tasks in an order of its own, then all again in another (the
            protocol of DistMT's experiments, where T = M); ``uniform``: any task with equal probability in every round
            (the protocol of its theory).
        seed: of all draws.

    Attributes:
        table: ``[T, N]`` int64, numbers of tasks.
        round: how many rounds are over.

    Raises:
        UserError: fewer than one task, agent or round, or no such draws.
    """

    def __init__(self, tasks: int, agents: int, rounds: int, draws: Draws, seed: int) -> None:
        for name, count in {"tasks": tasks, "agents": agents, "rounds": rounds}.items():
            if count < 1:
                raise UserError(f"{name}: expected 1 or more, got {count}")
        if draws not in get_args(Draws):
            raise UserError(f"no draws {draws!r}{suggestion(draws, get_args(Draws))}")
        streams = Streams([derive(seed, "agent", agent) for agent in range(agents)], "tasks")
        times = range(-(-rounds // tasks))
        if draws == "permutation":
            parts = [streams.uniform(tasks, dtype=torch.float64).argsort(-1) for _ in times]
        else:
            parts = [streams.integers(tasks, tasks) for _ in times]
        self.table: Tensor = torch.cat(parts, dim=1)[:, :rounds].T.contiguous()
        self.round = 0

    @property
    def finished(self) -> bool:
        return self.round >= len(self.table)

    def now(self) -> list[int]:
        """The task of every agent in this round; raises ``IndexError`` when all rounds are over."""
        return [int(task) for task in self.table[self.round]]

    def advance(self) -> None:
        """This round is over."""
        self.round += 1

    def state_dict(self) -> State:
        return {"round": self.round, "table": self.table}

    def load_state_dict(self, state: State) -> None:
        """Go on where it stood; raises ``UserError`` if the tasks up to there were others."""
        done = int(state["round"])
        if not torch.equal(state["table"][:done], self.table[:done]):
            raise UserError(
                f"tasks: other ones in the {done} rounds that are over; expected seed, draws, tasks, agents of before"
            )
        self.round = done
