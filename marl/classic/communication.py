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

    The paper's boxes send transitions. Sums over them (``sums_size`` numbers for each step of the episode) say the same
    and do not grow with their number; each message is the shorter of the two.

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

    def record(self, agents: int, transitions: int, up: int | None = None, down: int | None = None) -> None:
        """One round about ``transitions`` of the team, as many of each agent.

        ``up`` and ``down``: numbers in the sums that one agent would send and be sent; None: there are none to send.
        """
        sent, received = UP * transitions // agents, DOWN * transitions
        self.rounds += 1
        self.floats_up += agents * (sent if up is None else min(sent, up))
        self.floats_down += agents * (received if down is None else min(received, down))
        self.transition_floats += agents * (sent + received)

    def state_dict(self) -> State:
        return asdict(self)

    def load_state_dict(self, state: State) -> None:
        self.__dict__.update({name: int(state[name]) for name in asdict(self)})


def sums_size(dim: int, states: int) -> int:
    """Numbers in one step's sums: half of the symmetric ``Lambda`` with its diagonal, ``b``, ``N``, and the count."""
    return dim * (dim + 1) // 2 + dim + dim * states + 1
