"""Policy reciprocity for any code base: all that is here needs torch and nothing else of this project.

- ``reciprocate``: a pure function of tensors, when the values at adjacent states are already at hand;
- ``ReciprocalCritics``: a module around a plain list of critics, which asks them where they must be asked;
- ``HookedCritics``: the same where a library calls the critics itself, deep in a function that cannot be edited;
- ``Reciprocal``: a module that holds graph, adjacency space and kappa, for critics that only the host can ask;
- ``Reciprocity`` with ``Values``: the object that this project's own learners call, for populations.

Everything works on torch tensors. NumPy and JAX arrays are refused, and no tensor is moved between devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from marl.modules.adjacency import AdjacencySpace, Exact, Gaussian, Mask, Nearest, Peer, Resample
from marl.modules.foreign import Kappa, LinearKappa, Links, Reciprocal
from marl.modules.graph import complete, listeners, nearest, sole, validated
from marl.modules.guards import checked_kappa, readable, refuse_array, require_floating, require_tensor, same_device
from marl.modules.hooks import HookedCritics
from marl.modules.plain import Critics, as_list, check_state
from marl.modules.quick import Shortcuts
from marl.modules.reciprocity import Reciprocity, ReciprocityConfig, Values, blend, make_reciprocity, mix
from marl.modules.sizes import fitted, make_sizes
from marl.types import UserError

__all__ = [
    "AdjacencySpace",
    "Exact",
    "Gaussian",
    "HookedCritics",
    "LinearKappa",
    "Mask",
    "Nearest",
    "Peer",
    "Reciprocal",
    "ReciprocalCritics",
    "Reciprocity",
    "ReciprocityConfig",
    "Resample",
    "UserError",
    "Values",
    "complete",
    "make_reciprocity",
    "nearest",
    "reciprocate",
]


@torch.no_grad()
def reciprocate(own: Tensor, peers: Tensor, kappa: float | Tensor, weights: Tensor | None = None) -> Tensor:
    """Z*_i = (1 - kappa) own_i + kappa * sum_j W_ij peers_ij, without gradient.

    Args:
        own: ``[N, ...]``, critic i at state s of agent i.
        peers: ``[N, N, ...]``, critic j at a state adjacent to agent i's (or the mean over several).
        kappa: in [0, 1]; a number, or a tensor ``[N]`` where agents differ.
        weights: ``[N, N]``, rows sum to one or are zero; None: all the others alike (of one agent alone: itself).

    All values must be finite, those of weight 0 too: 0 times NaN is NaN.

    Raises ``UserError`` for other shapes, another device, integers, a kappa outside [0, 1], or weights that are not
    row-stochastic. The numbers inside tensors are not looked at in a compiled graph or a vmap.
    """
    given: dict[str, Any] = {"own": own, "peers": peers}
    if isinstance(kappa, Tensor):
        given["kappa"] = kappa
    if weights is not None:
        given["weights"] = weights
    for name, value in given.items():
        require_tensor(name, value)
    same_device(given)
    require_floating("own", own)
    require_floating("peers", peers)
    own, peers = own.detach(), peers.detach()
    if own.dim() == 0:
        raise UserError("own: expected shape [N, ...], got []")
    n = own.shape[0]
    if peers.shape != (n, *own.shape):
        raise UserError(f"peers: expected shape {[n, *own.shape]} for own {list(own.shape)}, got {list(peers.shape)}")
    if isinstance(kappa, Tensor):
        if kappa.shape not in ((), (1,), (n,)):
            raise UserError(f"kappa: expected a number or shape {[n]}, got shape {list(kappa.shape)}")
        kappa = kappa.detach()
        for number in kappa.flatten().tolist() if readable(kappa) else ():
            checked_kappa(number)
    else:
        checked_kappa(kappa)
    share = torch.as_tensor(kappa, dtype=own.dtype, device=own.device).view(1, -1)
    links = complete(n).unsqueeze(0) if weights is None else validated(weights, "weights")
    if links.shape != (1, n, n):
        raise UserError(f"weights: expected shape {[n, n]}, got {list(links.squeeze(0).shape)}")
    return blend(own.unsqueeze(0), mix(links, peers.unsqueeze(0)), share, links).squeeze(0)


class ReciprocalCritics(torch.nn.Module):
    """Blended bootstrap values from a plain list of critics, each a function ``critic(state, *rest) -> [B, ...]``.

    One call costs N critic calls for the own values, and for each adjacent state one for every pair (i, j) that the
    graph links (N if the state is shared, and with ``graph="self"`` or ``adjacency="peer"``). The critics stay the
    host's: they are no part of ``parameters()``, ``state_dict()`` or ``.to(device)``.

    Args:
        critics: N target critics. To use twins, let a critic return ``[B, 2]``, and take the minimum of the result.
        kappa, graph, adjacency, neighbours, rho, count, sigma, metric, generator: see ``Reciprocal``.
        widths: the agents' state sizes, where they differ. Critic j then reads the leading coordinates of agent i's
            state, cut or filled with zeros to its own size.
        masks: ``[N, D]`` bool, for states that come padded to one size: True where a coordinate of agent i's state is
            real. Critic j then reads the coordinates that are real for it, and zeros elsewhere.
        projections: N matrices Pi_i ``[D_i, S]``, o_i = Pi_i s. Critic j then reads Pi_j Pi_i^T o_i.
    """

    def __init__(
        self,
        critics: Sequence[Callable[..., Tensor]],
        kappa: Kappa = 0.5,
        graph: Links = "complete",
        adjacency: str | AdjacencySpace = "resample",
        *,
        neighbours: int | None = None,
        rho: Sequence[int] = (1,),
        count: int = 1,
        sigma: float = 0.02,
        metric: str = "euclidean",
        widths: Sequence[int] | None = None,
        masks: Tensor | None = None,
        projections: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.critics = as_list(critics)
        for j, critic in enumerate(self.critics):
            if not callable(critic):
                kind = type(critic).__name__
                raise UserError(f"critics[{j}]: expected a function critic(state, *rest), got {kind}")
        shortcuts = [Shortcuts(critic) for critic in self.critics]
        self.shortcuts = shortcuts if any(each.chains or each.layers for each in shortcuts) else None
        self.sizes = make_sizes(len(self.critics), widths, masks, projections)
        options: Any = {"neighbours": neighbours, "rho": rho, "count": count, "sigma": sigma, "metric": metric}
        self.reciprocal = Reciprocal(
            len(self.critics), kappa, graph, adjacency, mask=self.sizes.mask, generator=generator, **options
        )

    @torch.no_grad()
    def forward(self, states: Tensor | Sequence[Tensor], *rest: Tensor | Sequence[Any]) -> Tensor:
        """Z* of all agents, ``[N, B, ...]``, without gradient.

        Args:
            states: one ``[B, D_i]`` for each agent (a list, or a tensor ``[N, B, D]``); or one joint ``[1, B, D]``.
            rest: each further argument of the critics, one entry for each state: critic j at agent i's state receives
                entry i. An entry that is a tensor ``[B, A]`` is cut or filled with zeros to the size that entry j has.

        Raises ``UserError`` if the number of states or entries does not fit the critics, if sizes, batches or devices
        differ, and if critics answer in different shapes.
        """
        views = _each("states", states)
        others = [_each(f"argument {k}", entries) for k, entries in enumerate(rest, 1)]
        self._check(views, others)
        blends = self.reciprocal.turn()
        engine = self.reciprocal.engine
        critics = Critics(self.critics, self.sizes, others, self.shortcuts)
        if not blends:
            return critics.own(views)
        joined = states.clone() if isinstance(states, Tensor) else _joined(views)
        views = list(joined.unbind())
        weights = engine.links(len(self.critics), joined)
        own = critics.own(views)
        if engine.space.views:  # each at its own state of the moment, which is what it has just been asked
            return self.reciprocal.combined(own, own[None, None], weights)
        near = [adjacent.squeeze(0).unbind() for adjacent in engine.near(joined.unsqueeze(0))]
        only = sole(engine.graph)
        if only is not None and len(set(only)) == len(only):
            return self.reciprocal.combined(own, critics.alone(near, only), None)
        return self.reciprocal.combined(own, critics.heard(near, listeners(engine.graph, weights)), weights)

    def _check(self, states: list[Tensor], rest: list[list[Any]]) -> None:
        """Raise ``UserError`` for what does not fit the critics or each other."""
        n, space = len(self.critics), self.reciprocal.engine.space
        if len(states) not in (1, n):
            raise UserError(f"states: expected one for each of {n} critics or one for all, got {len(states)}")
        for i, state in enumerate(states):
            check_state(f"states[{i}]", state, space)
            if state.shape[0] != states[0].shape[0]:
                raise UserError(f"states[{i}]: expected {len(states[0])} rows as in states[0], got {len(state)}")
        for k, given in enumerate(rest, 1):
            if len(given) != len(states):
                raise UserError(f"argument {k}: expected {len(states)}, as many as states, got {len(given)}")
            for i, entry in enumerate(given):
                if not isinstance(entry, Tensor):
                    refuse_array(f"argument {k}[{i}]", entry)
        device = states[0].device
        if any(isinstance(x, Tensor) and x.device != device for given in (states, *rest) for x in given):
            tensors = {f"states[{i}]": state for i, state in enumerate(states)}
            named = ((f"argument {k}[{i}]", x) for k, given in enumerate(rest, 1) for i, x in enumerate(given))
            same_device(tensors | {name: x for name, x in named if isinstance(x, Tensor)})
        self.sizes.check(states)

    @property
    def kappa(self) -> float:
        """That of the next call; may be set, to a number or a function as above."""
        return self.reciprocal.kappa

    @kappa.setter
    def kappa(self, kappa: Kappa) -> None:
        self.reciprocal.kappa = kappa

    @property
    def gap(self) -> Tensor | None:
        """See ``Reciprocal``."""
        return self.reciprocal.gap


def _joined(states: Sequence[Tensor]) -> Tensor:
    """``[G, B, D]``, filled with zeros to the widest; raises ``UserError`` for numbers of different kinds."""
    for i, state in enumerate(states):
        if state.dtype != states[0].dtype:
            expected, found = (str(kind).removeprefix("torch.") for kind in (states[0].dtype, state.dtype))
            raise UserError(f"states[{i}]: expected {expected} as states[0], got {found}")
    width = max(state.shape[-1] for state in states)
    return torch.stack([fitted(state, width) for state in states])


def _each(name: str, entries: Any) -> list[Any]:
    """The entries of a tensor or sequence; raises ``UserError`` for anything else, a mapping too."""
    refuse_array(name, entries)
    if isinstance(entries, Mapping):
        raise UserError(f"{name}: expected a sequence, one for each state, got {type(entries).__name__}")
    if isinstance(entries, Tensor) and entries.dim():
        return list(entries.unbind())
    try:
        found = iter(entries)
    except TypeError as error:
        what = "a tensor of shape []" if isinstance(entries, Tensor) else type(entries).__name__
        raise UserError(f"{name}: expected a sequence, one for each state, got {what}") from error
    return list(found)
