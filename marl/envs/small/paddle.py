"""``small/paddle``: keep a ball in play that flies on diagonals."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from marl.envs.small.base import LEFT, RIGHT, SIDE, STAY, Game, pick, picture, slide

FLOOR = SIDE - 1
WIDTH = 3
"""Cells of the paddle."""


class PaddleBoard(NamedTuple):
    """``[K]`` each: the paddle's middle column; the ball's row, column and steps (-1 or 1) in both; where it was."""

    paddle: Tensor
    row: Tensor
    column: Tensor
    down: Tensor
    right: Tensor
    trail: Tensor


class Paddle(Game[PaddleBoard]):
    """The ball moves one row and one column a step and bounces off the ceiling and the side walls.

    The paddle, three cells on the bottom row, moves LEFT or RIGHT by one. A ball that would enter the bottom row
    bounces if the paddle is there: +1. The left and right cells send it left and right, the middle one lets it go on as
    it came. A ball that meets no paddle ends the game. From hit to hit it takes 16 steps.

    Channels: paddle, ball, and where the ball was one step before.
    """

    begin_draws = 3

    def begin(self, random: Tensor) -> PaddleBoard:
        column = pick(random[:, 0], SIDE)
        one = torch.ones_like(column)
        right = torch.where(random[:, 1] < 0.5, -one, one)
        return PaddleBoard(1 + pick(random[:, 2], SIDE - 2), 2 * one, column, one, right, -one)

    def advance(self, board: PaddleBoard, action: Tensor, random: Tensor) -> tuple[PaddleBoard, Tensor, Tensor]:
        paddle = slide(board.paddle, action).clamp(1, SIDE - 2)
        column, right = _bounce(board.column + board.right, board.right)
        row = board.row + board.down
        down = torch.where(row < 0, 1, board.down)
        row = row.abs()
        landing = row == FLOOR
        offset = column - paddle
        hit = landing & (offset.abs() <= WIDTH // 2)
        row = torch.where(hit, FLOOR - 2, row)
        down = torch.where(hit, -1, down)
        right = torch.where(hit & (offset != 0), offset, right)
        trail = board.row * SIDE + board.column
        return PaddleBoard(paddle, row, column, down, right, trail), hit, landing & ~hit

    def draw(self, board: PaddleBoard) -> Tensor:
        paddle = FLOOR * SIDE + board.paddle[:, None] + torch.arange(-1, 2)
        return picture(paddle, board.row * SIDE + board.column, board.trail)

    def scripted(self, board: PaddleBoard) -> Tensor:
        """To where the ball will come down. This is optimal: no ball is lost."""
        steps = torch.where(board.down > 0, FLOOR - board.row, FLOOR + board.row)
        # Walls mirror the ball, so unfolded it flies straight on a line of 18 columns that repeat.
        turn = 2 * (SIDE - 1)
        straight = (board.column + board.right * steps) % turn
        target = torch.minimum(straight, turn - straight).clamp(1, SIDE - 2)
        return torch.where(target > board.paddle, RIGHT, LEFT).masked_fill(target == board.paddle, STAY)


def _bounce(column: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """A ball that would leave the board at a side comes back by as much."""
    out = (column < 0) | (column >= SIDE)
    inside = torch.where(column < 0, -column, 2 * (SIDE - 1) - column)
    return torch.where(out, inside, column), torch.where(out, -right, right)
