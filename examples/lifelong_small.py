"""Two agents that are not told which game they face: the second recognises the first one's, and borrows what it learnt.

``python examples/lifelong_small.py`` runs in about a minute; the page ``docs/lifelong/index.md`` explains it. The
command ``marl lifelong`` does all of this for any number of agents, games and rounds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from marl.lifelong.hub import Hub, Match
from marl.lifelong.options import SMALL_DQN, LifelongOptions
from marl.lifelong.shard import Shard
from marl.lifelong.simnet import THRESHOLD, distance
from marl.lifelong.tasks import Tasks

GAMES = ("small/catch", "small/gates")


def main(frames: int = 8_000, identify_steps: int = 10_000) -> dict[str, float]:
    """The returns of both agents on the first game."""
    options = LifelongOptions(
        tasks=GAMES, frames=frames, identify_steps=identify_steps, evals=1, ewc=0.0, dqn=SMALL_DQN
    )
    tasks = Tasks.of(options.tasks, options.env)
    with tempfile.TemporaryDirectory() as folder, Hub(Path(folder), THRESHOLD) as hub:
        first = Shard(options, tasks, [0], [100], 0.0, hub)
        second = Shard(options, tasks, [1], [101], 0.0, hub)

        # %% Both play catch for a while to train a SimNet, from equal weights but other seeds; then the first agent
        # plays gates. The weights tell the games apart.
        prints = [first.identify(0, [0])[0], second.identify(0, [0])[0], first.identify(1, [1])[0]]
        print(f"catch, two seeds: {distance(prints[0], prints[1]):.2f} apart")
        print(f"catch and gates: {distance(prints[0], prints[2]):.2f} apart; the threshold is {THRESHOLD}")

        # %% The first agent asks the hub, which knows nothing: it learns by playing, and shares.
        scores = {"agent_0": _round(first, hub.meet(prints[0], "agent_0"))}

        # %% The second one asks: the hub knows that game. It replays what the first one lived through, and plays
        # nothing.
        scores["agent_1"] = _round(second, hub.meet(prints[1], "agent_1"))
        for name, score in scores.items():
            account = hub.traffic()[name]
            print(f"{name}: {score:.1f} per episode; sent {account.sent}, received {account.received} bytes")
    return scores


def _round(agent: Shard, match: Match) -> float:
    """Learn or borrow; the return on the game in the end."""
    (borrows,) = agent.begin(0, [0], [match])
    known = "a new game" if match.new else f"game {match.task}, {match.distance:.2f} away"
    print(f"{agent.names[0]}: {known};", end=" ")
    print("replays what is known of it" if borrows else "learns it by playing")
    done = 0
    while done < agent.steps:
        done, _ = agent.advance(seconds=1.0)
    last = agent.end().last
    agent.share(last)
    return last.scores[0]


# %%
if __name__ == "__main__":
    main()
