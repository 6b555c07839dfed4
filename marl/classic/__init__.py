"""The four papers' provable algorithms, with exact planners to hold them against; NumPy, SciPy and Numba, never torch.

Each name is imported from its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "marl.classic.mdp": ("HeterogeneousLinearMDP", "LinearMDP", "LinearMultiagentMDP", "TabularMDP"),
    "marl.classic.planning": (
        "convex_coverage_set",
        "discounted_values",
        "evaluate_policy",
        "optimal_values",
        "policy_iteration",
        "start_value",
        "vector_values",
    ),
    "marl.classic.continuous": ("ContinuousLinearMDP",),
    "marl.classic.instances": (
        "make_chain",
        "make_combination_lock",
        "make_continuous_mdp",
        "make_heterogeneous_locks",
        "make_linear_multiagent",
        "make_lock_family",
        "make_riverswim",
        "make_simplex_mdp",
        "make_soft_block_lock",
        "make_value_shift",
    ),
    "marl.classic.adjacency": ("Adjacency",),
    "marl.classic.digital": ("Digital",),
    "marl.classic.networks": ("Network", "failing_links", "make_network"),
    "marl.classic.tabular": ("IndependentQ", "PolicyReciprocityQ", "QDLearning", "adjacency_limit"),
    "marl.classic.ridge": ("LogDetTrigger", "RidgeStatistics"),
    "marl.classic.lsvi": ("Bonus",),
    "marl.classic.coop_lsvi": ("CoopLSVI", "HeterogeneousCoopLSVI"),
    "marl.classic.multiagent_lsvi": ("MultiagentCoopLSVI",),
    "marl.classic.continuous_lsvi": ("ContinuousCoopLSVI",),
    "marl.classic.fronts": ("bayes_regret", "domination", "hypervolume", "maximum_utility_loss", "non_dominated"),
    "marl.classic.distmt": ("DistMTLSVI",),
    "marl.classic.distmt_constants": ("PracticalConstants", "TheoryConstants"),
    "marl.classic.subsample.system": ("LocalGlobalSystem",),
    "marl.classic.subsample.multisets": ("MultisetIndex",),
    "marl.classic.subsample.table": ("SubsampleQ",),
    "marl.classic.subsample.demand": ("demand_response",),
    "marl.classic.subsample.execute": ("Crowd", "execute"),
    "marl.classic.subsample.histogram_dqn": ("HistogramDQN",),
    "marl.classic.subsample.queueing": ("QueueModel", "QueueTable"),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_WHERE)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'marl.classic' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
