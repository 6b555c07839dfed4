"""Agents that meet tasks without names, find out which were solved before, and share what they learned.

``python examples/classic_distmt.py`` runs in seconds; the page ``docs/classic/distmt-lsvi.md`` explains it.
"""

from __future__ import annotations

import numpy as np

from marl.classic.distmt import DistMTLSVI
from marl.classic.distmt_constants import PracticalConstants
from marl.classic.instances import make_lock_family


def main(k1: int = 2000, k2: int = 1000, agents: int = 8) -> None:
    # %% Four locks that open with different codes. Their optimal values at s_0 are .5 apart: that is all there is to
    # tell them apart by.
    tasks = make_lock_family(4, separation=0.5, horizon=6, slip=0.05)
    constants = PracticalConstants(k1, k2)
    model = DistMTLSVI(tasks, agents, c_sep=0.45, constants=constants, epsilon=0.1)
    print("V*(s_0):", np.round(model.optimal, 3), "-", constants.label)
    print(f"T = {model.total_rounds} rounds of {agents} agents. {model.theory()}")

    # %% One round: everybody meets something new and pays K_1 + K_2 episodes. From then on most pay K_1 alone.
    for _ in range(3):
        model.fit(1)
        task, label, learned = model.history.task[-1], model.history.label[-1], model.history.learned[-1]
        print(f"round {model.rounds}: tasks {task}  labels {label}  learned anew {learned.astype(int)}")

    # %% The whole run, judged with what the agents never saw.
    report = model.fit().report()
    print(f"{report.groups} labels for {len(tasks)} tasks, {report.accuracy:.1%} of the assignments labelled right")
    print("V* - V^pi of each task's policy in the table F, exact:", np.round(report.task_gap, 4))
    print(f"largest spread of a task's fingerprints {report.spread.max():.3f}, c_sep / 2 = {0.45 / 2}")
    if report.episodes_covered is not None:
        print(
            f"episodes per agent: {report.episodes.mean():.0f}; {report.episodes_covered.mean():.0f} until every task"
        )
        print(f"had a label; {report.episodes_oracle:.0f} if the tasks had names")

    # %% Two tasks of the same value: nothing tells them apart. The warning comes first, the report confirms it.
    twins = DistMTLSVI(make_lock_family(2, separation=0.0), agents, 0.45, constants).fit()
    report = twins.report()
    print(f"twins: labels shared by several tasks {report.merges}, V* - V^pi {np.round(report.task_gap, 3)}")


# %%
if __name__ == "__main__":
    main()
