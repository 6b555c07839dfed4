"""Environments: ``make_env("mpe/simple_spread_v3", seeds=[0, 1], copies=8)``."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from marl import registry
from marl.config import as_json, from_json, suggestion, to_json
from marl.envs.base import EnvSpec, Step, VectorEnv
from marl.types import UserError

__all__ = [
    "EnvFamily",
    "EnvSpec",
    "Step",
    "VectorEnv",
    "all_options",
    "evaluation_options",
    "family_of",
    "list_environments",
    "make_env",
]


class EnvFamily(Protocol):
    """A group of environments that share an id prefix and their options.

    Attributes:
        options: the frozen dataclass of ``--env.X`` settings; None: any keyword is handed to the foreign library.

    A family may have ``evaluation`` too: the options that evaluations have whatever those of training are.
    """

    options: type | None

    def names(self) -> Sequence[str]:
        """Ids without the prefix that are worth listing (a family may accept more)."""

    def make(
        self, name: str, *, seeds: Sequence[int], copies: int, agents: int | None, workers: int, options: Any
    ) -> VectorEnv:
        """Build it.

        Args:
            name: the id without the family's prefix.
            seeds: one per population member.
            copies: E, copies per member.
            agents: N where the environment lets one choose it, None for its own default.
            workers: processes that step the copies; 0: this process.
            options: an instance of ``self.options``, or a plain mapping of keywords where that is None.

        Raises:
            UserError: for a name, number of agents or option that this environment does not have.
        """


def make_env(
    id: str,
    *,
    seeds: Sequence[int] = (0,),
    copies: int = 1,
    agents: int | None = None,
    workers: int = 0,
    options: Mapping[str, Any] | None = None,
) -> VectorEnv:
    """The environment named ``family/name``; see ``EnvFamily.make`` for the arguments.

    Raises:
        UserError: for an unknown family, name or option, with the nearest valid one, and without any seed or copy.
    """
    for what, number, least in (("seeds", len(seeds), 1), ("copies", copies, 1), ("workers", workers, 0)):
        if number < least:
            raise UserError(f"{what}: expected {least} or more, got {number}")
    family, chosen = _chosen(id, options or {})
    name = id.partition("/")[2]
    env: VectorEnv = family.make(name, seeds=list(seeds), copies=copies, agents=agents, workers=workers, options=chosen)
    return env


def all_options(id: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options given, as JSON gives them back, and the defaults of the others where the family declares its own.

    Raises ``UserError`` for a value that JSON does not hold, and as ``make_env``.
    """
    _, chosen = _chosen(id, options)
    if isinstance(chosen, Mapping):
        return {name: as_json(f"env.{name}", value) for name, value in chosen.items()}
    return to_json(chosen)


def evaluation_options(id: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that evaluations have where training has ``options``: episodes are whole games there, for example."""
    family, _ = _chosen(id, options)
    return {**options, **getattr(family, "evaluation", {})}


def _chosen(id: str, options: Mapping[str, Any]) -> tuple[EnvFamily, Any]:
    """The family of an id, and the options as its ``make`` takes them."""
    family = family_of(id)
    if family.options is None:
        return family, dict(options)
    known = {f.name for f in dataclasses.fields(family.options)}
    for key in options:
        if key not in known:
            raise UserError(f"no option {key!r} of {id}{suggestion(key, known)}")
    return family, from_json(family.options, options)


def family_of(id: str) -> EnvFamily:
    """The family of an environment's id.

    Raises:
        UserError: there is none, with the nearest; for an id without one, with the nearest name of any family.
    """
    prefix, slash, _ = id.partition("/")
    if slash:
        family: EnvFamily = registry.family(prefix)
        return family
    listed = {known.partition("/")[2]: known for known in reversed(list_environments())}  # twice: the first's
    near = difflib.get_close_matches(id, listed, n=1, cutoff=0.55)
    hint = f"did you mean {listed[near[0]]!r}?" if near else f"families are {', '.join(sorted(registry.ENVIRONMENTS))}"
    raise UserError(f"environment {id!r}: expected FAMILY/NAME; {hint}")


def list_environments() -> list[str]:
    """Every listed id of every family."""
    return [f"{prefix}/{name}" for prefix in registry.ENVIRONMENTS for name in registry.family(prefix).names()]
