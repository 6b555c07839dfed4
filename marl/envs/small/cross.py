"""``small/cross``: cross three roads with two lanes each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from marl.envs.small.base import DOWN, LEFT, RIGHT, SIDE, STAY, UP, Game, pick, picture, walk

LANES = torch.tensor([8, 7, 5, 4, 2, 1])
"""Their rows; the rows 9, 6, 3 and 0 are pavement."""

DIRECTIONS = torch.tensor([1, -1, 1, -1, 1, -1])
"""Where a lane's cars go: 1 to the right."""

BLOCK = 3
"""Rows from one pavement to the next."""

START = SIDE - 1


class CrossBoard(NamedTuple):
    """The walker's cell and the row of the pavement that pays next ``[K]``; the columns of cars ``[K, lanes, 2]``."""

    walker: Tensor
    goal: Tensor
    cars: Tensor


class Cross(Game[CrossBoard]):
    """The walker starts at the bottom and moves by one cell in four directions; two cars a lane, one cell a step.

    Cars that leave the board at one side come in at the other; neighbouring lanes go opposite ways. Cars and walker
    move at once: sharing a cell afterwards ends the game, changing places does not. Reaching a pavement for the first
    time earns 1; from the top one the walker is put back to the bottom row, and all pavements pay again.

    Channels: walker, cars, the pavement that pays next.
    """

    begin_draws = 13

    def begin(self, random: Tensor) -> CrossBoard:
        walker = START * SIDE + pick(random[:, 0], SIDE)
        first, gap = random[:, 1:].unflatten(1, (2, 6)).unbind(1)
        first = pick(first, SIDE)
        second = (first + 2 + pick(gap, SIDE - 3)) % SIDE  # at least one cell between the two, both ways round
        return CrossBoard(walker, torch.full_like(walker, START - BLOCK), torch.stack([first, second], -1))

    def advance(self, board: CrossBoard, action: Tensor, random: Tensor) -> tuple[CrossBoard, Tensor, Tensor]:
        cars = drive(board.cars)
        walker = walk(board.walker, action)
        hit = collides(walker, cars)
        arrived = walker // SIDE == board.goal
        across = arrived & (board.goal == 0)
        walker = torch.where(across, START * SIDE + walker, walker)
        goal = torch.where(arrived, (board.goal - BLOCK) % START, board.goal)
        return CrossBoard(walker, goal, cars), arrived, hit

    def draw(self, board: CrossBoard) -> Tensor:
        cars = (LANES[:, None] * SIDE + board.cars).flatten(1)
        return picture(board.walker, cars, board.goal[:, None] * SIDE + torch.arange(SIDE))

    def scripted(self, board: CrossBoard) -> Tensor:
        """The first of UP, STAY, LEFT, RIGHT and DOWN that is safe, and after which something is safe again."""
        moves = torch.tensor([UP, STAY, LEFT, RIGHT, DOWN])
        soon = drive(board.cars)
        one = walk(board.walker[:, None], moves)  # [K, 5]
        two = walk(one[..., None], moves)  # [K, 5, 5]
        safe = ~collides(one, soon) & (~collides(two.flatten(1), drive(soon))).view_as(two).any(-1)
        return moves[safe.int().argmax(1)]


def drive(cars: Tensor) -> Tensor:
    """All cars one cell on."""
    return (cars + DIRECTIONS[:, None]) % SIDE


def collides(walker: Tensor, cars: Tensor) -> Tensor:
    """Whether a walker's cell ``[K]`` or ``[K, m]`` holds a car of ``cars [K, lanes, 2]``."""
    cells = (LANES[:, None] * SIDE + cars).flatten(1)
    return (walker.view(len(walker), -1, 1) == cells[:, None]).any(-1).view(walker.shape)
