"""Agents learn to pass blockers: the rules seen at work, the exact optimum, and five ways to learn.

``python examples/classic_blocker.py`` runs in seconds; the page ``docs/classic/worlds.md`` explains it.
"""

from __future__ import annotations

import numpy as np

from marl.classic.networks import make_network
from marl.classic.tabular import IndependentQ, PolicyReciprocityQ, QDLearning, TabularQ
from marl.classic.worlds.blocker import best_returns, make_blocker
from marl.classic.worlds.simulate import greedy_returns, play
from marl.classic.worlds.world import Integers, TabularWorld


def main(episodes: int = 5_000) -> None:
    # %% One blocker, two agents, four columns. Each agent has a table over all that can be seen.
    world = make_blocker(blockers=1)
    print(f"{world.states} states ({' x '.join(world.coordinates)}), best return {best_returns(world).mean():.2f}")

    # %% Five learners. In the paper reciprocity has a = .3 and independent learners .5; the last has .3 as well.
    sizes, everyone = (world.agents, world.states, world.actions), make_network("complete", world.agents)
    learners: dict[str, TabularQ] = {
        "PR, gap hidden": PolicyReciprocityQ(*sizes, 0.99, everyone, world.adjacency("gap"), b=0.4),
        "PR, own column hidden": PolicyReciprocityQ(*sizes, 0.99, everyone, world.adjacency("column"), b=0.4),
        "QD-learning": QDLearning(*sizes, 0.99, everyone, b=0.2),
        "independent, a = .5": IndependentQ(*sizes, 0.99),
        "independent, a = .3": IndependentQ(*sizes, 0.99, a=0.3),
    }
    print(f"{'':24}{'while learning':>16}{'then greedy':>16}")
    for name, learner in learners.items():
        returns = play(world, learner, np.random.default_rng(0), episodes, epsilon=0.1)
        print(f"{name:24}{returns.mean():16.2f}{greedy_returns(world, learner).mean():16.2f}")

    # %% How the greedy agents do it from one start: both gaps must be attacked at once.
    learner, state, over = learners["independent, a = .5"], world.starts[0], False
    for time in range(world.horizon):
        print(f"step {time}\n{picture(world, state)}")
        if over:
            break
        action = learner.q[np.arange(world.agents), world.index(state)].argmax(-1)
        state, _, terminated = world.step(state, action)
        over = bool(terminated.all())


def picture(world: TabularWorld, state: Integers) -> str:
    """The grid: agents by number, ``#`` where a blocker stands."""
    rows = [["."] * world.sizes[1] for _ in range(world.sizes[0])]
    rows[-1] = ["." if column == state[-1] else "#" for column in range(world.sizes[1])]
    for agent, (row, column) in enumerate(state[:-1].reshape(-1, 2)):
        rows[row][column] = str(agent)
    return "\n".join("".join(row) for row in rows)


# %%
if __name__ == "__main__":
    main()
