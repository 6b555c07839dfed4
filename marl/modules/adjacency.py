"""Adjacency spaces: for a batch of states s, the states s# near enough that a critic's value there is worth hearing.

States are ``[P, G, B, D]``: P members, G = N agents' own states or 1 joint state, B rows of a batch. The paper
(policy reciprocity, Definition 2) calls s# adjacent at level rho if at most rho coordinates differ, and leaves open how
such states are found when coordinates are real numbers: the six constructions below are this project's.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from marl.config import suggestion
from marl.modules.ahead import Ahead
from marl.modules.guards import batched, full_precision, passing, require_tensor
from marl.modules.moments import Moments
from marl.streams import Streams
from marl.types import State, UserError


class AdjacencySpace(ABC):
    """A rule that gives S#.

    Attributes:
        levels: the adjacency level rho of each state that a call yields, in order.
        views: critic j is asked from j's own point of view of the moment, not at agent i's state.
    """

    levels: tuple[int, ...]
    views = False

    @abstractmethod
    def __call__(self, states: Tensor, real: Tensor | None = None) -> Iterator[Tensor]:
        """States ``[P, G, B, D]`` -> as many adjacent states of the same shape as there are levels.

        Args:
            real: ``[P, 1 or G, B]`` bool, False where a row only fills up the batch: no state is made from it. Where
                too few are real, a row's own numbers stand for those of others. None: all are.
        """

    def apart(self) -> AdjacencySpace:
        """A space for one of several critics that are asked one at a time: it remembers that critic's states alone."""
        return self

    def around(self, states: Tensor) -> list[Tensor]:
        """S# of one critic's states ``[B, D]``, each in that shape."""
        return [near.squeeze((0, 1)) for near in self(states[None, None])]

    def state_dict(self) -> State:
        """Always has the same keys: they tell the states of different kinds of spaces apart."""
        return {}

    def load_state_dict(self, state: State) -> None:
        return


def level_weights(levels: Sequence[int]) -> list[float]:
    """softmax(d - rho) over the adjacent states (equation 4); d, the number of coordinates, cancels."""
    weights = [math.exp(min(levels) - rho) for rho in levels]
    return [weight / sum(weights) for weight in weights]


class Exact(AdjacencySpace):
    """S# = {s}."""

    levels = (0,)

    def __call__(self, states: Tensor, real: Tensor | None = None) -> Iterator[Tensor]:
        yield states


class Peer(Exact):
    """The same moment as agent j sees it: its own observation, or the joint one permuted into its perspective."""

    views = True


class Nearest(AdjacencySpace):
    """The ``count`` nearest other rows of the batch, all of one level.

    Args:
        metric: ``"euclidean"`` distance, or ``"cosine"`` (1 - the cosine of the angle).
        mask: ``[G, D]`` bool, True where a coordinate is real: padding has no part in the distance and is never
            changed. None: all are real.
    """

    def __init__(self, count: int, metric: str, mask: Tensor | None = None) -> None:
        if metric not in ("euclidean", "cosine"):
            raise UserError(
                f"reciprocity.metric: {metric!r} is not a choice{suggestion(metric, ('euclidean', 'cosine'))}"
            )
        self.levels = (1,) * count
        self.metric = metric
        self.mask = _padded(mask)

    def __call__(self, states: Tensor, real: Tensor | None = None) -> Iterator[Tensor]:
        count = len(self.levels)
        _need_fractions("knn", states)
        _need_rows("knn", states, count + 1)
        mask = None if self.mask is None else self.mask.to(states.device).unsqueeze(-2)
        known = states if mask is None else states.masked_fill(~mask, 0.0)
        known = known.float() if known.element_size() < 4 else known  # torch has no cdist of half precision
        if self.metric == "euclidean":
            centre = known.nan_to_num(0.0, 0.0, 0.0).mean(-2, keepdim=True)
            known = known - centre  # cdist subtracts squares, which of large numbers leave little
            distance = torch.cdist(known, known)
        else:
            with full_precision(known):
                unit = torch.nn.functional.normalize(known, dim=-1)
                distance = 1 - unit @ unit.transpose(-1, -2)
        if real is not None:
            distance.masked_fill_(~real.unsqueeze(-2), torch.inf)
        distance.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
        far, rows = distance.topk(count, largest=False)
        if real is not None:
            rows = torch.where(far.isinf(), torch.arange(len(far[0, 0]), device=rows.device).unsqueeze(-1), rows)
        for k in range(count):
            near = states.gather(2, rows[..., k : k + 1].expand_as(states))
            yield near if mask is None else torch.where(mask, near, states)


