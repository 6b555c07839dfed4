"""A dispatcher that looks at k of n queues: what it learns, what that costs exactly, and how it fares among fifty.

``python examples/classic_queueing.py`` runs in seconds; the page ``docs/classic/queueing.md`` explains it.
"""

from __future__ import annotations

import numpy as np

from marl.classic.subsample.dispatch import Queues, rule_gap, shortest_of
from marl.classic.subsample.queueing import Overflow, QueueModel, QueueTable


def main(steps: int = 20_000, ks: tuple[int, ...] = (1, 2, 3)) -> None:
    # %% Four short queues that are busy 90 % of the time: the optimum is exact, and so is every rule's value.
    few = QueueModel.with_load(4, load=0.9, c=6)
    whole = QueueTable(few, k=4).solve()
    print(f"{whole.values.size} states, optimum from uniform lengths {whole.uniform_value(whole.values):.3f}")
    print(f"{'k':>3}{'worst gap':>12}{'mean gap':>12}")
    for k in (1, 2, 3, 4):
        gap = rule_gap(whole, QueueTable(few, k).solve().rule())
        print(f"{k:3}{max(gap.worst, 0):12.3f}{max(gap.mean, 0):12.3f}")

    # %% What the table for k = 2 says: two queues are seen, the next job goes to the marked one.
    table = QueueTable(few, k=2).solve()
    print("the marked queue's length down, the other's across; m: the marked queue again, o: the other one")
    for marked in range(few.lengths):
        print(f"{marked:3} " + " ".join("mo"[slot] for slot in table.rule().here[:, marked]))

    # %% To the paper's letter a full queue swallows jobs for nothing: the best of an empty and a full one is the full.
    modes: tuple[Overflow, ...] = ("lost", "paper")
    for overflow in modes:
        odd = QueueTable(QueueModel(3, p=0.2, c=6, overflow=overflow), k=2).solve()
        choice = (0, 6)[odd.rule().elsewhere[odd.index.rank(np.array([0, 6]))]]
        print(f"overflow = {overflow}: of queues with 0 and 6 jobs the one with {choice} gets the next")

    # %% Fifty queues: rules that were learnt beside the classic ones, on equal luck.
    model = QueueModel.with_load(50, load=0.9)
    rules = {"join-shortest-queue": shortest_of(50), "power of two choices": shortest_of(2), "random": shortest_of(1)}
    rules |= {f"SUB-SAMPLE-Q, k = {k}": QueueTable(model, k).solve(1e-4).rule() for k in ks}
    print(f"{'':24}{'jobs in a queue':>18}")
    for name, rule in rules.items():
        queues = Queues(model, runs=2, empty=True)
        queues.play(rule, steps)
        print(f"{name:24}{queues.play(rule, steps).length.mean():18.2f}")


# %%
if __name__ == "__main__":
    main()
