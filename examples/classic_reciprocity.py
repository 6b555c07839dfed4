"""Twenty agents share the values of a random process: what they agree on, and whether it is right.

``python examples/classic_reciprocity.py`` runs in seconds; the page ``docs/classic/policy-reciprocity.md`` explains it.
"""

from __future__ import annotations

import numpy as np

from marl.classic.adjacency import Adjacency
from marl.classic.digital import Digital
from marl.classic.networks import make_network
from marl.classic.tabular import IndependentQ, PolicyReciprocityQ, QDLearning, TabularQ, adjacency_limit


def main(steps: int = 200_000, agents: int = 20, states: int = 20) -> None:
    # %% A process that all see; rewards are the same for all on average, but each agent has noise of its own.
    world = Digital(agents, states, shared_rewards=True, seed=0)
    print(f"Q* of the mean reward lies in [{world.optimum.min():.2f}, {world.optimum.max():.2f}]")

    # %% Who talks to whom, and which states count as similar.
    network, adjacency = make_network("ring", agents), Adjacency.ring(states)
    print(f"lambda_2 of the network: {network.lambda_2:.3f} (more than 0: connected)")

    # %% Five ways to learn from one and the same walk.
    sizes = (agents, states, world.actions)
    learners: dict[str, TabularQ] = {
        "PR, same states only": PolicyReciprocityQ(*sizes, world.gamma, network, adjacency, kappa_same=1.0),
        "PR, adjacent states, constant": PolicyReciprocityQ(
            *sizes, world.gamma, network, adjacency, kappa_same=0.5, anneal_adjacency=None
        ),
        "PR, adjacent states, annealed": PolicyReciprocityQ(*sizes, world.gamma, network, adjacency, kappa_same=0.5),
        "QD-learning": QDLearning(*sizes, world.gamma, network),
        "independent": IndependentQ(*sizes, world.gamma),
    }
    rng, state = np.random.default_rng(1), 0
    for _ in range(10):
        walk = world.walk(rng, state, steps // 10)
        state = int(walk.next_state[-1, 0])
        for learner in learners.values():
            learner.update_many(*walk)

    # %% Do they agree, is it Q*, and is it what the adjacency mean makes of Q*?
    limit = adjacency_limit(world.transition, world.mean.reward, world.gamma, adjacency)
    print(f"{'':30} {'disagreement':>12} {'error to Q*':>12} {'to the limit':>12}")
    for name, learner in learners.items():
        mean = learner.average
        numbers = (np.abs(learner.q - mean).max(), np.abs(mean - world.optimum).max(), np.abs(mean - limit).max())
        print(f"{name:30} " + " ".join(f"{number:12.3f}" for number in numbers))


# %%
if __name__ == "__main__":
    main()
