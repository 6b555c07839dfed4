"""The promises of reciprocity, checked on an integration of one's own: ``check_reciprocity(make_host)``.

Needs torch and nothing of this project but ``marl.types``. A host is whatever computes bootstrap targets for a team; a
few lines around it make it answer to ``Host``.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from marl.types import UserError

__all__ = ["BrokenPromise", "Host", "MakeHost", "answering", "check_reciprocity"]

KAPPA = 0.5
TURNS = (False, True, False)  # does the batch end its episodes? of the calls that are made in a row


class BrokenPromise(AssertionError):
    """An integration does what reciprocity must not do, or the other way round; one line that says what."""


class Host(Protocol):
    """Somebody's learner of N agents, with one batch to learn from. Equal seeds make equal networks and equal batches.

    It may have a method ``draw() -> Tensor`` as well: the next numbers of a random stream of its own. The global ones
    of torch, NumPy and Python are looked at in any case.
    """

    def targets(self, terminated: bool) -> Tensor:
        """The targets of the critics' loss as they enter it, ``[N, B]``: not detached for this check.

        Args:
            terminated: every transition of the batch ends its episode; otherwise none does.
        """
        ...

    def answer(self, values: Sequence[float]) -> None:
        """From now on target critic j answers ``values[j]``, whatever it is asked; see ``answering``."""
        ...


MakeHost = Callable[[float | None, int], Host]
"""``make_host(kappa, seed)`` with kappa 0, .5 or 1; None: the host as it was before reciprocity came into it."""


def answering(critic: torch.nn.Module, value: float) -> None:
    """Make a critic answer ``value`` in every number of what it returns, a tensor or a tuple or list of tensors.

    Of several calls the last one counts.
    """
    for key, hook in list(critic._forward_hooks.items()):
        if isinstance(hook, _Instead):
            del critic._forward_hooks[key]
    critic.register_forward_hook(_Instead(value), prepend=True)  # a hook that blends comes after


@dataclass(frozen=True)
class _Instead:
    """The hook of ``answering``; a class, for hosts that pickle their critics."""

    value: float

    def __call__(self, critic: torch.nn.Module, _: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return torch.full_like(output, self.value)
        if type(output) not in (tuple, list) or not all(isinstance(part, Tensor) for part in output):
            raise UserError(
                f"answering: expected a critic that returns a tensor or a tuple or list of tensors, "
                f"{type(critic).__name__} returned {type(output).__name__}"
            )
        return type(output)(torch.full_like(part, self.value) for part in output)


def check_reciprocity(make_host: MakeHost, agents: int | None = None, seed: int = 0, tolerance: float = 1e-4) -> None:
    """Raise ``BrokenPromise`` for the first promise that the integration does not keep.

    1. Two hosts of one seed are alike (otherwise nothing else could be told).
    2. With kappa = 0 the targets are those of the host without reciprocity, bit for bit, three times in a row.
    3. With kappa = 0 neither the global random streams nor the host's own are touched more than without, after three
       calls either.
    4. With kappa = .5 targets carry no gradient.
    5. With kappa = .5 the targets are others, and of one agent alone with kappa 1 others again: reciprocity is
       connected.
    6. The mixing is row-stochastic: critics that agree leave the targets as they were, and a critic that answers more
       lowers nobody's target. Where there are several agents, somebody's rises and falls with another's critic. Unless
       the host itself mixes the critics of its team (QMIX), others weigh at most kappa together, and with kappa 1
       twice as much.
    7. A transition that ends its episode has no bootstrap: its target is the one without reciprocity, whatever critics
       answer.

    Args:
        make_host: see ``MakeHost``.
        agents: N; None: the first size of the targets, which a mixing network would hide.
        seed: of the hosts, and of the global streams as each is made.
        tolerance: of 6, and of 7 where hosts are compared; relative to the largest target without a bootstrap, or to 1
            if that is more. For 6 critics answer numbers of that size, so that large rewards hide nothing.
    """

    def made(kappa: float | None, values: Sequence[float] | None = None) -> Host:
        torch.manual_seed(seed)
        random.seed(seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(seed % 2**32)
        host = make_host(kappa, seed)
        if values is not None:
            host.answer(values)
        return host

    saved = _streams()
    try:
        with torch.enable_grad():
            targets = _alike(made)
            if agents is None and targets.dim() < 2:
                shape = list(targets.shape)
                raise UserError(f"targets: expected [N, B] (one learner alone: targets[None]), got {shape}")
            found = len(targets) if agents is None else agents
            _identity(made)
            _streams_untouched(made)
            _no_gradient(made)
            _connected(made, found)
            _row_stochastic(made, found, tolerance)
            _shares(made, found, tolerance)
            _terminal(made, found, tolerance)
    finally:
        _restore(saved)


Made = Callable[..., Host]


def _alike(made: Made) -> Tensor:
    for kappa in (KAPPA, None):
        targets = made(kappa).targets(False)
        if not isinstance(targets, Tensor):
            raise UserError(f"targets: expected a torch.Tensor [N, B], got {type(targets).__name__}")
        if not targets.isfinite().all():
            number = targets[~targets.isfinite()][0].item()
            raise UserError(f"targets: expected finite numbers, got {number} of make_host({kappa}, seed)")
        if not torch.equal(targets, made(kappa).targets(False)):
            raise BrokenPromise(f"make_host({kappa}, seed) made two hosts of one seed whose targets differ")
    return targets


def _identity(made: Made) -> None:
    ran: list[list[Tensor]] = []
    for kappa in (None, 0.0):  # one after the other: hosts may draw from the global streams
        host = made(kappa)
        ran.append([host.targets(terminated).clone() for terminated in TURNS])  # a host may reuse its memory
    for turn, (expected, got) in enumerate(zip(*ran, strict=True), 1):
        if expected.shape != got.shape:
            raise BrokenPromise(
                f"kappa 0: targets have shape {list(got.shape)}, without reciprocity {list(expected.shape)}"
            )
        if not torch.equal(expected, got):
            far = (expected - got).abs().max().item()
            raise BrokenPromise(f"kappa 0: targets differ by {far:.3g} from those without reciprocity in turn {turn}")


def _streams_untouched(made: Made) -> None:
    after: list[tuple[Any, Any]] = []
    for kappa in (None, 0.0):
        host = made(kappa)
        for terminated in TURNS:
            host.targets(terminated)
        drawn = host.draw() if hasattr(host, "draw") else torch.zeros(0)
        after.append((_streams(), drawn))
    (plain, plain_drawn), (off, off_drawn) = after
    for name in plain:
        if not _same(plain[name], off[name]):
            raise BrokenPromise(f"kappa 0: the random stream of {name} is not where it is without reciprocity")
    if not torch.equal(plain_drawn, off_drawn):
        raise BrokenPromise("kappa 0: the host's own random stream is not where it is without reciprocity")


def _no_gradient(made: Made) -> None:
    if made(KAPPA).targets(False).requires_grad:
        raise BrokenPromise(f"kappa {KAPPA}: the targets carry a gradient, which the loss would send into the critics")


def _connected(made: Made, agents: int) -> None:
    if torch.equal(made(KAPPA).targets(False), made(0.0).targets(False)):
        raise BrokenPromise(f"kappa {KAPPA}: the targets are those of kappa 0, reciprocity is not connected")
    if agents == 1 and torch.equal(made(KAPPA).targets(False), made(1.0).targets(False)):  # of several: _shares
        raise BrokenPromise(f"kappa 1: the targets are those of kappa {KAPPA}, kappa is not heeded")


def _answered(made: Made, kappa: float | None, values: Sequence[float]) -> Tensor:
    return made(kappa, values).targets(False).detach()


def _size(targets: Tensor) -> float:
    """What tolerances are relative to."""
    return max(1.0, targets.abs().max().item())


def _row_stochastic(made: Made, agents: int, tolerance: float) -> None:
    nothing = _answered(made, None, [0.0] * agents)
    size = _size(nothing)
    if all(torch.equal(nothing, _answered(made, None, [value] * agents)) for value in (size, -10 * size)):
        raise UserError("answer: expected targets without reciprocity to change with what critics are told to answer")
    for value in (0.0, size, -10 * size):
        agreed = [value] * agents
        plain, got = _answered(made, None, agreed), _answered(made, KAPPA, agreed)
        far = (plain - got).abs().max().item()
        if far > tolerance * _size(plain):
            raise BrokenPromise(
                f"kappa {KAPPA}: all critics answer {value:g} and targets move by {far:.3g}; weights must sum to one"
            )
    nobody, everybody = (_answered(made, KAPPA, [value] * agents) for value in (0.0, size))
    heard = lost = agents == 1
    for j in range(agents):
        risen = _answered(made, KAPPA, [size * (k == j) for k in range(agents)]) - nobody
        if risen.min().item() < -tolerance * size:
            i = int(risen.flatten(1).amin(-1).argmin())
            raise BrokenPromise(
                f"kappa {KAPPA}: critic {j} answers {size:g} more and the target of agent {i} falls by "
                f"{-risen.min():.3g}; weights must not be negative"
            )
        fallen = everybody - _answered(made, KAPPA, [size * (k != j) for k in range(agents)])
        others = [i for i in range(len(risen)) if i != j]
        heard = heard or bool((risen[others] > tolerance * size).any())
        lost = lost or bool((fallen[others] > tolerance * size).any())
    if not heard:
        raise BrokenPromise(f"kappa {KAPPA}: no agent's target rises with another agent's critic")
    if not lost:
        raise BrokenPromise(
            f"kappa {KAPPA}: targets rise with another agent's critic, but none falls with it; expected a mean, no "
            "maximum"
        )


def _shares(made: Made, agents: int, tolerance: float) -> None:
    """The blends are compared, not the targets' rises: targets may be any rising function of them."""

    def others(i: int, value: float) -> list[float]:
        return [value * (k != i) for k in range(agents)]

    nobody = _answered(made, None, [0.0] * agents)
    size = _size(nobody)
    if not torch.equal(_answered(made, None, others(0, size))[0], nobody[0]):
        return  # the host mixes the critics of its team itself
    most = _answered(made, None, [KAPPA * size] * agents)
    for i in range(min(agents, len(nobody))):
        half, full = _answered(made, KAPPA, others(i, size))[i], _answered(made, 1.0, others(i, KAPPA * size))[i]
        over, far = (half - most[i]).max().item(), (half - full).abs().max().item()
        if over > tolerance * size:
            raise BrokenPromise(
                f"kappa {KAPPA}: the critics of others answer {size:g}, that of agent {i} 0, and its target is "
                f"{over:.3g} above that of a bootstrap of {KAPPA * size:g}; others must not weigh more than kappa"
            )
        if far > tolerance * size:
            raise BrokenPromise(
                f"kappa {KAPPA} with answers of {size:g} by all but agent {i}, and kappa 1 with answers of "
                f"{KAPPA * size:g}, give it targets that differ by {far:.3g}; others must weigh in proportion to kappa"
            )


