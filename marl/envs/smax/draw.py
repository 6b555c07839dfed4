"""A picture of one battle, in numpy alone."""

from __future__ import annotations

import numpy as np

PIXELS = 400
ALLY, ENEMY = (40, 90, 200), (200, 60, 40)


def draw(pos: np.ndarray, radius: np.ndarray, health: np.ndarray, allies: int) -> np.ndarray:
    """Discs on white, uint8 ``[PIXELS, PIXELS, 3]``: allies blue, enemies red, filled from below as far as they live.

    Args:
        pos: ``[U, 2]`` in [0, 1], y points up; allies first.
        radius: ``[U]``, as a part of the picture's width.
        health: ``[U]`` in [0, 1]; the dead are not drawn.
        allies: how many of the units are ours.
    """
    image = np.full((PIXELS, PIXELS, 3), 255, np.uint8)
    grid = np.arange(PIXELS) + 0.5
    for k in np.flatnonzero(health > 0):
        x, y, r = PIXELS * pos[k, 0], PIXELS * (1 - pos[k, 1]), PIXELS * radius[k]
        disc = (grid[None, :] - x) ** 2 + (grid[:, None] - y) ** 2 <= r**2
        image[disc] = 215
        image[disc & (grid[:, None] >= y + r - 2 * r * health[k])] = ALLY if k < allies else ENEMY
    return image
