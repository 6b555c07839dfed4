"""The server of DistMT-LSVI: the tables G and F, and Group (DistMT paper, Algorithm 1 line 6 and Algorithm 4).

It sees numbers and statistics, never which task they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from marl.classic.mdp import Array
from marl.classic.ridge import RidgeStatistics
from marl.config import suggestion
from marl.types import State, UserError

Linkage = Literal["complete", "centroid"]
SameRound = Literal["split", "merge"]


class Solved(NamedTuple):
    """An entry of F: what makes the policy of one label.

    Attributes:
        theta: ``[H, d]``.
        data: holds ``Lambda^-1`` ``[H, d, d]``, and the sums for ``merge``.
    """

    theta: Array
    data: RidgeStatistics


class Message(NamedTuple):
    """What one agent has sent by the end of a round.

    Attributes:
        value: ``V_1(s_0)`` of phase 1, the fingerprint of its task.
        told: the label that the server answered; None: a new task.
        solved: what phase 2 gave, where there was one.
    """

    value: float
    told: int | None
    solved: Solved | None


class Server:
    """Labels tasks by their fingerprints.

    Args:
        c_sep: fingerprints of one task are at most half of it apart (Lemma 2).
        linkage: ``complete``: a value belongs to ``G_m`` if it is that near to *all* values in it (as printed);
            ``centroid``: to their mean.
        same_round: an agent that has solved a task in the same round as another: ``split``: the first one's statistics
            stay (as printed); ``merge``: both are summed and planned anew.
        theta_of: plans on summed statistics; for ``merge``.

    Attributes:
        groups: G, the values of each label.
        table: F, an entry for each label.
        ambiguous: how often several labels fitted; the one with the nearest mean was taken.
    """

    def __init__(
        self, c_sep: float, linkage: Linkage, same_round: SameRound, theta_of: Callable[[RidgeStatistics], Array]
    ) -> None:
        for name, value, choices in (
            ("linkage", linkage, ("complete", "centroid")),
            ("same_round", same_round, ("split", "merge")),
        ):
            if value not in choices:
                raise UserError(f"{name}: {value!r} is not a choice{suggestion(value, choices)}")
        self.c_sep, self.linkage, self.same_round, self.theta_of = c_sep, linkage, same_round, theta_of
        self.groups: list[list[float]] = []
        self.table: list[Solved] = []
        self.ambiguous = 0

    def match(self, value: float) -> int | None:
        """The label whose group the value belongs to; None: a task not seen before."""
        near = [label for label in range(len(self.groups)) if self._distance(label, value) <= self.c_sep / 2]
        self.ambiguous += len(near) > 1
        return min(near, key=lambda label: abs(np.mean(self.groups[label]) - value), default=None)

    def group(self, messages: Sequence[Message]) -> list[int]:
        """Algorithm 4, once all agents are through the round: updates G and F, returns each agent's label.

        An agent that was told a label keeps it. The others go one after the other, and each sees the groups that those
        before it opened: of two that met a new task in one round, the second joins the first.
        """
        labels = []
        for value, told, solved in messages:
            label = self.match(value) if told is None else told
            if label is None:
                assert solved is not None, "an agent without a label has solved its task"
                label = len(self.groups)
                self.groups.append([])
                self.table.append(solved)
            elif solved is not None and self.same_round == "merge":
                data = self.table[label].data
                data.merge(solved.data)
                self.table[label] = Solved(self.theta_of(data), data)
            self.groups[label].append(value)
            labels.append(label)
        return labels

    def state_dict(self) -> State:
        return {
            "groups": [list(group) for group in self.groups],
            "ambiguous": self.ambiguous,
            "table": {str(i): {"theta": s.theta.copy(), "data": s.data.state_dict()} for i, s in enumerate(self.table)},
        }

    def load_state_dict(self, state: State) -> None:
        self.groups = [list(group) for group in state["groups"]]
        self.ambiguous = state["ambiguous"]
        self.table = [self._restored(state["table"][str(i)]) for i in range(len(self.groups))]

    def _distance(self, label: int, value: float) -> float:
        group = np.array(self.groups[label])
        if self.linkage == "centroid":
            return float(abs(group.mean() - value))
        return float(np.abs(group - value).max())

    @staticmethod
    def _restored(state: State) -> Solved:
        (horizon, dim, states) = state["data"]["next_sum"].shape
        data = RidgeStatistics((horizon,), dim, states)
        data.load_state_dict(state["data"])
        return Solved(np.array(state["theta"]), data)
