"""SimNet: a small DQN whose weights, after a short time of learning, tell which task it was shown.

After DistMT's deep agent (Section 4 of the paper). Every SimNet starts from the same weights. Where learning has moved
them is the task's fingerprint: those of one task lie closer together than those of two.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from marl.algos.dqn import DQN, DQNConfig
from marl.envs import make_env
from marl.envs.base import EnvSpec, VectorEnv
from marl.finite import require_finite
from marl.lifelong.abreast import Abreast
from marl.loop import interact, random_actions
from marl.modules.q_values import QNetwork
from marl.replay import Replay
from marl.streams import Streams, derive
from marl.types import Acted, UserError, View

STEPS = 10_000
"""Environment steps that a SimNet learns from (the paper's), all copies of its task together."""

COPIES = 8
"""Copies of the task that it plays at once."""

SHARED_SEED = 0
"""Of the weights that every SimNet of every agent starts from."""

SETTINGS = DQNConfig(hidden=(5,), lr=2.5e-5, epsilon_final=1.0)
"""Ordinary DQN; ``docs/lifelong/simnet.md`` says why it learns so slowly and from random actions alone."""

THRESHOLD = 0.47
"""For a hub with nothing to calibrate by, after ``STEPS`` steps: midway between the largest distance of two seeds of
one small game ever measured (0.446) and the smallest of two tasks, small or of Atari's memory (0.494).

``Calibration`` has the 95th percentile of the same-task distances instead, which refuses one known task in twenty.
"""

Fingerprint: TypeAlias = dict[str, Tensor]
"""By the names of a SimNet's parameters, how far each has moved; all numbers together have the Euclidean norm 1."""


# ---- fingerprints -------------------------------------------------------------------------------------------------


def initial_weights(spec: EnvSpec) -> dict[str, Tensor]:
    """What every SimNet for tasks with these spaces starts from, by parameter."""
    return {name: w[0, 0] for name, w in _first_network(spec).state_dict().items()}


def fingerprint(
    environment: str, seed: int, steps: int = STEPS, options: Mapping[str, Any] | None = None
) -> Fingerprint:
    """Of one task; see ``fingerprints``."""
    return fingerprints([environment], [seed], steps, options)[0]


def fingerprints(
    environments: Sequence[str], seeds: Sequence[int], steps: int = STEPS, options: Mapping[str, Any] | None = None
) -> list[Fingerprint]:
    """Train one SimNet for each task, all of them as one population; each is what it would be alone, but for rounding.

    Args:
        environments: ids of tasks with one agent and equal spaces; the same one may come several times.
        seeds: one for each: chance in the task, in its exploration and in its replay.
        steps: of the environment for each, more than the 1000 before the first update; see ``steps_played``.
        options: of the environments.

    Raises:
        UserError: spaces differ, a task has several agents or continuous actions, or there are too few steps.
    """
    check_steps("steps of SimNet", steps)
    by_task: dict[str, list[int]] = {}
    for place, environment in enumerate(environments):
        by_task.setdefault(environment, []).append(place)
    places = [place for group in by_task.values() for place in group]
    own = {place: derive(seeds[place], "simnet") for place in places}
    with contextlib.ExitStack() as stack:
        parts: list[VectorEnv] = []
        for environment, group in by_task.items():
            part = make_env(environment, seeds=[own[i] for i in group], copies=COPIES, options=options)
            stack.callback(part.close)
            parts.append(part)
        moved = _learn(Abreast(parts), [own[i] for i in places], steps)
    member = {place: row for row, place in enumerate(places)}
    return [{name: x[member[i], 0].clone() for name, x in moved.items()} for i in range(len(places))]


def check_steps(name: str, steps: int) -> None:
    """Raise ``UserError`` unless a setting of that name is so many environment steps that a SimNet learns something."""
    if steps <= SETTINGS.warmup:
        raise UserError(f"{name}: expected more than the {SETTINGS.warmup} of its warm-up, got {steps}")


def steps_played(steps: int) -> int:
    """Environment steps that a SimNet plays where it is to learn from so many: whole steps of all copies."""
    return -(-steps // COPIES) * COPIES


def _learn(env: VectorEnv, seeds: Sequence[int], steps: int) -> dict[str, Tensor]:
    """How far each parameter has moved after so many steps, ``[P, 1, ...]``, all together of norm 1 a member."""
    spec = _vector(env.spec)
    if spec.n_agents != 1:
        raise UserError(f"SimNet needs tasks of one agent, {spec.id} has {spec.n_agents}")
    learner = DQN(spec, [SETTINGS] * env.members, seeds)
    start = _first_network(spec)
    learner.critic.flat.data.copy_(start.flat.data)
    learner.target_critic.flat.data.copy_(start.flat.data)
    buffer = Replay.of(SETTINGS, spec, env.copies, seeds, learner.memory_size)
    warmup = Streams(seeds, "warmup")
    played = updates = 0

    def act(view: View) -> Acted:
        if played < SETTINGS.warmup:
            return Acted(random_actions(warmup, spec, env.copies, view.avail))
        return learner.act(view, explore=True)

    for view, acted, step in interact(env, env.start(), act):
        buffer.add(view, acted, spec.taught(step))
        played += env.copies
        while updates < buffer.schedule.due(played):
            metrics = learner.update(buffer.draw())
            require_finite(metrics["grad/critic_norm"], "gradient of SimNet", played, spec.agents)
            updates += 1
        if played >= steps:
            break
    learner.critic.flat.data.sub_(start.flat.data)
    learner.critic.flat.data.div_(learner.critic.flat.data.norm(dim=-1, keepdim=True).clamp(min=1e-12))
    return dict(learner.critic.state_dict())


def _first_network(spec: EnvSpec) -> QNetwork:
    """Weights as usual, and 1 for each hidden unit's bias.

    Near 0 a unit is at its kink: then the seed decides whether it lives, and a task has several fingerprints.
    """
    network = QNetwork(Streams([SHARED_SEED], "simnet"), _vector(spec), SETTINGS.hidden)
    network.layers[0].get_parameter("bias").data.fill_(1.0)
    return network


def _vector(spec: EnvSpec) -> EnvSpec:
    """Pictures as plain numbers: SimNet has no convolutions."""
    return dataclasses.replace(spec, pixels=None)


# ---- distances ----------------------------------------------------------------------------------------------------


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The sum over the tensors of the Euclidean norm of the difference."""
    return float(distances([a, b])[0, 1])


def distances(prints: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """All distances, ``[n, n]``."""
    exact = "donot_use_mm_for_euclid_dist"
    stacked = [torch.stack([each[name].flatten() for each in prints]) for name in prints[0]]
    return torch.stack([torch.cdist(x, x, compute_mode=exact) for x in stacked]).sum(0)


# ---- how well tasks are told apart --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """Which distances occur, and up to which one two fingerprints count as one task.

    Attributes:
        same: distances of fingerprints of one task from two seeds, in ascending order.
        other: distances of two tasks' fingerprints, in ascending order.
        threshold: the quantile of ``same``.
    """

    same: Tensor
    other: Tensor
    threshold: float

    @classmethod
    def of(cls, prints: Mapping[str, Sequence[Fingerprint]], quantile: float = 0.95) -> Calibration:
        """From fingerprints by task, two seeds or more each.

        Between two distances the quantile is on the straight line: of m distances it is the one in place
        ``quantile * (m - 1)``, counted from 0.

        Raises:
            UserError: no task has two.
        """
        task = torch.tensor([t for t, group in enumerate(prints.values()) for _ in group])
        table = distances([each for group in prints.values() for each in group])
        pair = torch.ones_like(table, dtype=torch.bool).triu(1)
        alike = task[:, None] == task
        same, other = (table[pair & which].sort().values for which in (alike, ~alike))
        if not len(same):
            raise UserError("calibration of SimNet: expected a task with two seeds or more, got one seed of each")
        return cls(same, other, float(same.quantile(quantile)))


@dataclass(frozen=True)
class Confusion:
    """How often a hub would have answered what. It holds one fingerprint a task, and is asked with another seed's.

    Attributes:
        tasks: T names.
        nearest: ``[T, T]``: tasks that were asked for, by the nearest task.
        known: ``[T, T + 1]``: the same with the threshold; the last column is "new".
        unknown: ``[T, T + 1]``: the same where the hub lacks the task that is asked for: "new" is right.
    """

    tasks: tuple[str, ...]
    nearest: Tensor
    known: Tensor
    unknown: Tensor

    @property
    def accuracy(self) -> dict[str, float]:
        """The share of right answers of each kind."""
        right = {
            "nearest": self.nearest.diagonal().sum() / self.nearest.sum(),
            "known": self.known.diagonal().sum() / self.known.sum(),
            "unknown": self.unknown[:, -1].sum() / self.unknown.sum(),
        }
        return {name: float(share) for name, share in right.items()}

    def table(self) -> str:
        """Markdown: rows are the tasks shown, columns the answers (``known``), then how often "new" was right."""
        names = [task.rpartition("/")[2] for task in self.tasks]
        head = ["shown", *names, "new", "new where it is not in the hub"]
        lines = [head, ["---"] * len(head)]
        for t, name in enumerate(names):
            asked = int(self.unknown[t].sum())
            lines.append([name, *(str(int(n)) for n in self.known[t]), f"{int(self.unknown[t, -1])} of {asked}"])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def confusion_matrix(prints: Mapping[str, Sequence[Fingerprint]], threshold: float) -> Confusion:
    """Ask for every task and seed a hub that holds the fingerprints of every other seed: T S (S - 1) questions.

    Args:
        prints: by task, S seeds each in the same order.
        threshold: a task is recognised up to this distance, inclusive.
    """
    tasks = tuple(prints)
    t, s = len(tasks), len(prints[tasks[0]])
    table = distances([each for group in prints.values() for each in group]).view(t, s, t, s)
    nearest, known, unknown = (torch.zeros(t, t + extra, dtype=torch.int64) for extra in (0, 1, 1))
    for shown in range(t):
        for asking in range(s):
            for held in range(s):
                if asking == held:
                    continue
                row = table[shown, asking, :, held].clone()
                nearest[shown, row.argmin()] += 1
                known[shown, _answer(row, threshold)] += 1
                row[shown] = torch.inf
                unknown[shown, _answer(row, threshold)] += 1
    return Confusion(tasks, nearest, known, unknown)


def _answer(row: Tensor, threshold: float) -> int:
    """The nearest task's number, or how many tasks there are: "new"."""
    best = int(row.argmin())
    return best if float(row[best]) <= threshold else len(row)
