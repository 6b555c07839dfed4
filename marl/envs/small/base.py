"""What every small game has in common: a 10 x 10 board, four channels, six actions, a time limit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from marl.config import option
from marl.envs.base import EnvSpec, Step, VectorEnv
from marl.streams import Streams
from marl.types import State

SIDE = 10
"""Rows and columns of a board; row 0 is the top one. A cell is a number: row * SIDE + column."""

CELLS = SIDE * SIDE
CHANNELS = 4
STAY, UP, RIGHT, DOWN, LEFT, FIRE = range(6)
ACTIONS = 6

ROW_MOVES = torch.tensor([0, -1, 0, 1, 0, 0])
COLUMN_MOVES = torch.tensor([0, 0, 1, 0, -1, 0])
"""What an action adds to the row and to the column of who moves in all four directions."""

HIDDEN = CHANNELS * CELLS
"""Where ``Game.picture`` puts what is not on the board."""

COLOURS = torch.tensor([[86, 180, 233], [0, 158, 115], [213, 94, 0], [240, 228, 66]], dtype=torch.uint8)
"""Of the channels in drawings."""


@dataclass(frozen=True)
class SmallOptions:
    """Settings of every small game."""

    max_steps: int = option(200, "Steps after which an episode is truncated.")


B = TypeVar("B", bound=NamedTuple)


class Game(VectorEnv, Generic[B]):
    """P x N x E boards of one game: N agents play for themselves, each on E boards of its own.

    A subclass states its board, a ``NamedTuple`` of tensors ``[K, ...]`` with one row for each of the K = P * N * E
    boards, and the rules as functions of boards; it holds nothing else that changes. Randomness is handed in as
    uniform numbers on [0, 1).

    Attributes:
        begin_draws, step_draws: how many random numbers a board needs at an episode's start and at a step.
    """

    begin_draws: ClassVar[int]
    step_draws: ClassVar[int] = 0

    def __init__(self, seeds: Sequence[int], copies: int, agents: int | None, options: SmallOptions) -> None:
        n = agents or 1
        self.spec = EnvSpec(
            id=f"small/{type(self).__name__.lower()}",
            agents=("agent",) if n == 1 else tuple(f"learner_{i}" for i in range(n)),
            obs_sizes=(CHANNELS * CELLS,) * n,
            action_sizes=(ACTIONS,) * n,
            discrete=True,
            max_steps=options.max_steps,
            independent=n > 1,
            bytes=True,
            pixels=(CHANNELS, SIDE, SIDE),
        )
        self.members, self.copies, self.limit = len(seeds), copies, options.max_steps
        self.streams = Streams(seeds, "small")
        self.time = torch.zeros(self.members * n * copies, dtype=torch.int64)
        self.board = self.begin(self._draw()[0])

    @abstractmethod
    def begin(self, random: Tensor) -> B:
        """New boards, from ``random [K, begin_draws]``."""

    @abstractmethod
    def advance(self, board: B, action: Tensor, random: Tensor) -> tuple[B, Tensor, Tensor]:
        """The rules.

        Args:
            board: is left as it is.
            action: ``[K]`` int64.
            random: ``[K, step_draws]``.

        Returns:
            The next boards, the reward ``[K]`` (any kind of number) and whether the game is over ``[K]`` bool.
        """

    @abstractmethod
    def draw(self, board: B) -> Tensor:
        """What is seen, ``[K, CHANNELS * CELLS]`` float32, 0 or 255; see ``picture``."""

    @abstractmethod
    def scripted(self, board: B) -> Tensor:
        """A good player's action ``[K]`` by a rule of thumb, to know what a learner can reach."""

    def reset(self) -> Tensor:
        self.board = self.begin(self._draw()[0])
        self.time = torch.zeros_like(self.time)
        return self._fold(self.draw(self.board))

    def step(self, action: Tensor) -> Step:
        at_begin, at_step = self._draw()
        self.board, reward, over = self.advance(self.board, action.reshape(-1), at_step)
        self.time = self.time + 1
        done = over | (self.time >= self.limit)
        next_obs = obs = self.draw(self.board)
        if done.any():
            both = zip(self.begin(at_begin), self.board, strict=True)
            self.board = self.board._make(torch.where(_like(done, old), new, old) for new, old in both)
            self.time = self.time.masked_fill(done, 0)
            obs = self.draw(self.board)
        folded = (self._fold(x) for x in (obs.clone(), next_obs, reward.float(), over, done))
        return Step(*folded)

    def scripted_action(self) -> Tensor:
        """What the rule of thumb would do now, ``[P, N, E]``."""
        return self._fold(self.scripted(self.board))

    def state_dict(self) -> State:
        board = {name: x.clone() for name, x in self.board._asdict().items()}
        return {"time": self.time.clone(), "board": board, "streams": self.streams.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.time = state["time"].clone()
        self.board = self.board._make(state["board"][name].clone() for name in self.board._fields)
        self.streams.load_state_dict(state["streams"])

    def render(self, member: int = 0, copy: int = 0) -> np.ndarray:
        """One board (of the first agent), 32 pixels a cell; later channels are painted over earlier ones."""
        seen = self._fold(self.draw(self.board))[member, 0, copy].view(CHANNELS, SIDE, SIDE)
        picture = torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8)
        for plane, colour in zip(seen, COLOURS, strict=True):
            picture[plane > 0] = colour
        return picture.repeat_interleave(32, 0).repeat_interleave(32, 1).numpy()

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Random numbers for a beginning and for a step; as many at every step, whichever boards begin anew."""
        sizes = [self.begin_draws, self.step_draws]
        random = self.streams.uniform(self.spec.n_agents, self.copies, sum(sizes)).flatten(0, 2)
        at_begin, at_step = random.split(sizes, dim=1)
        return at_begin, at_step

    def _fold(self, x: Tensor) -> Tensor:
        """``[K, ...]`` to ``[P, N, E, ...]``."""
        return x.unflatten(0, (self.members, self.spec.n_agents, self.copies))


def _like(flag: Tensor, x: Tensor) -> Tensor:
    """``[K]`` with as many more dimensions of 1 as ``x [K, ...]`` has."""
    return flag.view(-1, *[1] * (x.dim() - 1))


def pick(random: Tensor, count: int | Tensor) -> Tensor:
    """Whole numbers from 0 to count - 1, from uniform numbers on [0, 1)."""
    return (random * count).long()


def slide(column: Tensor, action: Tensor) -> Tensor:
    """Where one stands who moves by LEFT and RIGHT alone and stops at the walls."""
    return (column + COLUMN_MOVES[action]).clamp(0, SIDE - 1)


def walk(cell: Tensor, action: Tensor) -> Tensor:
    """The cell that an action leads to; the walls stop it."""
    row = (cell // SIDE + ROW_MOVES[action]).clamp(0, SIDE - 1)
    column = (cell % SIDE + COLUMN_MOVES[action]).clamp(0, SIDE - 1)
    return row * SIDE + column


def free_cell(free: Tensor, random: Tensor) -> Tensor:
    """``[K]``: one of the cells that are ``free [K, CELLS]`` bool, each as likely; CELLS where none is."""
    count = free.cumsum(1)
    return (count <= pick(random, count[:, -1])[:, None]).sum(1)


def picture(*points: Tensor) -> Tensor:
    """``[K, CHANNELS * CELLS]`` float32 of 0 and 255.

    Args:
        points: one tensor ``[K]`` or ``[K, m]`` for each channel, from the first on: the cells that are lit. Cells
            below 0 are not on the board.
    """
    channel_of = [p if p.dim() == 2 else p[:, None] for p in points]
    index = torch.cat([torch.where(p < 0, HIDDEN, p + i * CELLS) for i, p in enumerate(channel_of)], 1)
    return torch.zeros(len(index), HIDDEN + 1).scatter_(1, index, 255.0)[:, :HIDDEN]
