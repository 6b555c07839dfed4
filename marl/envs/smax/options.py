"""The ``--env.X`` settings of the SMAX family."""

from __future__ import annotations

from dataclasses import dataclass

from marl.config import option


@dataclass(frozen=True)
class SmaxOptions:
    """They have JaxMARL's names and meaning, but for ``max_steps``, which counts exactly."""

    max_steps: int | None = option(None, "Steps per battle, after which it is truncated (JaxMARL: 100).", least=1)
    see_enemy_actions: bool = option(True, "Observe what visible enemies did last.")
    walls_cause_death: bool = option(True, "A unit that touches the map's border dies.")