def _terminal(made: Made, agents: int, tolerance: float) -> None:
    low, high = (made(KAPPA, [value] * agents).targets(True).detach() for value in (0.0, 1000.0))
    far = (high - low).abs().max().item()
    if far > 0:
        raise BrokenPromise(
            f"kappa {KAPPA}: critics that answer 1000 instead of 0 move the targets of transitions that end the "
            f"episode by {far:.3g}; those have no bootstrap"
        )
    plain, got = made(None).targets(True), made(KAPPA).targets(True)
    far = (got - plain).abs().max().item()
    if far > tolerance * _size(plain):
        raise BrokenPromise(
            f"kappa {KAPPA}: targets of transitions that end the episode differ by {far:.3g} from those without "
            "reciprocity; nothing but the bootstrap may be blended"
        )


def _streams() -> dict[str, Any]:
    """Where the global random streams are."""
    states: dict[str, Any] = {"torch": torch.get_rng_state(), "Python": random.getstate()}
    if "numpy" in sys.modules:
        states["NumPy"] = sys.modules["numpy"].random.get_state()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["CUDA"] = torch.cuda.get_rng_state()
    return states


def _restore(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    random.setstate(states["Python"])
    if "NumPy" in states:
        sys.modules["numpy"].random.set_state(states["NumPy"])
    if "CUDA" in states:
        torch.cuda.set_rng_state(states["CUDA"])


def _same(one: Any, two: Any) -> bool:
    """Equality of nested tuples whose leaves may be arrays or tensors."""
    if isinstance(one, tuple):
        return len(one) == len(two) and all(map(_same, one, two))
    equal = one == two
    return bool(equal.all()) if hasattr(equal, "all") else bool(equal)
