"""MinAtar's five games, ``minatar/Breakout`` and others, with equal spaces; the package is optional and GPL."""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from marl.config import check_ranges, option, suggestion
from marl.envs.base import EnvSpec, VectorEnv
from marl.envs.gym import learners
from marl.envs.packing import generator_state, load_generator, pack, unpack
from marl.envs.workers import make_copies
from marl.types import State, UserError

GAMES = {
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Freeway": "freeway",
    "Seaquest": "seaquest",
    "SpaceInvaders": "space_invaders",
}
"""What MinAtar calls each game."""

CHANNELS, SIDE, ACTIONS = 10, 10, 6
"""Of every game here: Seaquest has the most channels, 10; the actions are nothing, left, up, right, down and fire."""

CELL = 32
"""Pixels of a cell's side in drawings."""


@dataclass(frozen=True)
class MinAtarOptions:
    """Settings of every game."""

    sticky: float = option(0.1, "The chance that an action is not taken and the last one goes on.", most=1)
    difficulty_ramping: bool = option(False, "The game grows harder with time, or with what was earned.")
    max_steps: int = option(
        5_000, "Steps after which an episode is truncated; the games themselves may go on for ever."
    )


class MinAtarCopy:
    """One game.

    Args:
        seed: of its generator.
        id: the full name, with the family.
        game: what MinAtar calls it.
        options: see there.

    Raises:
        UserError: MinAtar is not installed.
    """

    def __init__(self, seed: int, id: str, game: str, options: MinAtarOptions) -> None:
        self.world = _minatar().Environment(game, options.sticky, options.difficulty_ramping)
        self.world.seed(seed)
        self.limit, self.steps = options.max_steps, 0
        kind = "growing" if options.difficulty_ramping else "constant"
        self.spec = EnvSpec(
            id=id,
            agents=("agent",),
            obs_sizes=(CHANNELS * SIDE * SIDE,),
            action_sizes=(ACTIONS,),
            discrete=True,
            max_steps=options.max_steps,
            rules=f"MinAtar {version('minatar')}, {kind} difficulty, actions repeated with chance {options.sticky:g}",
            bytes=True,
            pixels=(CHANNELS, SIDE, SIDE),
        )

    def reset(self) -> list[np.ndarray]:
        self.world.reset()
        self.world.last_action = 0  # MinAtar would let the last episode's action go on in this one
        self.steps = 0
        return [self._seen()]

    def step(self, action: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, bool]:
        reward, terminated = self.world.act(int(action[0]))
        self.steps += 1
        return [self._seen()], np.array([reward], np.float32), np.array([terminated]), self.steps >= self.limit

    def state_dict(self) -> State:
        """All that the game holds in plain attributes; it has no other ones that change."""
        held = {name: _plain(x) for name, x in vars(self.world.env).items() if not isinstance(x, dict | _Generator)}
        return {
            "game": held,
            "generator": generator_state(self.world.random),
            "last": int(self.world.last_action),
            "steps": self.steps,
        }

    def load_state_dict(self, state: State) -> None:
        for name, value in state["game"].items():
            setattr(self.world.env, name, _own(value))
        load_generator(self.world.random, state["generator"])
        self.world.last_action, self.steps = state["last"], state["steps"]

    def render(self) -> np.ndarray:
        """The board; later channels are painted over earlier ones."""
        picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        for channel, plane in enumerate(self._seen().reshape(CHANNELS, SIDE, SIDE)):
            picture[plane > 0] = [round(255 * part) for part in colorsys.hsv_to_rgb(channel / CHANNELS, 0.6, 0.95)]
        return picture.repeat(CELL, 0).repeat(CELL, 1)

    def close(self) -> None:
        pass

    def _seen(self) -> np.ndarray:
        """Channels first, 255 where a cell is lit; channels that the game does not have are dark."""
        board = np.zeros((CHANNELS, SIDE, SIDE), np.uint8)
        own = np.moveaxis(self.world.state(), -1, 0)
        board[: len(own)] = own.astype(np.uint8) * 255
        return board.reshape(-1)


_Generator = np.random.RandomState


def _plain(value: Any) -> Any:
    """As tensors and JSON values, in memory of its own; lists stay lists."""
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else pack(value)


def _own(value: Any) -> Any:
    """The inverse of ``_plain``."""
    return [_own(v) for v in value] if isinstance(value, list) else unpack(value)


def _minatar() -> Any:
    try:
        import minatar
    except ImportError:
        raise UserError("minatar/* needs MinAtar: pip install -c constraints.txt -e '.[minatar]'") from None
    return minatar


class MinAtar:
    """``minatar/GAME``; N agents are N learners, each on boards of its own."""

    options: type | None = MinAtarOptions

    def names(self) -> Sequence[str]:
        return list(GAMES)

    def make(
        self, name: str, *, seeds: Sequence[int], copies: int, agents: int | None, workers: int, options: MinAtarOptions
    ) -> VectorEnv:
        if name not in GAMES:
            raise UserError(f"no environment 'minatar/{name}'{suggestion(name, GAMES)}")
        check_ranges(options)
        _minatar()
        id = f"minatar/{name}"
        build = functools.partial(MinAtarCopy, id=id, game=GAMES[name], options=options)
        return make_copies(build, seeds=seeds, copies=copies, learners=learners(id, agents), workers=workers)


FAMILY = MinAtar()
