"""A picture of one copy, in numpy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marl.envs.mpe.world import Body

PIXELS = 400
MARGIN = 0.9


def draw(bodies: Sequence[Body], landmarks: int, pos: np.ndarray, first_range: float, rescale: bool) -> np.ndarray:
    """Discs on white, uint8 ``[PIXELS, PIXELS, 3]``; y points up. The camera always holds every body's centre.

    Args:
        bodies: agents first; agents are drawn above landmarks, with a dark rim.
        landmarks: how many of the last bodies are landmarks.
        pos: ``[K, 2]``.
        first_range: half-width of the camera at the start of the episode.
        rescale: shrink the discs as the camera zooms out (mpe2's ``dynamic_rescaling``).
    """
    reach = max(float(np.abs(pos).max()), 1e-6)
    image = np.full((PIXELS, PIXELS, 3), 255, np.uint8)
    grid = np.arange(PIXELS) + 0.5
    zoom = MARGIN * first_range / reach if rescale else 1.0
    agents = len(bodies) - landmarks
    for k in [*range(agents, len(bodies)), *range(agents)]:
        x = PIXELS / 2 * (1 + MARGIN * pos[k, 0] / reach)
        y = PIXELS / 2 * (1 - MARGIN * pos[k, 1] / reach)
        radius = max(bodies[k].size * PIXELS / 2 * zoom, 1.5)
        square = (grid[None, :] - x) ** 2 + (grid[:, None] - y) ** 2
        if k < agents:
            image[square <= (radius + 1.5) ** 2] = 30
        image[square <= radius**2] = np.round(np.array(bodies[k].color) * 255).astype(np.uint8)
    return image
