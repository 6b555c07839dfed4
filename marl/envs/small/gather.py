"""``small/gather``: walk to the food, around the thorns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from marl.envs.small.base import COLUMN_MOVES, DOWN, LEFT, RIGHT, ROW_MOVES, SIDE, UP, Game, distinct_cells, picture

FOOD, THORNS = 3, 3


class GatherBoard(NamedTuple):
    """The walker's cell ``[K]``, and those of the food, then of the thorns ``[K, FOOD + THORNS]``."""

    walker: Tensor
    things: Tensor


class Gather(Game[GatherBoard]):
    """The walker moves by one cell in four directions among three pieces of food and three thorns.

    Entering a cell with food earns 1, one with thorns -1; what was there moves to a random free cell at once. Only the
    time limit ends an episode.

    Channels: walker, food, thorns.
    """

    begin_draws = 1 + FOOD + THORNS
    step_draws = 1

    def begin(self, random: Tensor) -> GatherBoard:
        cells = distinct_cells(random)
        return GatherBoard(cells[:, 0], cells[:, 1:])

    def advance(self, board: GatherBoard, action: Tensor, random: Tensor) -> tuple[GatherBoard, Tensor, Tensor]:
        walker = walk(board.walker, action)
        hit = board.things == walker[:, None]
        reward = hit[:, :FOOD].sum(1) - hit[:, FOOD:].sum(1)
        elsewhere = distinct_cells(random, torch.cat([walker[:, None], board.things], 1))
        things = torch.where(hit, elsewhere, board.things)
        return GatherBoard(walker, things), reward, torch.zeros(len(walker), dtype=torch.bool)

    def draw(self, board: GatherBoard) -> Tensor:
        return picture(board.walker, *board.things.split([FOOD, THORNS], 1))

    def scripted(self, board: GatherBoard) -> Tensor:
        """Nearer to the nearest food, by a step that meets no thorns if there is one."""
        food, thorns = board.things.split([FOOD, THORNS], 1)
        start = distance(board.walker[:, None], food)
        goal = food.gather(1, start.argmin(1, keepdim=True))
        moves = torch.tensor([UP, RIGHT, DOWN, LEFT])
        reached = walk(board.walker[:, None], moves)  # [K, 4]
        cost = distance(reached, goal) + 2 * (reached[..., None] == thorns[:, None]).any(-1)
        return moves[cost.argmin(1)]


def walk(cell: Tensor, action: Tensor) -> Tensor:
    """The cell that an action leads to; the walls stop it."""
    row = (cell // SIDE + ROW_MOVES[action]).clamp(0, SIDE - 1)
    column = (cell % SIDE + COLUMN_MOVES[action]).clamp(0, SIDE - 1)
    return row * SIDE + column


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Steps from cell to cell."""
    return (a // SIDE - b // SIDE).abs() + (a % SIDE - b % SIDE).abs()
