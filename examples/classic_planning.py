"""Exact optima with ``marl.classic``: one process, a policy judged, a process of one's own, a team's front.

Runs in a second: ``python examples/classic_planning.py``. Lines ``# %%`` start the cells of a notebook.
"""

# %% The process: a lock of four positions that one sequence of actions opens.
from __future__ import annotations

import numpy as np

from marl.classic.instances import make_combination_lock, make_linear_multiagent
from marl.classic.mdp import LinearMDP, TabularMDP
from marl.classic.planning import (
    convex_coverage_set,
    evaluate_policy,
    optimal_values,
    policy_iteration,
    start_value,
)


def main(agents: int = 2) -> dict[str, float]:
    """Print what each cell finds and return the numbers."""
    # %% Its optimum, and what a policy loses: the regret of one episode, without sampling a single one.
    lock = make_combination_lock(n=4, horizon=6)
    best = optimal_values(lock)
    optimum = start_value(lock, best.v)
    uniform = np.full((lock.horizon, lock.states, lock.actions), 1 / lock.actions)
    regret = optimum - start_value(lock, evaluate_policy(lock, uniform))
    print(f"lock: optimum {optimum:.4f}, right actions {best.policy[0, :4]}, regret of uniform play {regret:.4f}")

    # %% A process of one's own: two machines, one of which breaks down. Any table is linear in one-hot features.
    run, repair = [[0.9, 0.1], [0.0, 1.0]], [[1.0, 0.0], [0.7, 0.3]]  # [state, next state]
    table = TabularMDP(np.stack([run, repair], axis=1), np.array([[1.0, 0.6], [0.0, 0.0]]))
    endless = policy_iteration(table, gamma=0.9)
    week = LinearMDP.one_hot(table, horizon=7)
    print(f"machine: a week is worth {start_value(week, optimal_values(week).v):.4f}, {week.dim} features")
    print(f"machine, discounted: values {endless.v.round(4)}, policy {endless.policy} (0 runs, 1 repairs)")

    # %% A team in which everybody wants something else: the vertices of the convex Pareto front.
    team = make_linear_multiagent(actions_each=(2,) * agents)
    front = convex_coverage_set(team)
    ends = front.values[[0, -1]].round(3).tolist()
    print(f"front of {agents} agents: {len(front.values)} vertices, from {ends[0]} to {ends[1]}")
    return {"optimum": optimum, "regret": regret, "vertices": len(front.values)}


if __name__ == "__main__":
    main()
