"""The experiments of ``marl classic NAME``; each module is imported when it is first used."""

from __future__ import annotations

import importlib
from typing import NamedTuple

from marl.classic.experiments.base import Experiment
from marl.config import suggestion
from marl.types import UserError


class Entry(NamedTuple):
    """Where an experiment is, and one line about it."""

    module: str
    name: str
    about: str


EXPERIMENTS: dict[str, Entry] = {
    "pr-digital": Entry(
        "marl.classic.experiments.pr_digital", "PRDigital", "Figure 2: 20 agents agree on the value of a shared process"
    ),
    "pr-theorem3": Entry(
        "marl.classic.experiments.pr_theorem3", "PRTheorem3", "where constant kappa_same converges to, and annealing"
    ),
    "pr-blocker": Entry(
        "marl.classic.experiments.pr_worlds", "PRBlocker", "agents pass blockers: PR, QD-learning, independent learners"
    ),
    "pr-landmarks": Entry("marl.classic.experiments.pr_worlds", "PRLandmarks", "agents walk to landmarks of their own"),
    "pr-navigation": Entry("marl.classic.experiments.pr_worlds", "PRNavigation", "one landmark for all agents"),
    "coop-lsvi": Entry(
        "marl.classic.experiments.coop_lsvi", "CoopLSVIExperiment", "Algorithm 1: regret, rounds and bytes of a team"
    ),
    "coop-lsvi-heterogeneous": Entry(
        "marl.classic.experiments.coop_lsvi", "HeterogeneousExperiment", "Algorithm 3: agents in different processes"
    ),
    "coop-lsvi-multiagent": Entry(
        "marl.classic.experiments.coop_multiagent", "MultiagentExperiment", "Algorithm 2: the Pareto front recovered"
    ),
    "distmt-lsvi": Entry(
        "marl.classic.experiments.distmt", "DistMTExperiment", "tasks without names: episodes per agent against N"
    ),
    "subsample-demand": Entry(
        "marl.classic.experiments.subsample_demand", "SubsampleDemand", "demand response, Figures 1a, 1b and 1c"
    ),
    "subsample-queue": Entry(
        "marl.classic.experiments.subsample_queue", "SubsampleQueue", "a dispatcher and its queues, Figure 2"
    ),
}

ELSEWHERE: dict[str, Entry] = {
    "lifelong": Entry("marl.lifelong.experiment", "Lifelong", "agents that learn task after task and share them"),
}
"""Experiments that have a command of their own, and run in the same frame."""


def experiment(name: str) -> type[Experiment]:
    """The class of that experiment; raises ``UserError`` with the nearest name."""
    entry = (EXPERIMENTS | ELSEWHERE).get(name)
    if entry is None:
        raise UserError(f"no experiment {name!r}{suggestion(name, EXPERIMENTS)}")
    found: type[Experiment] = getattr(importlib.import_module(entry.module), entry.name)
    return found
