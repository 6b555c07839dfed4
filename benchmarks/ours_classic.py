"""This project's side of the rows of ``classic.py``."""

from __future__ import annotations

import resource
import time

import numpy as np

from benchmarks.pair import Work
from marl.classic.adjacency import Adjacency
from marl.classic.coop_lsvi import CoopLSVI
from marl.classic.digital import Digital
from marl.classic.instances import make_combination_lock, make_riverswim
from marl.classic.lsvi import Bonus
from marl.classic.mdp import LinearMDP
from marl.classic.networks import make_network
from marl.classic.ridge import LogDetTrigger
from marl.classic.subsample.demand import demand_response
from marl.classic.subsample.table import SubsampleQ
from marl.classic.tabular import PolicyReciprocityQ

RIVERSWIM_HORIZON = 12


def riverswim() -> LinearMDP:
    return make_riverswim(states=5, horizon=RIVERSWIM_HORIZON)


def lsvi_fits(episodes: int, replan: float, beta: float, regulariser: float) -> Work:
    """Fits of one agent from the start on RiverSwim; a unit is an episode."""
    process = riverswim()

    def work() -> float:
        agent = CoopLSVI(
            process,
            1,
            trigger=LogDetTrigger(float("inf")),
            bonus=Bonus(beta=beta),
            regulariser=regulariser,
            replan=replan,
        )
        agent.fit(episodes)
        return episodes

    return work


def late_episodes(after: int) -> Work:
    """100 episodes of eight agents, always those that follow the first ``after``; a unit is an episode of all."""
    process = make_combination_lock()
    team = CoopLSVI(process, 8, trigger=LogDetTrigger(1000.0), bonus=Bonus(beta=2.0))
    team.fit(after)
    saved = team.state_dict()

    def work() -> float:
        team.load_state_dict(saved)
        team.fit(100)
        return 100.0

    return work


def reciprocity_updates(agents: int) -> Work:
    """Tabular reciprocity on Digital, half the weight on adjacent states; a unit is an update of one agent."""
    world = Digital(agents=agents)
    learner = PolicyReciprocityQ(
        agents, world.states, world.actions, world.gamma, make_network("ring", agents), Adjacency.ring(world.states)
    )
    rng = np.random.default_rng(0)
    walk = world.walk(rng, 0, 1000)

    def work() -> float:
        learner.update_many(*walk)
        return 1000.0 * agents

    return work


def demand_sweeps(k: int) -> Work:
    """Exact sweeps of demand response over all multisets, none merged; a unit is a sweep."""
    table = SubsampleQ(demand_response(), k, merge=False)

    def work() -> float:
        table.fit(1)
        return 1.0

    return work


def solve_demand(k: int, threads: int) -> tuple[float, float]:
    """Solve demand response and write its Q table out in float32; for a fresh process.

    Returns:
        Seconds, compilation not counted, and the largest memory beyond what the process had before as a multiple of the
        table's own bytes.
    """
    system = demand_response()
    SubsampleQ(system, 2, threads=threads).solve().q(np.float32)  # compiles
    before = peak_bytes()
    start = time.perf_counter()
    table = SubsampleQ(system, k, threads=threads).solve().q(np.float32)
    seconds = time.perf_counter() - start
    return seconds, (peak_bytes() - before) / table.nbytes


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
