"""Reciprocity where a library calls its target critics itself: forward hooks that blend what the critics answer."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from marl.modules.adjacency import AdjacencySpace
from marl.modules.foreign import Kappa, Links, Reciprocal
from marl.modules.graph import listeners, sole
from marl.modules.guards import batched, outside_the_graph
from marl.modules.plain import as_list, check_alike, check_answer, check_state
from marl.modules.quick import Shortcuts, quick
from marl.modules.reciprocity import Reciprocity
from marl.types import State, UserError


class HookedCritics(torch.nn.Module):
    """From now on critic i, whoever calls it at states s, answers Z*_i(s), until ``remove``.

    Critics are called one at a time, each with a batch of its own: ``critic(states, *rest)``, states ``[B, D]`` of one
    size for all critics. Those whom i hears are asked at states adjacent to s, all further arguments being the same,
    with the hooks asleep. An answer is a tensor ``[B, ...]``, or a tuple or list of such (twins) in which each is
    blended for itself, so that the host's minimum comes after the blend. One call costs, for each adjacent state, one
    call of each critic that i hears. While kappa is 0 answers pass untouched; otherwise they carry no gradient.

    The critics stay the host's: they are no part of ``parameters()``, ``state_dict()`` or ``.to(device)``. What changes
    from call to call is in ``state_dict``, see ``Reciprocal``. Hooks are no part of a critic's own ``state_dict``: a
    critic that is built anew when it is loaded has to be hooked anew.

    Args:
        critics: N target critics, different modules. One alone hears itself, at adjacent states. Twins that are modules
            of their own come as N tuples: first twins hear first ones, second ones second ones, and where twins are
            called with the same tensor one after the other they hear the same neighbours at the same adjacent states.
        kappa: weight of the neighbours, 0 (off) to 1; or a function of the number of calls so far, of all critics
            together, as ``LinearKappa``.
        graph, neighbours, rho, count, sigma, metric, generator: see ``Reciprocal``.
        adjacency: ``resample``, ``mask``, ``gaussian``, ``knn``, ``exact``; or an ``AdjacencySpace``. Not ``peer``:
            nobody else's view of the same moment is at hand.

    Raises ``UserError`` for such an adjacency, and for critics that are no modules, equal, or hooked already; a hooked
    critic raises it for states that are no tensor ``[B, D]`` and for answers that differ in shape.
    """

    def __init__(
        self,
        critics: Sequence[torch.nn.Module | Sequence[torch.nn.Module]],
        kappa: Kappa = 0.5,
        graph: Links = "complete",
        adjacency: str | AdjacencySpace = "resample",
        *,
        neighbours: int | None = None,
        rho: Sequence[int] = (1,),
        count: int = 1,
        sigma: float = 0.02,
        metric: str = "euclidean",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.critics = as_list(critics)
        self.groups = _grouped(self.critics)
        self.twins = len(self.groups[0]) > 1
        options: Any = {"neighbours": neighbours, "rho": rho, "count": count, "sigma": sigma, "metric": metric}
        self.reciprocal = Reciprocal(len(self.critics), kappa, graph, adjacency, generator=generator, **options)
        if self.reciprocal.engine.space.views:
            raise UserError(
                "adjacency: peer asks each critic at its own view of one moment, which hooked critics do not have; "
                "expected resample, mask, gaussian, knn or exact"
            )
        self.spaces = [self.reciprocal.engine.space.apart() for _ in self.critics]
        self.shortcuts = [[Shortcuts(critic) for critic in twins] for twins in self.groups]
        self.now, self.mine = _Now(), _Mine()
        self.handles = [
            critic.register_forward_hook(_Hook(self, i, k), with_kwargs=True)
            for i, twins in enumerate(self.groups)
            for k, critic in enumerate(twins)
        ]

    def remove(self) -> None:
        """The critics answer again as they did before."""
        for handle in self.handles:
            handle.remove()

    def get_extra_state(self) -> State:
        return {"spaces": [space.state_dict() for space in self._spaces_of_their_own()]}

    def set_extra_state(self, state: State) -> None:
        own, saved = self._spaces_of_their_own(), state["spaces"]
        if len(own) != len(saved):
            raise UserError(f"adjacency: expected what {len(own)} critics' states were like, got that of {len(saved)}")
        for space, noted in zip(own, saved, strict=True):
            space.load_state_dict(noted)

    def _spaces_of_their_own(self) -> list[AdjacencySpace]:
        return [space for space in self.spaces if space is not self.reciprocal.engine.space]

    @property
    def kappa(self) -> float:
        """That of the next call; may be set, to a number or a function as above."""
        return self.reciprocal.kappa

    @kappa.setter
    def kappa(self, kappa: Kappa) -> None:
        self.reciprocal.kappa = kappa

    @property
    def gap(self) -> Tensor | None:
        """``[1]``: mean |Z* - Z| of the last call, whichever critic's it was; None if it blended nothing.

        Wrong if the host has written into that answer since.
        """
        last = self.now.last
        if last is None:
            return None
        parts = zip(*last, strict=True)
        return torch.stack([(value - own).abs().mean() for own, value in parts]).mean().view(1)

    def answer(self, i: int, k: int, output: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
        """What twin k of critic i answers instead of ``output`` to that call; None: the same."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self.answer(i, k, output, arguments, options)
        now, mine, reciprocal = self.now, self.mine, self.reciprocal
        now.last, engine = None, reciprocal.engine
        if not reciprocal.turn():
            return None
        if not arguments:
            raise UserError(f"critic {i}: expected the states as its first positional argument, got none")
        states, *rest = arguments
        if not isinstance(states, Tensor) or states.dim() != 2:  # asked here, for words cost more than the question
            check_state(f"states of critic {i}", states, engine.space)
        own = _parts(i, output)
        for part in own:
            check_answer(i, part, states)
        together = self.twins and engine.draws  # what twins share is no part of a graph
        draw = outside_the_graph(HookedCritics._drawn) if together else HookedCritics._drawn
        drawn = draw(self, i, k, states, own[0])
        if not drawn.who:
            return _like(output, own)
        mine.asleep, answers = True, []
        try:
            for near in drawn.near:
                for j in drawn.who:
                    answers.append(self._ask(j, k, (near, *rest), options, i, own))
        finally:
            mine.asleep = False
        heard = zip(*answers, strict=True)
        values = [_blended(reciprocal, part, others, drawn.links) for part, others in zip(own, heard, strict=True)]
        now.last = None if any(map(batched, values)) else (own, values)
        return _like(output, values)

    def _drawn(self, i: int, k: int, states: Tensor, own: Tensor) -> _Drawn:
        """Whom critic i hears, and at which states adjacent to ``[B, D]``; drawn once for all its twins."""
        shared = self.twins and not torch.compiler.is_compiling()
        if shared and self.mine.drawn.serves(i, k, states):
            self.mine.drawn.asked.add(k)
            return self.mine.drawn
        engine = self.reciprocal.engine
        who, links = self._heard_by(i, own, engine)
        near = engine.near(states, self.spaces[i]) if who else []
        if not shared:
            return _Drawn(who, links, near)
        self.mine.drawn = _Drawn(who, links, near, i, weakref.ref(states), _version(states), {k})
        return self.mine.drawn

    def _heard_by(self, i: int, own: Tensor, engine: Reciprocity) -> tuple[list[int], Tensor | None]:
        """Whom critic i hears, and with what weights ``[1, 1, J]``; None: with weight 1, as one alone is."""
        n = len(self.critics)
        only = None if engine.foreign else sole(engine.graph)
        if only is not None:
            return [only[i]], None
        weights = engine.links(n, own)
        listens = listeners(engine.graph, weights)
        who = [j for j in range(n) if listens is None or listens[i][j]]
        return who, None if len(who) == 1 else weights[:, i : i + 1, who]

    def _ask(
        self, j: int, k: int, arguments: Sequence[Any], options: Mapping[str, Any], i: int, own: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """What twin k of critic j answers to that of critic i, part by part in the shapes of ``own``."""
        near, version = arguments[0], _version(arguments[0])
        try:
            with quick(self.shortcuts[j][k]):
                answer = self.groups[j][k](*arguments, **options)
        except RuntimeError as error:
            what, *_ = str(error).splitlines()
            raise UserError(f"critic {j}: expected to take what critic {i} was given, got {what}") from error
        if _version(near) != version:  # so has critic i with its own states, from which these were made
            raise UserError(f"critic {j}: expected to leave the states as they are, it writes into them")
        parts = _parts(j, answer)
        if len(parts) != len(own):
            raise UserError(f"critic {j}: expected {len(own)} tensors as critic {i} answered, got {len(parts)}")
        for part, model in zip(parts, own, strict=True):
            check_alike(j, part, i, model)
        return parts


@dataclass(slots=True)
class _Drawn:
    """Whom an agent hears, with what weights, at which adjacent states; and its twins that have been served so far."""

    who: Sequence[int] = ()
    links: Tensor | None = None
    near: Sequence[Tensor] = ()
    agent: int = -1
    states: Callable[[], Tensor | None] = lambda: None
    version: int = 0
    asked: set[int] = field(default_factory=set)

    def serves(self, agent: int, twin: int, states: Tensor) -> bool:
        """Whether that twin is now asked at the same states, which nobody has written into since."""
        same = self.states() is states and self.agent == agent and self.version == _version(states)
        return same and twin not in self.asked


def _version(states: Tensor) -> int:
    return 0 if torch.compiler.is_compiling() or states.is_inference() else states._version


@dataclass
class _Now:
    """What changes from call to call, apart from the module, which is slow to write to.

    Attributes:
        last: Z and Z* of the last call, part by part; None if it blended nothing or ran inside a vmap.
    """

    last: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None


class _Mine(threading.local):
    """What each thread has for itself.

    Attributes:
        asleep: hooks let answers pass.
        drawn: what its newest call drew.
    """

    def __init__(self) -> None:
        """Once in each thread; what is in the class alone would not be in the thread's own dictionary."""
        self.asleep, self.drawn = False, _Drawn()

    def __reduce__(self) -> tuple[type[_Mine], tuple[()]]:
        return _Mine, ()  # a copy draws anew


@dataclass(frozen=True)
class _Hook:
    """What sits on twin ``twin`` of critic ``index``."""

    owner: HookedCritics
    index: int
    twin: int

    def __call__(self, _: torch.nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
        return None if self.owner.mine.asleep else self.owner.answer(self.index, self.twin, output, arguments, options)


def _grouped(critics: Sequence[Any]) -> list[tuple[torch.nn.Module, ...]]:
    """Each critic's twins; raises ``UserError`` for what cannot be hooked."""
    several = tuple | list | torch.nn.ModuleList
    groups = [tuple(entry) if isinstance(entry, several) else (entry,) for entry in critics]
    if not groups or not groups[0]:
        raise UserError("critics: expected one or more, got none")
    names: dict[int, str] = {}
    for i, twins in enumerate(groups):
        if len(twins) != len(groups[0]):
            raise UserError(f"critics[{i}]: expected {len(groups[0])} modules as critics[0] has, got {len(twins)}")
        for k, critic in enumerate(twins):
            name = f"critics[{i}]" if len(twins) == 1 else f"critics[{i}][{k}]"
            if not isinstance(critic, torch.nn.Module):
                kind = type(critic).__name__
                raise UserError(f"{name}: expected a torch.nn.Module, got {kind}; ReciprocalCritics takes any function")
            if id(critic) in names:
                raise UserError(f"{name}: expected another module than {names[id(critic)]}, got the same")
            if any(isinstance(hook, _Hook) for hook in critic._forward_hooks.values()):
                raise UserError(f"{name} is hooked already; expected remove() of those HookedCritics first")
            names[id(critic)] = name
    return groups


def _blended(reciprocal: Reciprocal, own: Tensor, heard: tuple[Tensor, ...], links: Tensor | None) -> Tensor:
    """Z* ``[B, *]``, from what those whom the critic hears answered at the first adjacent state, the next, ..."""
    if links is None:
        return reciprocal.mixed(own, heard, None)
    stacked = torch.stack(heard).unflatten(0, (-1, 1, links.shape[-1]))
    return reciprocal.mixed(own.unsqueeze(0), stacked, links).squeeze(0)


def _parts(j: int, output: Any) -> Sequence[Tensor]:
    """An answer as one or several tensors of one shape, without gradient."""
    if isinstance(output, Tensor):
        return (output.detach() if output.requires_grad else output,)
    if type(output) not in (tuple, list) or not all(isinstance(part, Tensor) for part in output):
        raise UserError(f"critic {j}: expected a tensor or a tuple or list of tensors, got {type(output).__name__}")
    if not output or any(part.shape != output[0].shape for part in output):
        raise UserError(
            f"critic {j}: expected tensors of one shape, got shapes {[list(part.shape) for part in output]}"
        )
    return [part.detach() if part.requires_grad else part for part in output]


def _like(output: Any, parts: Sequence[Tensor]) -> Any:
    """Parts in the form in which the critic gave its own."""
    return parts[0] if isinstance(output, Tensor) else type(output)(parts)
