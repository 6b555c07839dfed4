"""The training loop: interact, remember, learn; log, evaluate and save at fixed intervals."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from marl.algos.common import Buffer, Learner, Metrics, following, load_parts, save_parts, with_nothing_noted
from marl.checkpoint import Checkpoints
from marl.config import LoopConfig
from marl.envs.base import EnvSpec, Step, VectorEnv
from marl.evaluation import Evaluator
from marl.finite import require_finite, require_seen
from marl.log import Recorder
from marl.streams import Streams
from marl.terminal import Interrupted, stop_requests
from marl.types import Acted, State, View

VITAL = ("grad/critic_norm", "grad/actor_norm", "loss/option", "distil/policy", "distil/value")
"""Metrics of an update ``[P, N]`` that are not finite once the networks are spoilt."""

LONG = 100_000
"""Steps after which an evaluation that has not ended says so: without a time limit it might never end."""


class Transition(NamedTuple):
    """One step of all copies: what was seen, what was done about it, and what the environment answered."""

    view: View
    acted: Acted
    step: Step


def interact(env: VectorEnv, view: View, act: Callable[[View], Acted]) -> Iterator[Transition]:
    """Act and step without end, from what is seen in ``view`` on."""
    while True:
        acted = act(view)
        step = env.step(acted.action)
        yield Transition(view, acted, step)
        view = following(acted, step)


def first_view(env: VectorEnv, learner: Learner, step: int | None = None) -> View:
    """What is seen as every copy starts afresh, at that step of a run (None: before it), with nothing noted.

    Raises ``UserError`` where the environment shows NaN or infinity.
    """
    view = with_nothing_noted(env.start(), learner.memory_size)
    require_seen(view.obs, view.state, step, env.spec.agents)
    return view


class Returns:
    """Returns, lengths and outcomes of the episodes that ended since they were last asked for."""

    def __init__(self, members: int, copies: int, spec: EnvSpec) -> None:
        self.names = spec.outcomes
        self.running = torch.zeros(2, members, spec.n_agents, copies, dtype=torch.float64)  # reward, steps
        self.ended = torch.zeros(3, members, spec.n_agents, dtype=torch.float64)  # sum of returns, of steps, count
        self.outcomes = torch.zeros(members, len(spec.outcomes), dtype=torch.float64)

    def add(self, step: Step) -> None:
        """Count one step; an episode that lost a transition is left out."""
        self.running[0] += step.reward
        self.running[1] += 1
        if step.done.any():
            whole = step.done if step.lost is None else step.done & ~step.lost
            self.ended[:2] += (self.running * whole).sum(-1)
            self.ended[2] += whole.sum(-1)
            if step.outcome is not None:
                self.outcomes += (step.outcome * whole.all(1).unsqueeze(-1)).sum(1)
            self.running[:, step.done] = 0

    def take(self) -> dict[str, Tensor]:
        """Named as in ``marl.log.METRICS``; empty until every agent of every member has ended an episode."""
        returns, lengths, count = self.ended
        if not count.all():
            return {}
        mean = returns / count
        outcomes = self.outcomes / count[:, :1]
        result = {
            "train/return_mean": mean,
            "train/return_sum": mean.sum(1),
            "train/episode_length": (lengths / count).mean(1),
            **{f"train/{name}": outcomes[:, k] for k, name in enumerate(self.names)},
        }
        self.ended.zero_()
        self.outcomes.zero_()
        return result

    def state_dict(self) -> State:
        return {name: getattr(self, name).clone() for name in ("running", "ended", "outcomes")}

    def load_state_dict(self, state: State) -> None:
        for name in ("running", "ended", "outcomes"):
            getattr(self, name).copy_(state[name])


class Training:
    """Everything that changes while a run goes on; what ``state_dict`` returns is all of it but the replay's slots.

    Args:
        config: the loop's settings.
        seeds: one per member.
        env: P x E copies.
        learner: acts and learns.
        buffer: remembers.
        recorder: logs.
        view: what is seen at the beginning.
    """

    PARTS = ("env", "learner", "buffer", "recorder", "returns", "warmup")

    def __init__(
        self,
        config: LoopConfig,
        seeds: Sequence[int],
        env: VectorEnv,
        learner: Learner,
        buffer: Buffer,
        recorder: Recorder,
        view: View,
    ) -> None:
        self.config, self.env, self.learner, self.buffer, self.recorder = config, env, learner, buffer, recorder
        self.returns = Returns(env.members, env.copies, env.spec)
        self.warmup = Streams(seeds, "warmup")
        self.metrics: Metrics = {}
        self.steps = 0
        self.updates = 0
        self.restarts = 0
        self.lost = 0
        self.evaluation_due = True  # the first one comes before the first step
        self.view = view

    def act(self, view: View) -> Acted:
        """Random actions until the warm-up is over, then the learner's, with exploration."""
        if self.steps < self.buffer.schedule.warmup:
            return Acted(random_actions(self.warmup, self.env.spec, self.env.copies, view.avail), view.memory)
        return self.learner.act(view, explore=True)

    def remember(self, transition: Transition) -> None:
        """Take in one step of all copies; raises ``UserError`` if a number of it is not finite."""
        acted, step, names = transition.acted, transition.step, (self.env.spec.agents, self.recorder.members)
        require_finite(step.reward, "reward", self.steps, *names)
        require_seen(step.next_obs, step.next_state, self.steps, *names)
        if step.done.any():  # elsewhere the same
            require_seen(step.obs, step.state, self.steps, *names)
        self.buffer.add(transition.view, acted, self.env.spec.taught(step))
        self.returns.add(step)
        self.steps += self.env.copies
        self.view = following(acted, step)
        if step.lost is not None:
            self.lost += int(step.lost.any(1).sum())

    def learn(self) -> int:
        """The updates that are due, and how many that were; raises ``UserError`` if one of ``VITAL`` is not finite."""
        due = max(self.buffer.schedule.due(self.steps) - self.updates, 0)
        for _ in range(due):
            self.metrics = self.learner.update(self.buffer.draw())
            self.updates += 1
            for name in VITAL:
                if name in self.metrics:
                    require_finite(self.metrics[name], name, self.steps, self.env.spec.agents, self.recorder.members)
        return due

    def stopped(self) -> str:
        """What is said of a run that was asked to stop, once its state is saved."""
        return f"stopped at step {self.steps}, everything saved"

    def counts(self) -> dict[str, Tensor]:
        """Counters for the log, ``[P]`` each."""
        values = {
            "replay/size": len(self.buffer),
            "events/worker_restarts": self.restarts,
            "events/lost_transitions": self.lost,
        }
        return {name: torch.full((self.env.members,), float(value)) for name, value in values.items()}

    def state_dict(self) -> State:
        counters = {name: getattr(self, name) for name in ("steps", "updates", "restarts", "lost", "metrics")}
        view = {name: x.clone() for name, x in self.view._asdict().items() if x is not None}
        return {**save_parts(self, self.PARTS), "view": view, "evaluation_due": self.evaluation_due, **counters}

    def load_state_dict(self, state: State) -> None:
        """Go on where ``state_dict`` was taken; ``buffer.restore`` must follow.

        Raises:
            ValueError: the state is that of another environment or number of copies.
        """
        saved, now = state["view"]["obs"].shape, self.view.obs.shape
        if saved != now:
            raise ValueError(f"its observations are {list(saved)} and not {list(now)}")
        load_parts(self, self.PARTS, state)
        self.view = View(**state["view"])
        for name in ("steps", "updates", "restarts", "lost", "metrics"):
            setattr(self, name, state[name])
        self.evaluation_due = state.get("evaluation_due", self.steps == 0)  # older checkpoints do not say

    def restart_episodes(self) -> None:
        """Begin new episodes: what remains to do on resume where an environment's state cannot be restored.

        Raises ``UserError`` where the environment shows NaN or infinity.
        """
        self.view = first_view(self.env, self.learner, self.steps)
        self.returns.running.zero_()
        self.buffer.interrupt()


