"""What lifelong agents keep of the tasks that they have met, to rehearse them while they learn others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from marl.algos.dqn import DQNConfig
from marl.envs.base import EnvSpec
from marl.lifelong.experience import extract, restored
from marl.replay import Replay
from marl.streams import derive
from marl.types import State

KEPT = 5_000
"""Transitions of each task, the newest: what an agent sees when it has learnt the task."""


class Memories:
    """For each agent and each task that it has met, the newest transitions that it learnt the task from.

    Rehearsal is experience replay as of Rolnick et al., "Experience replay for continual learning", 2019; not in the
    paper.

    Args:
        config: of the learner.
        spec: of the tasks.
        seeds: each agent's.
    """

    def __init__(self, config: DQNConfig, spec: EnvSpec, seeds: Sequence[int]) -> None:
        self.config, self.spec, self.seeds = config, spec, seeds
        self._kept: list[dict[int, Replay]] = [{} for _ in seeds]

    def keep(self, agent: int, task: int, experience: Mapping[str, Tensor]) -> None:
        """What an agent learnt a task from (see ``experience.extract``), in place of what it had of it."""
        seed = derive(self.seeds[agent], "rehearse", task)
        self._kept[agent][task] = restored(experience, self.config, self.spec, seed)

    def of_others(self, agent: int, task: int) -> list[Replay]:
        """An agent's memories of all tasks but that one."""
        return [replay for number, replay in self._kept[agent].items() if number != task]

    def state_dict(self) -> State:
        return {
            str(i): {
                str(task): {"bundle": extract(replay, 0), "sampler": replay.sampler.state_dict()}
                for task, replay in kept.items()
            }
            for i, kept in enumerate(self._kept)
        }

    def load_state_dict(self, state: State) -> None:
        for i, kept in state.items():
            self._kept[int(i)] = {}
            for task, saved in kept.items():
                self.keep(int(i), int(task), saved["bundle"])
                self._kept[int(i)][int(task)].sampler.load_state_dict(saved["sampler"])
