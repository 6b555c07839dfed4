"""The particle environments of MPE: ``make_env("mpe/simple_spread_v3", seeds=[0, 1], copies=8)``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from marl.envs.base import VectorEnv
from marl.envs.mpe.batched import BatchedMpe
from marl.envs.mpe.options import BATCHED, SCENARIOS, MpeOptions, check

__all__ = ["FAMILY", "MpeFamily", "MpeOptions"]


class MpeFamily:
    """``mpe/*``: the batched engine where the scenario has one, mpe2 itself elsewhere and on request."""

    options: type | None = MpeOptions

    def names(self) -> Sequence[str]:
        return tuple(SCENARIOS)

    def make(
        self, name: str, *, seeds: Sequence[int], copies: int, agents: int | None, workers: int, options: MpeOptions
    ) -> VectorEnv:
        """See ``marl.envs.EnvFamily.make``; the batched engine always steps in this process, ``workers`` or not."""
        check(name, options, agents)
        if name in BATCHED and options.engine == "batched":
            return BatchedMpe(name, seeds=seeds, copies=copies, agents=agents, options=options)
        from marl.envs.mpe.foreign import Mpe2Copy  # imports mpe2 and pygame, which the batched engine never needs
        from marl.envs.workers import make_copies

        build = partial(Mpe2Copy, name=name, agents=agents, options=options)
        return make_copies(build, seeds=seeds, copies=copies, workers=workers)


FAMILY = MpeFamily()
