"""Two agents who want different things: CoopLSVI (Algorithm 2) learns the compromises, seldom exchanging rewards.

Runs in a few seconds: ``python examples/classic_pareto.py``. Lines ``# %%`` start the cells of a notebook.
"""

# %% The process that both move together, and what can be had: the exact front, with all weights in its vertices.
from __future__ import annotations

import numpy as np

from marl.classic.fronts import domination, hypervolume, maximum_utility_loss
from marl.classic.instances import make_linear_multiagent
from marl.classic.lsvi import Bonus
from marl.classic.multiagent_lsvi import MultiagentCoopLSVI
from marl.classic.planning import convex_coverage_set


def main(episodes: int = 10_000) -> dict[str, float]:
    """Print what each cell finds and return the numbers."""
    process = make_linear_multiagent()
    front = convex_coverage_set(process).values
    reference = np.zeros(2)
    print(f"exact front: {len(front)} vertices, hypervolume {hypervolume(front, reference):.4f} above (0, 0)")

    # %% Learning: every episode has weights of its own, drawn alike by both agents.
    learner = MultiagentCoopLSVI(process, threshold=3.0, bonus=Bonus(beta=2.0), regulariser=0.1)
    regret = learner.fit(episodes).regret(front)
    said = learner.communication
    tenth = episodes // 10
    print(f"regret of the first tenth {regret[:tenth].sum():.1f}, of the last {regret[-tenth:].sum():.1f}")
    print(f"rewards exchanged after {said.rounds} of {episodes} episodes, {said.bytes / 1000:.1f} kB")

    # %% What was learnt: the greedy policy for each weight, its values exact.
    share = np.linspace(0, 1, 101)
    recovered = np.unique(learner.recover(np.stack([share, 1 - share], axis=1)), axis=0)
    part = hypervolume(recovered, reference) / hypervolume(front, reference)
    loss = maximum_utility_loss(recovered, front)
    worst = domination(recovered, front).max()
    print(
        f"recovered: {len(recovered)} policies, {100 * part:.2f} % of the hypervolume, utility loss {loss:.4f} at most"
    )
    print(f"the exact front dominates a recovered policy by {max(worst, 0.0):.4f} at most")

    # %% Agents that keep their rewards to themselves, each doing its part of what it wants itself.
    alone = MultiagentCoopLSVI(process, bonus=Bonus(beta=2.0), regulariser=0.1, isolated=True)
    lost = alone.fit(episodes).regret(front)
    print(f"regret in all: {regret.sum():.0f} together, {lost.sum():.0f} isolated")
    return {"hypervolume": part, "rounds": said.rounds, "loss": loss, "isolated": lost.sum() / regret.sum()}


if __name__ == "__main__":
    main()
