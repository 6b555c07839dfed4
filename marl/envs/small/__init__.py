"""Small pixel games with equal spaces: ``make_env("small/catch", seeds=[0, 1], copies=8)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from marl.config import check_ranges, suggestion
from marl.envs.base import VectorEnv
from marl.envs.gym import learners
from marl.envs.small.base import Game, SmallOptions
from marl.envs.small.catch import Catch
from marl.envs.small.cross import Cross
from marl.envs.small.gates import Gates
from marl.envs.small.gather import Gather
from marl.envs.small.paddle import Paddle
from marl.envs.small.shoot import Shoot
from marl.envs.small.snake import Snake
from marl.types import UserError

__all__ = ["FAMILY", "GAMES", "Game", "Small", "SmallOptions"]

GAMES: dict[str, type[Game[Any]]] = {
    kind.__name__.lower(): kind for kind in (Catch, Cross, Gates, Gather, Paddle, Shoot, Snake)
}


class Small:
    """``small/NAME``. All copies step in one call in this process, so ``workers`` changes nothing."""

    options: type | None = SmallOptions

    def names(self) -> Sequence[str]:
        return list(GAMES)

    def make(
        self, name: str, *, seeds: Sequence[int], copies: int, agents: int | None, workers: int, options: SmallOptions
    ) -> VectorEnv:
        if name not in GAMES:
            raise UserError(f"no environment 'small/{name}'{suggestion(name, GAMES)}")
        check_ranges(options)
        return GAMES[name](seeds, copies, learners(f"small/{name}", agents), options)


FAMILY = Small()
