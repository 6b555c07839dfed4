"""Eight agents learn one process together, and speak only when a determinant says that it is worth it.

``python examples/classic_coop_lsvi.py`` runs in seconds; the page ``docs/classic/coop-lsvi.md`` explains it.
"""

from __future__ import annotations

import math

from marl.classic.coop_lsvi import CoopLSVI, HeterogeneousCoopLSVI, default_threshold
from marl.classic.instances import make_heterogeneous_locks, make_riverswim
from marl.classic.lsvi import Bonus
from marl.classic.mdp import LinearMDP
from marl.classic.ridge import LogDetTrigger


def main(episodes: int = 1_000, agents: int = 8) -> dict[str, float]:
    # %% One process for all. S of the trigger decides how often the agents synchronise: 0 is always, infinity never.
    river, bonus = make_riverswim(), Bonus(beta=4.0)
    threshold = 0.06 * default_threshold(episodes, agents, river.dim)
    regrets = {}
    print(f"RiverSwim, {agents} agents, {episodes} episodes each; S = {threshold:.3g}")
    for name, s in {"isolated": math.inf, "cooperating": threshold, "centralised": 0.0}.items():
        team = CoopLSVI(river, agents, trigger=LogDetTrigger(s), bonus=bonus)
        team.fit(episodes)
        said = team.communication
        regrets[name] = float(team.regret.mean())
        print(f"{name:12} regret {regrets[name]:7.1f}   rounds {said.rounds:5}   sent {said.bytes / 1e6:7.1f} MB")

    # %% Is the optimism true? With theory's beta the upper value stays above V*, and nothing is learned for long.
    for what, width in {"beta = 4": bonus, "theory": Bonus(scale=1.0)}.items():
        team = CoopLSVI(river, agents, trigger=LogDetTrigger(threshold), bonus=width)
        team.fit(episodes)
        beta = width.at(episodes, river.dim, river.horizon, agents)
        print(f"{what:9} beta {beta:6.1f}  V* {team.optimum[0]:.3f}  upper value {team.upper.min():.3f}  "
              f"regret of one more episode {team.gap.mean():.3f}")  # fmt: skip

    # %% Two groups of locks that differ in one position: blind pooling fails, features that name the agent do not.
    locks = make_heterogeneous_locks(agents=6, groups=2)
    trigger = LogDetTrigger(0.06 * default_threshold(episodes, 6, locks.features.shape[-1]))
    blind = [LinearMDP.one_hot(member.tabular) for member in locks.members]
    teams = {
        "isolated": HeterogeneousCoopLSVI(locks, trigger=LogDetTrigger(math.inf), bonus=bonus),
        "pooled, Algorithm 1": CoopLSVI(blind, trigger=trigger, bonus=bonus),
        "together, Algorithm 3": HeterogeneousCoopLSVI(locks, trigger=trigger, bonus=bonus),
    }
    for name, group in teams.items():
        group.fit(episodes)
        regrets[name] = float(group.regret.mean())
        print(f"{name:22} regret {regrets[name]:7.1f}   regret of one more episode {group.gap.mean():.3f}")
    return regrets


# %%
if __name__ == "__main__":
    main()