class Stopwatch:
    """Seconds and units of work by kind, since last asked for."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.work: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def time(self, kind: str) -> Iterator[None]:
        """Add the block's duration to its kind."""
        start = time.perf_counter()
        yield
        self.seconds[kind] += time.perf_counter() - start

    def rates(self) -> dict[str, float]:
        """Units of work per second of their own time, by kind."""
        rates = {kind: self.work[kind] / seconds for kind, seconds in self.seconds.items() if self.work[kind]}
        self.seconds.clear()
        self.work.clear()
        return rates


def train(
    training: Training,
    checkpoints: Checkpoints,
    evaluator: Evaluator | None,
    on_progress: Callable[[Training, dict[str, float], dict[str, Tensor]], None],
    on_event: Callable[[str], None],
) -> None:
    """Run until ``config.steps``; whatever is due at a step happens in the order learn, log, evaluate, save.

    A stop request breaks an evaluation off; it is played whole as the run goes on.

    Args:
        training: where to go on from; it has been saved there.
        checkpoints: where to save.
        evaluator: None: no evaluation.
        on_progress: called after each step with the speeds (units per second) and the newest evaluation or returns,
            both empty unless a row of the log was just written.
        on_event: called with a line when something happened that the user should know.

    Raises:
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
        UserError: a number that is not finite, or a full disk. The last checkpoint is kept.
    """
    with stop_requests() as stop:
        for rates, news in advance(training, checkpoints, evaluator, on_event, stop):
            on_progress(training, rates, news)