class Perturbed(AdjacencySpace):
    """States with rho coordinates changed, rho of them drawn anew for each state.

    Args:
        streams: P random streams.
        rho: the adjacency levels; D or more means all coordinates.
        count: adjacent states for each level.
        mask: ``[G, D]`` bool, True where a coordinate is real: padding is never changed. None: all are real.
    """

    def __init__(self, streams: Streams, rho: Sequence[int], count: int, mask: Tensor | None = None) -> None:
        self.streams = streams
        self.levels = tuple(level for level in rho for _ in range(count))
        known = _padded(mask)
        self.padded = known is not None
        if known is not None:
            self.mask = known
            self.sizes = self.mask.sum(-1).view(-1, 1, 1)
            self.smallest = int(self.sizes.min())
            self.real = self.mask.int().argsort(dim=-1, descending=True, stable=True)  # real coordinates first

    @abstractmethod
    def values(self, states: Tensor, index: Tensor, real: Tensor | None) -> Tensor:
        """What the coordinates ``index`` ``[P, G, B, rho]`` change to, in the same shape."""

    def changes(self, states: Tensor, rho: int, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """Which coordinates change, and to what: two of ``[P, G, B, rho]``."""
        index = self._coordinates(states, rho)
        return index, self.values(states, index, real)

    def __call__(self, states: Tensor, real: Tensor | None = None) -> Iterator[Tensor]:
        for rho in self.levels:
            index, values = self.changes(states, min(rho, states.shape[-1]), real)
            near = states.scatter(-1, index, values)
            if self.padded and rho > self.smallest:  # an agent with fewer than rho coordinates drew padding too
                near = torch.where(self.mask.to(states.device).unsqueeze(-2), near, states)
            yield near

    def _coordinates(self, states: Tensor, rho: int) -> Tensor:
        """``[P, G, B, rho]``: different coordinates of each state, the real ones before any padding."""
        members, groups, rows, width = states.shape
        if rho == 1:  # the default, on the path of every training step: one number a state, not D
            sizes = self.sizes if self.padded else width
            index = (self.streams.uniform(groups, rows, 1) * sizes).long()
            if self.padded:
                index = self.real.unsqueeze(-2).expand(members, groups, rows, width).gather(-1, index)
        else:
            keys = self.streams.uniform(groups, rows, width)
            if self.padded:
                keys = keys.masked_fill(~self.mask.unsqueeze(-2), -1.0)
            index = keys.topk(rho).indices
        return index.to(states.device)

    def state_dict(self) -> State:
        return {"streams": self.streams.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.streams.load_state_dict(state["streams"])


class Resample(Perturbed):
    """The coordinates take the values that they have in another row of the batch, one random row for each state."""

    def __init__(self, streams: Streams, rho: Sequence[int], count: int, mask: Tensor | None = None) -> None:
        super().__init__(streams, rho, count, mask)
        self.ahead = Ahead(streams)
        self.quick = set(self.levels) == {1} and not self.padded

    def __getstate__(self) -> State:
        self.ahead.rewind()  # copies draw their own, rather than carry megabytes along
        return vars(self)

    def around(self, states: Tensor) -> list[Tensor]:
        if not self.quick or passing():
            return super().around(states)
        _need_rows("resample", states, 2)
        return [self._replaced(states, *self.ahead.draw(states)) for _ in self.levels]

    @staticmethod
    def _replaced(states: Tensor, source: Tensor, index: Tensor | None) -> Tensor:
        """States ``[B, D]`` with what ``Ahead.draw`` says in its place."""
        near = states.take(source)
        return near if index is None else states.scatter(-1, index, near)

    def changes(self, states: Tensor, rho: int, real: Tensor | None) -> tuple[Tensor, Tensor]:
        if rho > 1 or self.padded or real is not None:
            self.ahead.rewind()
            return super().changes(states, rho, real)
        # The default, on the path of every training step: one number says both which row and which coordinate.
        _need_rows("resample", states, 2)
        alone = passing()
        source, index = self.ahead.draw_one(states) if alone else self.ahead.draw(states)
        assert index is not None  # of a population's states
        return index, states.flatten()[source] if alone else states.take(source)  # vmap knows no take

    def values(self, states: Tensor, index: Tensor, real: Tensor | None) -> Tensor:
        _, groups, rows, width = states.shape
        _need_rows("resample", states, 2)
        if real is None:
            ahead = self.streams.integers(rows - 1, groups, rows, 1).to(states.device)
            other = (ahead + torch.arange(1, rows + 1, device=states.device).unsqueeze(-1)) % rows
        else:
            other = self._other(real, groups).unsqueeze(-1).to(states.device)
        return states.flatten(2).gather(-1, (other * width + index).flatten(2)).view_as(index)

    def _other(self, real: Tensor, groups: int) -> Tensor:
        """For each row one of the other real rows: ``[P, 1 or G, B]`` -> ``[P, G, B]`` int64."""
        real = real.cpu().expand(-1, groups, -1)
        count, place = real.sum(-1, keepdim=True), real.cumsum(-1)  # place: the next real row's number
        further = (self.streams.uniform(groups, real.shape[-1]) * (count - 1)).long()
        order = real.int().argsort(dim=-1, descending=True, stable=True)  # real rows first
        other = order.gather(-1, (place + further) % count.clamp(min=1))
        return torch.where(count > 0, other, torch.arange(real.shape[-1]))

    def state_dict(self) -> State:
        self.ahead.rewind()
        return super().state_dict()

    def load_state_dict(self, state: State) -> None:
        self.ahead.rewind()
        super().load_state_dict(state)


class Mask(Perturbed):
    """The coordinates become zero, as if the observation matrix lacked their rows (Remark 1)."""

    def values(self, states: Tensor, index: Tensor, real: Tensor | None) -> Tensor:
        return torch.zeros_like(index, dtype=states.dtype)


class Gaussian(Perturbed):
    """Noise of standard deviation ``sigma`` times the coordinate's own, over all states seen so far, is added."""

    def __init__(
        self, streams: Streams, rho: Sequence[int], count: int, sigma: float, mask: Tensor | None = None
    ) -> None:
        super().__init__(streams, rho, count, mask)
        self.sigma = sigma
        self.moments = Moments()

    def __call__(self, states: Tensor, real: Tensor | None = None) -> Iterator[Tensor]:
        if batched(states):
            raise UserError(
                "reciprocity: adjacency gaussian keeps a running deviation, which torch.func.vmap cannot follow; "
                "expected resample, mask, knn, peer or exact"
            )
        _need_fractions("gaussian", states)
        rows, width = states.shape[-2:]
        if self.moments.count + rows < 2:
            raise UserError(
                f"reciprocity: adjacency gaussian needs a batch of 2 states or more for its first deviation, got {rows}"
            )
        known = self.moments.mean.shape[-1:]
        if known not in ((), (width,)):
            raise UserError(
                f"reciprocity: adjacency gaussian has seen states of {known[0]} numbers, got some of {width}"
            )
        if rows:
            self.moments.update(states, real)
        return super().__call__(states, real)

    def apart(self) -> Gaussian:
        other = copy.copy(self)
        other.moments = Moments()
        return other

    def values(self, states: Tensor, index: Tensor, real: Tensor | None) -> Tensor:
        noise = self.streams.normal(*index.shape[1:], dtype=states.dtype).to(states.device)
        scale = (self.sigma * self.moments.std()).to(states).unsqueeze(-2).expand_as(states).gather(-1, index)
        return states.gather(-1, index) + scale * noise

    def state_dict(self) -> State:
        return {**super().state_dict(), "moments": self.moments.state_dict()}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.moments.load_state_dict(state["moments"])


def _padded(mask: Tensor | None) -> Tensor | None:
    """The mask on the CPU, None where it hides nothing; raises ``UserError`` where it is no mask."""
    if mask is None:
        return None
    require_tensor("mask", mask)
    if mask.dim() != 2 or mask.dtype != torch.bool:
        kind = str(mask.dtype).removeprefix("torch.")
        raise UserError(f"mask: expected bool of shape [N or 1, D], got {kind} of shape {list(mask.shape)}")
    if mask.is_meta:
        raise UserError("mask: expected on a device that holds numbers, got meta")
    return None if bool(mask.all()) else mask.cpu()


def _need_rows(adjacency: str, states: Tensor, needed: int) -> None:
    if states.shape[-2] < needed:
        raise UserError(
            f"reciprocity: adjacency {adjacency} takes values from other rows and needs a batch of {needed} states or "
            f"more, got {states.shape[-2]}; mask and exact take any"
        )


def _need_fractions(adjacency: str, states: Tensor) -> None:
    if not states.is_floating_point():
        kind = str(states.dtype).removeprefix("torch.")
        raise UserError(
            f"reciprocity: adjacency {adjacency} needs states in floating point, got {kind}; resample, mask and exact "
            "take whole numbers"
        )
