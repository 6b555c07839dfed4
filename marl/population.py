"""A run is a population: P independent trainings that differ by seed or by a scalar setting."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from marl import config as cfg
from marl.types import UserError

ConfigT = TypeVar("ConfigT")


class Member(NamedTuple):
    """One training of a population.

    Attributes:
        name: for folders and legends, for example ``"seed=0,kappa=0.5"``.
        seed: where all its randomness comes from.
        sweep: the settings in which it differs from the run's configuration.
    """

    name: str
    seed: int
    sweep: Mapping[str, Any]


def members(config: Any, seeds: Sequence[int], sweep: Mapping[str, Sequence[Any]]) -> list[Member]:
    """Every combination of the sweep's values with every seed, in the order given.

    Raises:
        UserError: for a setting in which members may not differ, a value that it cannot have, or one given twice.
    """
    if not isinstance(sweep, Mapping):
        raise UserError(f"sweep: expected a dictionary of values by setting, got a {type(sweep).__name__}")
    allowed = {s.name: s.type for s in cfg.settings(type(config)) if s.sweep}
    for name in sweep:
        if name not in allowed:
            raise UserError(f"members cannot differ in {name!r}{cfg.suggestion(name, allowed)}")
    seeds = _different("seeds", int, seeds)
    sweep = {name: _different(name, allowed[name], values) for name, values in sweep.items()}
    result = []
    for combination in itertools.product(*sweep.values()):
        chosen = dict(zip(sweep, combination, strict=True))
        labels = [f"{name.rpartition('.')[2]}={value}" for name, value in chosen.items()]
        result += [Member(",".join([*labels, f"seed={seed}"]), seed, chosen) for seed in seeds]
    return result


def _different(name: str, kind: Any, values: Any) -> Sequence[Any]:
    """The values as the setting holds them; raises ``UserError`` unless they are several, each another one."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise UserError(f"{name}: expected a list of values, got {values!r}")
    held = [cfg.checked(name, kind, value) for value in values]
    if not held or len(set(held)) < len(held):
        raise UserError(f"{name}: expected one or more different values, got {held}")
    return held


def configs(config: ConfigT, population: Sequence[Member]) -> list[ConfigT]:
    """Each member's own configuration."""
    result = []
    for member in population:
        own = config
        for name, value in member.sweep.items():
            own = cfg.replace(own, name, value)
        result.append(own)
    return result


def per_member(configs: Sequence[Any], name: str) -> Tensor:
    """The scalar setting ``name`` of each member, ``[P, 1, 1]`` float32."""
    return torch.tensor([float(cfg.get(c, name)) for c in configs]).view(-1, 1, 1)
