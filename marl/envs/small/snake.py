"""``small/snake``: eat and grow; do not bite yourself or the wall."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from marl.envs.small.base import (
    CELLS,
    CHANNELS,
    COLUMN_MOVES,
    DOWN,
    FIRE,
    LEFT,
    RIGHT,
    ROW_MOVES,
    SIDE,
    STAY,
    UP,
    Game,
    free_cell,
    pick,
    picture,
)

LENGTH = 3
"""Cells of a young snake."""


class SnakeBoard(NamedTuple):
    """The snake and its food.

    Attributes:
        head, food: cells ``[K]``.
        heading: UP, RIGHT, DOWN or LEFT ``[K]``.
        life: ``[K, CELLS]``, for how many steps a cell still belongs to the body; 0: it does not.
    """

    head: Tensor
    heading: Tensor
    life: Tensor
    food: Tensor


class Snake(Game[SnakeBoard]):
    """The snake moves by one cell at each step; UP, RIGHT, DOWN and LEFT turn it, all else lets it go straight on.

    So does turning back. Entering the cell of the food earns 1, makes it longer by one cell, and food appears in a
    random free cell. Leaving the board or entering a cell of its own body ends the game; the cell that the tail's end
    is just leaving counts as free.

    Channels: head, body, food, and the cell behind the head.
    """

    begin_draws = 2
    step_draws = 1

    def begin(self, random: Tensor) -> SnakeBoard:
        row = pick(random[:, 0], SIDE)
        head = row * SIDE + LENGTH - 1
        life = torch.zeros(len(head), CELLS, dtype=torch.int64)
        for k in range(LENGTH):
            life.scatter_(1, (head - k)[:, None], LENGTH - k)
        return SnakeBoard(head, torch.full_like(head, RIGHT), life, free_cell(life == 0, random[:, 1]))

    def advance(self, board: SnakeBoard, action: Tensor, random: Tensor) -> tuple[SnakeBoard, Tensor, Tensor]:
        heading = turn(board.heading, action)
        row = board.head // SIDE + ROW_MOVES[heading]
        column = board.head % SIDE + COLUMN_MOVES[heading]
        outside = (row < 0) | (row >= SIDE) | (column < 0) | (column >= SIDE)
        head = torch.where(outside, board.head, row * SIDE + column)
        ate = (head == board.food) & ~outside
        life = (board.life - (~ate).long()[:, None]).clamp(min=0)
        bitten = life.gather(1, head[:, None]).squeeze(1) > 0
        length = board.life.amax(1) + ate  # the head's cell has the longest life
        life.scatter_(1, head[:, None], length[:, None])
        food = board.food
        if ate.any():
            food = torch.where(ate, free_cell(life == 0, random[:, 0]).clamp(max=CELLS - 1), food)
        return SnakeBoard(head, heading, life, food), ate, outside | bitten

    def draw(self, board: SnakeBoard) -> Tensor:
        neck = board.head - ROW_MOVES[board.heading] * SIDE - COLUMN_MOVES[board.heading]
        seen = picture(board.head, torch.full_like(neck, -1), board.food, neck).unflatten(1, (CHANNELS, CELLS))
        seen[:, 1] = 255.0 * (board.life > 0)
        seen[:, 1].scatter_(1, board.head[:, None], 0.0)
        return seen.flatten(1)

    def scripted(self, board: SnakeBoard) -> Tensor:
        """Nearer to the food by a step that does not end the game, if there is one that does not."""
        moves = torch.tensor([UP, RIGHT, DOWN, LEFT])
        row = (board.head // SIDE)[:, None] + ROW_MOVES[moves]
        column = (board.head % SIDE)[:, None] + COLUMN_MOVES[moves]
        outside = (row < 0) | (row >= SIDE) | (column < 0) | (column >= SIDE)
        reached = torch.where(outside, board.head[:, None], row * SIDE + column)
        body = (board.life > 1).long()
        crowd = body.gather(1, reached) + outside
        return moves[(distance(reached, board.food[:, None]) + 100 * crowd).argmin(1)]


def turn(heading: Tensor, action: Tensor) -> Tensor:
    """The new heading; back where one came from is no turn."""
    back = (action - heading).abs() == 2
    return torch.where((action == STAY) | (action == FIRE) | back, heading, action)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Steps from cell to cell."""
    return (a // SIDE - b // SIDE).abs() + (a % SIDE - b % SIDE).abs()
