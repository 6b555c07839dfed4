"""StarCraft-like battles stepped by JAX: ``make_env("smax/3m", seeds=[0, 1], copies=64)``; needs JaxMARL."""

from __future__ import annotations

from collections.abc import Sequence

from marl.config import check_ranges, suggestion
from marl.envs.base import VectorEnv, with_agents
from marl.envs.smax.options import SmaxOptions
from marl.types import UserError

__all__ = ["FAMILY", "MAPS", "Smax", "SmaxOptions"]

MAPS: tuple[str, ...] = (
    *(
        "3m",
        "2s3z",
        "25m",
        "3s5z",
        "8m",
        "5m_vs_6m",
        "10m_vs_11m",
        "27m_vs_30m",
        "3s5z_vs_3s6z",
        "3s_vs_5z",
        "6h_vs_8z",
    ),
    *("smacv2_5_units", "smacv2_10_units", "smacv2_20_units"),
)
"""What JaxMARL 0.2.0 ships, held here so that listing them does not import JAX."""


class Smax:
    """``smax/MAP``: JaxMARL's SMAX against its heuristic enemy, every copy in one vmapped and compiled program."""

    options: type | None = SmaxOptions

    def names(self) -> Sequence[str]:
        return MAPS

    def make(
        self, name: str, *, seeds: Sequence[int], copies: int, agents: int | None, workers: int, options: SmaxOptions
    ) -> VectorEnv:
        """See ``marl.envs.EnvFamily.make``; the copies always step in this process, ``workers`` or not."""
        if name not in MAPS:
            raise UserError(f"no environment {f'smax/{name}'!r}{suggestion(name, MAPS)}")
        check_ranges(options)
        from marl.envs.smax.env import SmaxEnv  # only now, so that listing the maps waits for nothing

        return with_agents(SmaxEnv(name, seeds=seeds, copies=copies, options=options), agents)


FAMILY = Smax()
