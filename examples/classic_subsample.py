"""SUB-SAMPLE-Q on demand response: k of n users are looked at. ``python examples/classic_subsample.py``, seconds."""

# %% The regulator (global agent) sets a target; users follow it half of the time.
from __future__ import annotations

from marl.classic.subsample.bounds import optimality_bound
from marl.classic.subsample.demand import demand_response
from marl.classic.subsample.evaluate import gap
from marl.classic.subsample.execute import Crowd, execute
from marl.classic.subsample.table import SubsampleQ


def main(n: int = 4, agents: int = 1_000_000) -> None:
    system = demand_response()
    print(f"{system.local_states} states of a user, {system.global_states} targets, {system.actions} actions")

    # %% With k = n and the exact expectation, the table is Q* of n users: the reference.
    optimum = SubsampleQ(system, n).solve()
    print(f"Q* of {n} users: {optimum.cells.size} cells, {optimum.sweeps} sweeps, within {optimum.error:.0e}")

    # %% What does it cost to look at k of them only? Exactly, over all states.
    for k in range(1, n + 1):
        table = SubsampleQ(system, k).solve()
        worst, mean = gap(table, optimum)
        bound = optimality_bound(system, n, k)
        print(f"k = {k}: V* - V^pi is {worst:.3f} at most, {mean:.3f} on average (Theorem 3.2: {bound:.0f})")

    # %% Algorithm 1 learns from m samples of each cell.
    noisy = SubsampleQ(system, 2, backup="frozen", m=50).solve(1e-3)
    print(f"k = 2 from m = 50 samples: {gap(noisy, optimum).worst:.3f} at most")

    # %% The same small table decides for a crowd of any size (Algorithm 2).
    played = execute(Crowd(system, agents), noisy, steps=50)
    print(f"{agents} agents, k = 2: {played.discounted[0]:.2f} discounted, {played.reward[-1]:.3f} a step at last")


if __name__ == "__main__":
    main()
