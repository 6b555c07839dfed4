"""``small/gather``: walk to the food, around the thorns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from marl.envs.small.base import CELLS, DOWN, LEFT, RIGHT, SIDE, UP, Game, distinct_cells, picture, walk

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
        things = board.things
        if hit.any():
            elsewhere = distinct_cells(random, torch.cat([walker[:, None], things], 1))
            things = torch.where(hit, elsewhere, things)
        return GatherBoard(walker, things), reward, torch.zeros(len(walker), dtype=torch.bool)

    def draw(self, board: GatherBoard) -> Tensor:
        return picture(board.walker, *board.things.split([FOOD, THORNS], 1))

    def scripted(self, board: GatherBoard) -> Tensor:
        """The first step of a shortest way to food that meets no thorns."""
        food, thorns = board.things.split([FOOD, THORNS], 1)
        blocked = torch.zeros(len(food), CELLS, dtype=torch.bool).scatter_(1, thorns, True).view(-1, SIDE, SIDE)
        far = torch.full((len(food), CELLS), CELLS).scatter_(1, food, 0).view(-1, SIDE, SIDE)  # steps to food
        for _ in range(2 * SIDE + THORNS):
            around = torch.nn.functional.pad(far, (1, 1, 1, 1), value=CELLS)
            rows = torch.minimum(around[:, :-2, 1:-1], around[:, 2:, 1:-1])
            columns = torch.minimum(around[:, 1:-1, :-2], around[:, 1:-1, 2:])
            far = torch.minimum(far, 1 + torch.minimum(rows, columns)).masked_fill(blocked, CELLS)
        moves = torch.tensor([UP, RIGHT, DOWN, LEFT])
        return moves[far.flatten(1).gather(1, walk(board.walker[:, None], moves)).argmin(1)]
