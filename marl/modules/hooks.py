"""Reciprocity where a library calls its target critics itself: forward hooks that blend what the critics answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marl.modules.adjacency import AdjacencySpace
from marl.modules.foreign import Kappa, Links, Reciprocal
from marl.modules.graph import listeners
from marl.modules.plain import check_alike, check_answer, check_state
from marl.types import UserError


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
        critics: N target critics, different modules. One alone hears itself, at adjacent states.
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
        critics: Sequence[torch.nn.Module],
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
        self.critics = list(critics)
        _check_free(self.critics)
        options: Any = {"neighbours": neighbours, "rho": rho, "count": count, "sigma": sigma, "metric": metric}
        self.reciprocal = Reciprocal(len(self.critics), kappa, graph, adjacency, generator=generator, **options)
        if self.reciprocal.engine.space.views:
            raise UserError(
                "adjacency: peer asks each critic at its own view of one moment, which hooked critics do not have; "
                "expected resample, mask, gaussian, knn or exact"
            )
        self.nap = _Nap()
        self.handles = [
            critic.register_forward_hook(_Hook(self, i), with_kwargs=True) for i, critic in enumerate(self.critics)
        ]

    def remove(self) -> None:
        """The critics answer again as they did before."""
        for handle in self.handles:
            handle.remove()

    @property
    def kappa(self) -> float:
        """That of the next call; may be set, to a number or a function as above."""
        return self.reciprocal.kappa

    @kappa.setter
    def kappa(self, kappa: Kappa) -> None:
        self.reciprocal.kappa = kappa

    @property
    def gap(self) -> Tensor | None:
        """``[1]``: mean |Z* - Z| of the last call, whichever critic's it was; None if it blended nothing."""
        return self.reciprocal.gap

    @torch.no_grad()
    def answer(self, i: int, output: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
        """What critic i answers instead of ``output`` to that call; None: the same."""
        if not self.reciprocal.turn():
            return None
        engine = self.reciprocal.engine
        if not arguments:
            raise UserError(f"critic {i}: expected the states as its first positional argument, got none")
        states, *rest = arguments
        check_state(f"states of critic {i}", states, engine.space)
        own = _packed(i, output).detach()
        check_answer(i, own, states)
        weights = engine.links(len(self.critics), own)
        listens = listeners(engine.graph, weights)
        who = [j for j in range(len(self.critics)) if listens is None or listens[i][j]]
        if not who:
            return own if isinstance(output, Tensor) else type(output)(own.unbind(-1))
        self.nap.asleep = True
        try:
            answers = [
                self._ask(j, (near[0, 0], *rest), options, i, own)
                for near in engine.space(states[None, None])
                for j in who
            ]
        finally:
            self.nap.asleep = False
        heard = torch.stack(answers) if len(answers) > 1 else answers[0].unsqueeze(0)
        if len(who) == 1:  # of weight one: nothing to be mixed
            value = self.reciprocal.combined(own.unsqueeze(0), heard.unsqueeze(1), None)
        else:
            heard = heard.unflatten(0, (-1, 1, len(who)))
            value = self.reciprocal.combined(own.unsqueeze(0), heard, weights[:, i : i + 1, who])
        value = value.squeeze(0)
        return value if isinstance(output, Tensor) else type(output)(value.unbind(-1))

    def _ask(self, j: int, arguments: Sequence[Any], options: Mapping[str, Any], i: int, own: Tensor) -> Tensor:
        """Critic j's answer to what critic i was asked, in the shape of ``own``."""
        try:
            answer = self.critics[j](*arguments, **options)
        except RuntimeError as error:
            what, *_ = str(error).splitlines()
            raise UserError(f"critic {j}: expected to take what critic {i} was given, got {what}") from error
        value = _packed(j, answer)
        check_alike(j, value, i, own)
        return value


@dataclass
class _Nap:
    """Whether hooks let answers pass."""

    asleep: bool = False


@dataclass(frozen=True)
class _Hook:
    """What sits on critic ``index``."""

    owner: HookedCritics
    index: int

    def __call__(self, _: torch.nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
        return None if self.owner.nap.asleep else self.owner.answer(self.index, output, arguments, options)


def _check_free(critics: list[torch.nn.Module]) -> None:
    if not critics:
        raise UserError("critics: expected one or more, got none")
    for i, critic in enumerate(critics):
        if not isinstance(critic, torch.nn.Module):
            raise UserError(
                f"critics[{i}]: expected a torch.nn.Module, got {type(critic).__name__}; ReciprocalCritics takes any "
                "function"
            )
        if any(critic is other for other in critics[:i]):
            raise UserError(
                f"critics[{i}]: expected another module than critics[{critics.index(critic)}], got the same"
            )
        if any(isinstance(hook, _Hook) for hook in critic._forward_hooks.values()):
            raise UserError(f"critics[{i}] is hooked already; expected remove() of those HookedCritics first")


def _packed(j: int, output: Any) -> Tensor:
    """An answer as one tensor: the parts of a tuple side by side in a last dimension."""
    if isinstance(output, Tensor):
        return output
    if type(output) not in (tuple, list) or not all(isinstance(part, Tensor) for part in output):
        raise UserError(f"critic {j}: expected a tensor or a tuple or list of tensors, got {type(output).__name__}")
    shapes = [list(part.shape) for part in output]
    if not shapes or any(shape != shapes[0] for shape in shapes):
        raise UserError(f"critic {j}: expected tensors of one shape, got shapes {shapes}")
    return torch.stack(list(output), -1) if len(output) > 1 else output[0].unsqueeze(-1)