def advance(
    training: Training,
    checkpoints: Checkpoints,
    evaluator: Evaluator | None,
    on_event: Callable[[str], None],
    stop: Sequence[object],
) -> Iterator[tuple[dict[str, float], dict[str, Tensor]]]:
    """The same one step at a time, for whoever does other things in between.

    Args:
        training, checkpoints, evaluator, on_event: as in ``train``.
        stop: once there is something in it, the next step is saved and is the last.

    Yields:
        What ``train`` shows as progress, after each step.

    Raises:
        Interrupted, UserError: as ``train``.
    """
    config, env, watch = training.config, training.env, Stopwatch()
    p = env.members

    def save() -> None:
        checkpoints.save(training.steps, training.state_dict(), training.buffer)

    def evaluate() -> dict[str, Tensor]:
        """Play and log what is due; nothing, and it stays due, if a stop is requested meanwhile."""
        result: dict[str, Tensor] = {}
        played_so_far = itertools.count(1)

        def heed(_: VectorEnv, running: Tensor) -> None:
            if not running.any():
                return
            if stop:
                raise _BrokenOff
            if next(played_so_far) == LONG:
                on_event(f"evaluation: its episodes have not ended after {LONG} steps; do they have a time limit?")

        if evaluator is not None:
            try:
                with watch.time("eval"):
                    played = evaluator(training.learner, heed)
            except _BrokenOff:
                return {}
            for event in played.events:
                on_event(f"evaluation: {event}")
            names = env.spec.agents, training.recorder.members
            require_finite(played.returns, "evaluation return", training.steps, *names)
            watch.work["eval"] += float(played.lengths.mean(1).sum())
            result = played.metrics()
        training.recorder.write(training.steps, result)
        training.evaluation_due = False
        return result

    if training.evaluation_due:
        evaluate()
        if training.evaluation_due:
            raise Interrupted(training.stopped())
        if training.steps:
            save()
    saved = training.steps
    transitions = interact(env, training.view, training.act)
    while training.steps < config.steps:
        before = training.steps
        with watch.time("env"):
            training.remember(next(transitions))
        watch.work["env"] += p * env.copies
        with watch.time("learn"):
            watch.work["learn"] += training.learn()
        for event in env.events():
            training.restarts += 1
            on_event(event)
        news: dict[str, Tensor] = {}
        rates: dict[str, float] = {}
        if passed(config.log_every, before, training.steps):
            news = training.returns.take()
            rates = watch.rates()
            row = {**news, **training.metrics, **training.counts(), **speeds(rates, p)}
            training.recorder.write(training.steps, row)
            training.recorder.flush()
        if passed(config.eval_every, before, training.steps) or training.steps >= config.steps:
            training.evaluation_due = True
            news |= evaluate()
        stopping = bool(stop)  # a request that comes later waits for the next step's save
        if passed(config.checkpoint_every, before, training.steps) or stopping:
            save()
            saved = training.steps
        yield rates, news
        if stopping:
            raise Interrupted(training.stopped())
    if saved < training.steps:
        save()


class _BrokenOff(Exception):
    """A stop was requested in the middle of an evaluation."""


def passed(interval: int, before: int, now: int) -> bool:
    """Whether a multiple of ``interval`` lies in (before, now]; never if it is 0."""
    return interval > 0 and now // interval > before // interval


def speeds(rates: dict[str, float], members: int) -> dict[str, Tensor]:
    """Rates by kind as metrics ``[P]``."""
    names = {"env": "env_steps", "learn": "updates", "eval": "eval_steps"}
    return {f"speed/{names[kind]}_per_second": torch.full((members,), rate) for kind, rate in rates.items()}


def random_actions(streams: Streams, spec: EnvSpec, copies: int, avail: Tensor | None = None) -> Tensor:
    """Uniform on what each agent may do: ``[P, N, E, A]`` in [-1, 1], or ``[P, N, E]`` int64."""
    if avail is not None:
        return streams.uniform(spec.n_agents, copies, spec.action_size).masked_fill_(~avail, -1.0).argmax(-1)
    if spec.discrete:
        sizes = torch.tensor(spec.action_sizes)[:, None]
        return (streams.uniform(spec.n_agents, copies) * sizes).long()
    return (2 * streams.uniform(spec.n_agents, copies, spec.action_size) - 1) * spec.action_mask[:, None]
