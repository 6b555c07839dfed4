"""What lifelong agents are judged by: agent reward, agent time, forward transfer, forgetting.

All of them are on one scale, on which a random policy has 0 and the isolated agent (alone, without a hub) has 1. After
DistMT's deep agent (Section 4 of the paper); ``docs/lifelong/metrics.md`` has the formulas and how they were read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from marl.stats import Array
from marl.types import UserError

LEVELS = (0.2, 0.4, 0.6, 0.8, 0.99)
BEST_OF = 5


class Curve(NamedTuple):
    """What an agent scored while it learnt.

    Attributes:
        frames: ``[T]`` ascending, frames of the game, before any are skipped, since it began to learn.
        reward: ``[T]``, or ``[T, M]`` where all M tasks were evaluated at each point.
    """

    frames: Array
    reward: Array


def normalised(reward: Array | float, random: Array | float, isolated: Array | float) -> Array:
    """``(R - R_random) / (R_isolated - R_random)``; nan for tasks whose isolated agent is no better than random."""
    low, high = np.asarray(random, float), np.asarray(isolated, float)
    span = np.where(high > low, high - low, np.nan)
    return np.asarray((np.asarray(reward, float) - low) / span)


class AgentReward(NamedTuple):
    """S seeds, M tasks.

    Attributes:
        scores: ``[S, M]``, the mean over agents; nan for tasks that ``normalised`` leaves undefined.
        mean: over seeds and tasks, undefined tasks left out.
        best_of_5: ``[M]``, the best of the first five seeds on each task against the best of the isolated agent's first
            five: what the paper reports, and not an estimate of what one run gives. None with fewer than five seeds.
    """

    scores: Array
    mean: float
    best_of_5: Array | None


def agent_reward(reward: Array, random: Array, isolated: Array) -> AgentReward:
    """AR after a fixed time of learning on each task.

    Args:
        reward: ``[S, N, M]``, of every seed and agent on every task, in the end.
        random: ``[M]``, of a uniformly random policy.
        isolated: ``[S', M]``, of the isolated agent's seeds.
    """
    agents = reward.mean(1)
    scores = normalised(agents, random, isolated.mean(0))
    best = None
    if min(len(reward), len(isolated)) >= BEST_OF:
        best = normalised(agents[:BEST_OF].max(0), random, isolated[:BEST_OF].max(0))
    return AgentReward(scores, defined_mean(scores), best)


class AgentTime(NamedTuple):
    """S seeds, N agents, L levels; times are shares of the isolated agent's frames.

    Attributes:
        levels: L of them.
        time: ``[S, N, L]``, when the level was reached; where it never was, how long the agent had been learning.
        censored: ``[S, N, L]`` bool, it never was: the true time is larger.
    """

    levels: tuple[float, ...]
    time: Array
    censored: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

    def mean(self) -> Array:
        """``[L]``, over seeds and agents; where any of them is censored, a lower bound of the true mean."""
        return np.asarray(self.time.mean((0, 1)))

    def best_of_5(self) -> Array | None:
        """``[L]``, the shortest of the first five seeds' means over agents, as the paper reports.

        A seed counts if all its agents arrived; nan where none did. None with fewer than five seeds.
        """
        if len(self.time) < BEST_OF:
            return None
        seeds = np.where(self.censored.any(1), np.inf, self.time.mean(1))[:BEST_OF].min(0)
        return np.where(np.isinf(seeds), np.nan, seeds)

    def lines(self) -> list[str]:
        """One for each level, for example ``99 %: >= 0.84 (2 of 6 never arrived)``."""
        result = []
        for i, (level, time) in enumerate(zip(self.levels, self.mean(), strict=True)):
            late, runs = int(self.censored[..., i].sum()), self.censored[..., i].size
            shown = f">= {time:.2f} ({late} of {runs} never arrived)" if late else f"{time:.2f}"
            result.append(f"{100 * level:g} %: {shown}")
        return result


def agent_time(
    runs: Sequence[Sequence[Curve]],
    random: Array | float,
    isolated: Array | float,
    isolated_frames: float,
    levels: tuple[float, ...] = LEVELS,
) -> AgentTime:
    """AT: frames until the normalised reward first is ``x`` or more, divided by the isolated agent's frames.

    With curves ``[T, M]`` the mean over the tasks is to arrive; ``levels=(0.9,)`` is then the paper's AT.

    Args:
        runs: the curves of each seed's N agents, on one task, or on all.
        random: the reward of a random policy, a number or ``[M]``.
        isolated: the isolated agent's in the end, a number or ``[M]``.
        isolated_frames: the frames that the isolated agent had for the same.
        levels: shares x of the way from random to isolated.

    Raises:
        UserError: a task is undefined (see ``normalised``), so that there is nothing to reach: leave it out.
    """
    if np.isnan(normalised(0.0, random, isolated)).any():
        raise UserError(
            f"agent time: expected an isolated agent better than a random policy, got {isolated} against {random}; "
            "leave the task out"
        )
    time = np.empty((len(runs), len(runs[0]), len(levels)))
    censored = np.zeros(time.shape, bool)
    for s, agents in enumerate(runs):
        for n, curve in enumerate(agents):
            score = normalised(curve.reward, random, isolated)
            score = score.mean(-1) if score.ndim == 2 else score
            for i, level in enumerate(levels):
                there = np.flatnonzero(score >= level)
                censored[s, n, i] = not len(there)
                time[s, n, i] = curve.frames[there[0] if len(there) else -1] / isolated_frames
    return AgentTime(levels, time, censored)


def forward_transfer(scores: Curve, alone: Curve, frames: float) -> float:
    """How much of what a fresh agent lacked while it learnt a task was spared: ``(A - A_0) / (1 - A_0)``.

    A is the mean normalised reward over the task's first ``frames`` frames, by the trapezoidal rule, before the first
    and after the last evaluation that evaluation's; A_0 that of an agent which has met no task before. 1: perfect from
    the first frame; 0: as the fresh agent; negative: what was learnt before stood in the way. (Wołczyk et al.,
    "Continual World", 2021, whose success rates are normalised rewards here.) nan if A_0 >= 1.

    Args:
        scores: ``reward`` normalised.
        alone: that of the fresh agent.
        frames: the time that the isolated agent has for a task.
    """
    before = _area(alone, frames)
    return (_area(scores, frames) - before) / (1 - before) if before < 1 else float("nan")


def forgetting(scores: Array, tasks: Sequence[int]) -> Array:
    """What one agent lost of each task since it last learnt it: its score then minus its score in the end, ``[M]``.

    Positive: forgotten; negative: later tasks helped. nan for tasks that it never met, and for the last round's, which
    had no time to be forgotten (Wołczyk et al. 2021).

    Args:
        scores: ``[T, M]``, normalised, of every task after every round; entries of tasks not yet met are not read.
        tasks: the T rounds' tasks.
    """
    lost = np.full(scores.shape[1], np.nan)
    for t, task in enumerate(tasks):
        lost[task] = scores[t, task] - scores[-1, task]
    lost[tasks[-1]] = np.nan
    return lost


def _area(curve: Curve, frames: float) -> float:
    inside = curve.frames[(curve.frames > 0) & (curve.frames < frames)]
    grid = np.concatenate([[0.0], inside, [frames]])
    return float(np.trapezoid(np.interp(grid, curve.frames, curve.reward), grid) / frames)


def defined_mean(values: Array) -> float:
    """Of what is not nan; nan if nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
