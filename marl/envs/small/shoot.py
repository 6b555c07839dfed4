"""``small/shoot``: ducks cross the sky; fire when one is above the gun."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from marl.envs.small.base import FIRE, LEFT, RIGHT, SIDE, STAY, Game, pick, picture, slide

FLOOR = SIDE - 1
SKY = 8
"""Rows in which ducks fly, from the top."""

DUCKS = 2
RELOAD = 4
"""Steps from one shot to the next."""


class ShootBoard(NamedTuple):
    """Gun and ducks.

    Attributes:
        gun: its column ``[K]``, on the bottom row.
        wait: steps until it is loaded ``[K]``; 0: it is.
        row, column: of the ducks ``[K, DUCKS]``.
        right: their steps, -1 or 1 ``[K, DUCKS]``.
    """

    gun: Tensor
    wait: Tensor
    row: Tensor
    column: Tensor
    right: Tensor


class Shoot(Game[ShootBoard]):
    """Two ducks fly along a row each, one cell a step; the gun on the bottom row moves LEFT or RIGHT by one.

    FIRE shoots straight up, after the ducks have moved: each duck in the gun's column is hit and earns 1. Then the gun
    reloads, so that it can fire again at the fourth step from there; until then FIRE does nothing. A duck that was hit
    or left the board is followed by another, from a random side in a random row. Only the time limit ends an episode.

    Channels: gun, ducks, where each duck was before, and as many cells of the bottom row as there are steps to wait.
    """

    begin_draws = 1 + 3 * DUCKS
    step_draws = 2 * DUCKS

    def begin(self, random: Tensor) -> ShootBoard:
        gun = pick(random[:, 0], SIDE)
        row, side, column = random[:, 1:].unflatten(1, (3, DUCKS)).unbind(1)
        return ShootBoard(gun, torch.zeros_like(gun), pick(row, SKY), pick(column, SIDE), _direction(side))

    def advance(self, board: ShootBoard, action: Tensor, random: Tensor) -> tuple[ShootBoard, Tensor, Tensor]:
        gun = slide(board.gun, action)
        column = board.column + board.right
        fired = (action == FIRE) & (board.wait == 0)
        hit = fired[:, None] & (column == gun[:, None])
        wait = torch.where(fired, RELOAD - 1, (board.wait - 1).clamp(min=0))
        new = hit | (column < 0) | (column >= SIDE)
        row, side = random.unflatten(1, (2, DUCKS)).unbind(1)
        right = torch.where(new, _direction(side), board.right)
        column = torch.where(new, torch.where(right > 0, 0, SIDE - 1), column)
        row = torch.where(new, pick(row, SKY), board.row)
        return ShootBoard(gun, wait, row, column, right), hit.sum(1), torch.zeros_like(fired)

    def draw(self, board: ShootBoard) -> Tensor:
        before = board.column - board.right
        trail = torch.where((before < 0) | (before >= SIDE), -1, board.row * SIDE + before)
        bar = torch.arange(RELOAD - 1)
        waiting = torch.where(bar < board.wait[:, None], FLOOR * SIDE + bar, -1)
        return picture(FLOOR * SIDE + board.gun, board.row * SIDE + board.column, trail, waiting)

    def scripted(self, board: ShootBoard) -> Tensor:
        """Fire at what will be above; else towards the duck that will be nearest, but not while it comes by itself."""
        off = board.column + board.right - board.gun[:, None]
        ready = (board.wait == 0) & (off == 0).any(1)
        nearest = off.abs().argmin(1, keepdim=True)
        off, right = off.gather(1, nearest).squeeze(1), board.right.gather(1, nearest).squeeze(1)
        follow = torch.where(off > 0, RIGHT, LEFT).masked_fill((off == 0) | (off * right < 0), STAY)
        return torch.where(ready, FIRE, follow)


def _direction(random: Tensor) -> Tensor:
    return torch.where(random < 0.5, -1, 1)
