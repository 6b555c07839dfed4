"""What agents are able to: mean returns without exploration, on the same episodes every time."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from marl.algos.common import Player
from marl.envs import evaluation_options, make_env
from marl.envs.base import EnvSpec, VectorEnv
from marl.evaluation import Evaluator, OnStep
from marl.lifelong.abreast import Abreast
from marl.loop import random_actions
from marl.streams import Streams, derive
from marl.types import Acted, View

log = logging.getLogger("marl")


def mean_returns(
    player: Player,
    tasks: Sequence[str],
    seeds: Sequence[int],
    episodes: int,
    env: Mapping[str, Any],
    watch: OnStep | None = None,
) -> Tensor:
    """What each member earns on a task of its own, ``[P]``: the mean over the episodes of the sum of the rewards.

    Args:
        player: P members with one agent each.
        tasks: by id, P of them.
        seeds: of the episodes, P of them.
        episodes: for each member.
        env: the options that the tasks are learnt with.
        watch: the ``on_step`` of ``Evaluator``, for example a ``Film``.
    """

    def make() -> Abreast:
        groups = itertools.groupby(zip(tasks, seeds, strict=True), key=lambda pair: pair[0])
        return Abreast([_part(task, [seed for _, seed in pairs], episodes, env) for task, pairs in groups])

    evaluator = Evaluator(make)
    try:
        played = evaluator(player, watch)
    finally:
        evaluator.close()
    for event in played.events:
        log.warning("evaluation: %s", event)
    return played.returns.mean((1, 2))


def random_return(spec: EnvSpec, task: str, seed: int, episodes: int, env: Mapping[str, Any]) -> float:
    """The same of a policy that takes every available action with equal chance."""
    own = derive(seed, "random", task)
    policy = _Random(spec, Streams([own], "actions"), episodes)
    return float(mean_returns(policy, [task], [own], episodes, env))


class _Random:
    memory_size = 0

    def __init__(self, spec: EnvSpec, streams: Streams, copies: int) -> None:
        self.spec, self.streams, self.copies = spec, streams, copies

    def act(self, view: View, explore: bool) -> Acted:
        return Acted(random_actions(self.streams, self.spec, self.copies, view.avail))


def _part(task: str, seeds: Sequence[int], episodes: int, env: Mapping[str, Any]) -> VectorEnv:
    options = evaluation_options(task, env)
    return make_env(task, seeds=[derive(seed, "eval") for seed in seeds], copies=episodes, options=options)
