"""Whose adjacent states the critics of a team in one network are asked at, and in which order the answers come."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hearers:
    """At whose adjacent states the N critics are asked, in L calls: in call l critic j at a state of agent who[l, j].

    Attributes:
        who: ``[L, N]``: the agents that hear critic j, itself where they are fewer than L; None: each its own, L = 1.
        joint: everybody hears all critics at one state, L = 1.
        place: ``[N]``: where among L N answers that of the first critic stands which agent i hears; 0 where it hears
            none. None: each hears its own.
    """

    who: Tensor | None
    joint: bool
    place: Tensor | None

    def of(self, agents: Tensor) -> Tensor:
        """What belongs to agents, ``[A, N, *]``, as the critics read it: ``[A, L, N, *]``."""
        if self.who is None:
            return agents.unsqueeze(1)
        return agents.index_select(1, self.who.flatten().to(agents.device)).unflatten(1, self.who.shape)

    def hearing(self, agents: Tensor) -> Tensor:
        """Agents' ``[R, N, *]`` where they hear: ``[L, N_j, R, *]``, of joint critics ``[N_i, 1, R, *]``."""
        return agents.transpose(0, 1).unsqueeze(1) if self.joint else self.of(agents).movedim(0, 2)

    def alone(self, answers: Tensor) -> Tensor:
        """``[S, L, N_j, R, C]`` -> ``[S, N_i, R, C]``, from the one whom each agent hears."""
        flat = answers.flatten(1, 2)
        return flat if self.place is None else flat.index_select(1, self.place.to(flat.device))

    def placed(self, answers: Tensor) -> Tensor:
        """``[S, L, N_j, R, C]`` -> ``[S, N_i, N_j, R, C]``, 0 where i does not hear j."""
        agents = torch.arange(answers.shape[2])
        heard = answers.new_zeros(len(answers), len(agents), *answers.shape[2:])
        heard[:, agents.unsqueeze(0) if self.who is None else self.who, agents] = answers
        return heard


@lru_cache(maxsize=64)
def hearers(listens: tuple[tuple[bool, ...], ...] | None, agents: int, joint: bool) -> Hearers:
    """By who listens to whom; None: everybody to everybody. Joint critics are asked at one state, which all share."""
    heard_by = [[i for i in range(agents) if listens is None or listens[i][j]] for j in range(agents)]
    most = max(1, *map(len, heard_by))
    who = torch.tensor([column + [j] * (most - len(column)) for j, column in enumerate(heard_by)]).T
    first = [next((j for j in range(agents) if i in heard_by[j]), 0) for i in range(agents)]
    call = [heard_by[j].index(i) if i in heard_by[j] and not joint else 0 for i, j in enumerate(first)]
    place = torch.tensor([row * agents + j for row, j in zip(call, first, strict=True)])
    own = torch.arange(agents)
    alike = joint or torch.equal(who, own.unsqueeze(0))
    return Hearers(None if alike else who, joint, None if torch.equal(place, own) else place)
