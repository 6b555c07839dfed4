"""Which agents learn from which: row-stochastic neighbour weights W, fixed, random, or changing in time.

``W[i, j]`` is how much agent i listens to critic j. A row sums to one; a row of zeros has no neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from marl.config import suggestion
from marl.modules.guards import readable, require_tensor
from marl.streams import Streams
from marl.types import State, UserError


@runtime_checkable
class Graph(Protocol):
    """A source of weights, asked once for each blend.

    Attributes:
        identity: W is known to be the identity, so that nobody's critic but one's own need be asked.
        hears_itself: a W_ii of the newest weights may differ from 0.
    """

    identity: bool
    hears_itself: bool

    def __call__(self) -> Tensor:
        """``[P or 1, N, N]`` float64."""
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


def complete(n: int) -> Tensor:
    """``[n, n]``: everybody listens to all the others alike, not to itself. Of one agent alone: the identity."""
    return torch.ones(1, 1, dtype=torch.float64) if n == 1 else nearest(n, n - 1)


def nearest(n: int, k: int) -> Tensor:
    """``[n, n]``: the k nearest by index on a ring, +1, -1, +2, -2, ...; raises ``UserError`` unless 1 <= k < n."""
    _check_neighbours(n, k)
    agents = torch.arange(n)
    weights = torch.zeros(n, n, dtype=torch.float64)
    for step in range(k):
        offset = step // 2 + 1 if step % 2 == 0 else -(step // 2 + 1)
        weights[agents, (agents + offset) % n] = 1 / k
    return weights


def validated(weights: Tensor, name: str = "graph") -> Tensor:
    """User-given weights as ``[P or 1, N, N]`` float64; raises ``UserError`` unless each row sums to one or is zero.

    Where the numbers cannot be looked at (see ``readable``), only the shape is checked. ``name``: for the message.
    """
    require_tensor(name, weights)
    shape = list(weights.shape)
    if weights.dim() not in (2, 3) or shape[-1] != shape[-2]:
        raise UserError(f"{name}: expected weights of shape [N, N] or [P, N, N], got {shape}")
    weights = weights.detach().to(torch.float64)
    if not readable(weights):
        return weights if weights.dim() == 3 else weights.unsqueeze(0)
    sums = weights.sum(-1)
    wrong = ~(((sums - 1).abs() < 1e-5) | (weights == 0).all(-1)) | (weights < 0).any(-1)
    if wrong.any():
        row = [int(i) for i in wrong.nonzero()[0]]
        values = [round(float(x), 6) for x in weights[tuple(row)]]
        raise UserError(
            f"{name}: row {row[-1]} is {values}; each row must be non-negative and sum to one, or be all zero"
        )
    return weights if weights.dim() == 3 else weights.unsqueeze(0)


def listeners(graph: Graph, weights: Tensor) -> list[list[bool]] | None:
    """``[i][j]``: whether i hears j by these weights of that graph in one member or another; None: not known."""
    if isinstance(graph, Fixed):
        return graph.listens
    return (weights != 0).any(0).tolist() if readable(weights) else None


def sole(graph: Graph) -> list[int] | None:
    """The one critic that each agent hears, with weight 1, if that is known to be one; else None."""
    return graph.only if isinstance(graph, Fixed) else None


class Fixed:
    """The same weights at every call: ``[N, N]``, or ``[P, N, N]`` where members differ.

    Attributes:
        listens: ``listens[i][j]``: i hears j in one member or another; None: not known.
        only: see ``sole``.
        everybody: every agent is known to hear somebody.
    """

    def __init__(self, weights: Tensor) -> None:
        self._set(weights)

    def _set(self, weights: Tensor) -> None:
        self.weights = validated(weights).clone()  # what is known of them must stay true
        self.listens: list[list[bool]] | None = None
        self.only: list[int] | None = None
        self.identity, self.hears_itself, self.everybody = False, True, False
        if readable(self.weights):
            eye = torch.eye(self.weights.shape[-1]).to(self.weights)
            self.identity = torch.equal(self.weights, eye.expand_as(self.weights))
            self.hears_itself = bool(self.weights.diagonal(dim1=-2, dim2=-1).any())
            self.everybody = bool((self.weights != 0).any(-1).all())
            self.listens = (self.weights != 0).any(0).tolist()
            if self.everybody and all(sum(row) == 1 for row in self.listens):
                self.only = [row.index(True) for row in self.listens]

    def __call__(self) -> Tensor:
        return self.weights

    def state_dict(self) -> State:
        return {"weights": self.weights}

    def load_state_dict(self, state: State) -> None:
        self._set(state["weights"])


class Random:
    """k neighbours of each agent, without itself, drawn anew at every call and for each member from its own stream."""

    identity = hears_itself = False

    def __init__(self, n: int, k: int, streams: Streams) -> None:
        _check_neighbours(n, k)
        self.n, self.k, self.streams = n, k, streams

    def __call__(self) -> Tensor:
        keys = self.streams.uniform(self.n, self.n, dtype=torch.float64)
        keys.diagonal(dim1=-2, dim2=-1).fill_(-1.0)
        return torch.zeros_like(keys).scatter(-1, keys.topk(self.k).indices, 1 / self.k)

    def state_dict(self) -> State:
        return {"streams": self.streams.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.streams.load_state_dict(state["streams"])


class Changing:
    """Weights that a user's function gives anew at every call. What the function remembers is the user's to save."""

    identity = False
    hears_itself = True

    def __init__(self, function: Callable[[], Tensor]) -> None:
        self.function = function

    def __call__(self) -> Tensor:
        weights = validated(self.function())
        self.hears_itself = not readable(weights) or bool(weights.diagonal(dim1=-2, dim2=-1).any())
        return weights

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass


def make_graph(kind: str, n: int, neighbours: int, streams: Streams) -> Graph:
    """The graph named ``complete``, ``ring``, ``nearest``, ``random`` or ``self``.

    One agent alone has no neighbours and gets ``self`` whatever the name, so that it still learns from the adjacent
    states of its own critic. Raises ``UserError`` for another name, or for as many neighbours as there are agents.
    """
    makers: dict[str, Callable[[], Graph]] = {
        "complete": lambda: Fixed(complete(n)),
        "ring": lambda: Fixed(nearest(n, min(2, n - 1))),
        "nearest": lambda: Fixed(nearest(n, neighbours)),
        "random": lambda: Random(n, neighbours, streams),
        "self": lambda: Fixed(torch.eye(n)),
    }
    if n < 1:
        raise UserError(f"graph: expected one critic or more, got {n}")
    if kind not in makers:
        raise UserError(f"reciprocity.graph: {kind!r} is not a choice{suggestion(kind, makers)}")
    return makers["self" if n == 1 else kind]()


def _check_neighbours(n: int, k: int) -> None:
    if not isinstance(k, Integral) or not 1 <= k < n:
        raise UserError(f"reciprocity.neighbours: {k!r} of {n} agents; expected 1 to {n - 1}")
