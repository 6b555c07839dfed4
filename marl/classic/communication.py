"""What a team says to its server and hears from it, counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from marl.types import State

BYTES = 8
"""Of one number, float or integer."""

UP, DOWN = 4, 5
"""Numbers of a transition ``(x, a, r, x')`` to the server, and from it, with the agent's name."""


@dataclass
class Communication:
    """An account of synchronisations in which every agent sends its news to a server and is sent everybody's.

    The agents exchange sums (``sums_size`` numbers for each step of the episode). The paper's boxes send the
    transitions themselves; what that would have cost is kept beside it.

    Attributes:
        rounds: synchronisations.
        floats_up: numbers that the agents sent.
        floats_down: numbers that the server sent, to all agents together.
        transition_floats: numbers, both ways, had transitions been sent: ``(x, a, r, x')`` up, and with the agent's
            name down.
    """

    rounds: int = 0
    floats_up: int = 0
    floats_down: int = 0
    transition_floats: int = 0

    @property
    def floats(self) -> int:
        """Both ways."""
        return self.floats_up + self.floats_down

    @property
    def bytes(self) -> int:
        """Both ways."""
        return BYTES * self.floats

    @property
    def transition_bytes(self) -> int:
        """Both ways, had transitions been sent."""
        return BYTES * self.transition_floats

    def record(self, agents: int, message: int, transitions: int) -> None:
        """One round in which every agent sent and received ``message`` numbers about ``transitions`` of the team."""
        self.rounds += 1
        self.floats_up += agents * message
        self.floats_down += agents * message
        self.transition_floats += UP * transitions + DOWN * transitions * agents

    def record_transitions(self, agents: int, transitions: int) -> None:
        """One round of the paper's messages: ``transitions`` of the team to the server, and all to every agent."""
        self.rounds += 1
        self.floats_up += UP * transitions
        self.floats_down += DOWN * transitions * agents
        self.transition_floats += UP * transitions + DOWN * transitions * agents

    def state_dict(self) -> State:
        return asdict(self)

    def load_state_dict(self, state: State) -> None:
        self.__dict__.update({name: int(state[name]) for name in asdict(self)})


def sums_size(dim: int, states: int) -> int:
    """Numbers in one step's sums: half of the symmetric ``Lambda`` with its diagonal, ``b``, ``N``, and the count."""
    return dim * (dim + 1) // 2 + dim + dim * states + 1
