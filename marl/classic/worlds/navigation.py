"""Navigation: N agents walk to one landmark, the same for all, on a 5 x 5 grid.

The rules are those of Landmarks but for the deal: at an episode's start one cell is the landmark of all, and each agent
begins in any other cell. The paper names the world and gives no rules, so these are this project's.
"""

from __future__ import annotations

from typing import Any

from marl.classic.worlds.landmarks import make_grid
from marl.classic.worlds.world import HORIZON, TabularWorld, positive


def make_navigation(agents: int = 3, horizon: int = HORIZON) -> TabularWorld:
    """Navigation with any number of agents; state and view are those of ``make_landmarks``."""
    return make_grid("navigation", positive("agents", agents), horizon, shared=True)


def parallel_env(agents: int = 3, horizon: int = HORIZON) -> Any:
    """Navigation as a PettingZoo parallel environment: ``pettingzoo/marl.classic.worlds.navigation``."""
    from marl.classic.worlds.parallel import ParallelWorld

    return ParallelWorld(make_navigation(agents, horizon))
