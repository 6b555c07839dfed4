"""The training loop: interact, remember, learn; log, evaluate and save at fixed intervals."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from marl.algos.common import Learner, Metrics, load_parts, save_parts
from marl.checkpoint import Checkpoints
from marl.config import LoopConfig
from marl.envs.base import EnvSpec, Step, VectorEnv
from marl.evaluation import Evaluator
from marl.log import Recorder
from marl.replay import Replay
from marl.streams import Streams
from marl.types import State, UserError


class Transition(NamedTuple):
    """One step of all copies: ``obs`` ``[P, N, E, D]`` was acted on by ``action``, and the environment answered."""

    obs: Tensor
    action: Tensor
    step: Step


def interact(env: VectorEnv, obs: Tensor, act: Callable[[Tensor], Tensor]) -> Iterator[Transition]:
    """Act and step without end, from observations ``obs`` on."""
    while True:
        action = act(obs)
        step = env.step(action)
        yield Transition(obs, action, step)
        obs = step.obs


class Returns:
    """Returns and lengths of the episodes that ended since they were last asked for."""

    def __init__(self, members: int, agents: int, copies: int) -> None:
        self.running = torch.zeros(2, members, agents, copies, dtype=torch.float64)  # reward, steps
        self.ended = torch.zeros(3, members, agents, dtype=torch.float64)  # sum of returns, of steps, count

    def add(self, step: Step) -> None:
        """Count one step; an episode that lost a transition is left out."""
        self.running[0] += step.reward
        self.running[1] += 1
        if step.done.any():
            whole = step.done if step.lost is None else step.done & ~step.lost
            self.ended[:2] += (self.running * whole).sum(-1)
            self.ended[2] += whole.sum(-1)
            self.running[:, step.done] = 0

    def take(self) -> dict[str, Tensor]:
        """Named as in ``marl.log.METRICS``; empty until every agent of every member has ended an episode."""
        returns, lengths, count = self.ended
        if not count.all():
            return {}
        mean = returns / count
        result = {
            "train/return_mean": mean,
            "train/return_sum": mean.sum(1),
            "train/episode_length": (lengths / count).mean(1),
        }
        self.ended.zero_()
        return result

    def state_dict(self) -> State:
        return {"running": self.running.clone(), "ended": self.ended.clone()}

    def load_state_dict(self, state: State) -> None:
        self.running.copy_(state["running"])
        self.ended.copy_(state["ended"])


class Training:
    """Everything that changes while a run goes on; what ``state_dict`` returns is all of it but the replay's slots.

    Args:
        config: the loop's settings.
        seeds: one per member.
        env: P x E copies.
        learner: acts and learns.
        replay: remembers.
        recorder: logs.
    """

    PARTS = ("env", "learner", "replay", "recorder", "returns", "warmup")

    def __init__(
        self,
        config: LoopConfig,
        seeds: Sequence[int],
        env: VectorEnv,
        learner: Learner,
        replay: Replay,
        recorder: Recorder,
    ) -> None:
        self.config, self.env, self.learner, self.replay, self.recorder = config, env, learner, replay, recorder
        self.returns = Returns(env.members, env.spec.n_agents, env.copies)
        self.warmup = Streams(seeds, "warmup")
        self.obs = env.reset()
        self.metrics: Metrics = {}
        self.steps = 0
        self.updates = 0
        self.restarts = 0
        self.lost = 0

    def act(self, obs: Tensor) -> Tensor:
        """Random actions until the warm-up is over, then the learner's, with exploration."""
        if self.steps < self.learner.config.warmup:
            return random_actions(self.warmup, self.env.spec, self.env.copies)
        return self.learner.act(obs, explore=True)

    def remember(self, transition: Transition) -> None:
        """Take in one step of all copies; raises ``UserError`` if the environment answered with NaN or infinity."""
        step = transition.step
        require_finite(step.reward, "reward", self.steps, self.env.spec.agents)
        require_finite(step.next_obs, "observation", self.steps, self.env.spec.agents)
        self.replay.add(transition.obs, transition.action, step)
        self.returns.add(step)
        self.steps += self.env.copies
        self.obs = step.obs
        if step.lost is not None:
            self.lost += int(step.lost.any(1).sum())

    def learn(self) -> int:
        """The updates that are due, and how many that were; raises ``UserError`` if a gradient is not finite."""
        config = self.learner.config
        due = max((self.steps - config.warmup) // config.update_every - self.updates, 0)
        for _ in range(due):
            self.metrics = self.learner.update(self.replay.sample(config.batch_size))
            self.updates += 1
            for name in ("grad/critic_norm", "grad/actor_norm"):
                if name in self.metrics:
                    require_finite(self.metrics[name], name, self.steps, self.env.spec.agents)
        return due

    def counts(self) -> dict[str, Tensor]:
        """Counters for the log, ``[P]`` each."""
        values = {
            "replay/size": len(self.replay),
            "events/worker_restarts": self.restarts,
            "events/lost_transitions": self.lost,
        }
        return {name: torch.full((self.env.members,), float(value)) for name, value in values.items()}

    def state_dict(self) -> State:
        counters = {name: getattr(self, name) for name in ("steps", "updates", "restarts", "lost", "metrics")}
        return {**save_parts(self, self.PARTS), "obs": self.obs.clone(), **counters}

    def load_state_dict(self, state: State) -> None:
        """Go on where ``state_dict`` was taken; ``replay.restore`` must follow.

        Raises:
            ValueError: the state is that of another environment or number of copies.
        """
        if state["obs"].shape != self.obs.shape:
            raise ValueError(f"its observations are {list(state['obs'].shape)} and not {list(self.obs.shape)}")
        load_parts(self, self.PARTS, state)
        for name in ("steps", "updates", "restarts", "lost", "metrics", "obs"):
            setattr(self, name, state[name])

    def restart_episodes(self) -> None:
        """Begin new episodes: what remains to do on resume where an environment's state cannot be restored."""
        self.obs = self.env.reset()
        self.returns.running.zero_()
        self.replay.interrupt()


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


class Interrupted(KeyboardInterrupt):
    """The user (or the machine's scheduler) asked the run to stop; its state has been saved."""


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append to instead of ending the process; a second SIGINT ends it at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals go elsewhere
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    training: Training,
    checkpoints: Checkpoints,
    evaluator: Evaluator | None,
    on_progress: Callable[[Training, dict[str, float], dict[str, Tensor]], None],
    on_event: Callable[[str], None],
) -> None:
    """Run until ``config.steps``; whatever is due at a step happens in the order learn, log, evaluate, save.

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
    config, env, watch = training.config, training.env, Stopwatch()
    p = env.members

    def save() -> None:
        checkpoints.save(training.steps, training.state_dict(), training.replay)

    def evaluate() -> dict[str, Tensor]:
        if evaluator is None:
            return {}
        with watch.time("eval"):
            played = evaluator(training.learner)
        require_finite(played.returns, "evaluation return", training.steps, env.spec.agents)
        watch.work["eval"] += float(played.lengths.mean(1).sum())
        return played.metrics()

    with stop_requests() as stop:
        if training.steps == 0:
            training.recorder.write(0, evaluate())
        saved = training.steps
        transitions = interact(env, training.obs, training.act)
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
                result = evaluate()
                training.recorder.write(training.steps, result)
                news |= result
            stopping = bool(stop)  # a request that comes later waits for the next step's save
            if passed(config.checkpoint_every, before, training.steps) or stopping:
                save()
                saved = training.steps
            on_progress(training, rates, news)
            if stopping:
                raise Interrupted(f"stopped at step {training.steps}, everything saved")
        if saved < training.steps:
            save()


def passed(interval: int, before: int, now: int) -> bool:
    """Whether a multiple of ``interval`` lies in (before, now]; never if it is 0."""
    return interval > 0 and now // interval > before // interval


def speeds(rates: dict[str, float], members: int) -> dict[str, Tensor]:
    """Rates by kind as metrics ``[P]``."""
    names = {"env": "env_steps", "learn": "updates", "eval": "eval_steps"}
    return {f"speed/{names[kind]}_per_second": torch.full((members,), rate) for kind, rate in rates.items()}


def random_actions(streams: Streams, spec: EnvSpec, copies: int) -> Tensor:
    """Uniform on each agent's actions: ``[P, N, E, A]`` in [-1, 1], or ``[P, N, E]`` int64."""
    if spec.discrete:
        sizes = torch.tensor(spec.action_sizes)[:, None]
        return (streams.uniform(spec.n_agents, copies) * sizes).long()
    return (2 * streams.uniform(spec.n_agents, copies, spec.action_size) - 1) * spec.action_mask[:, None]


def require_finite(values: Tensor, what: str, step: int, agents: Sequence[str]) -> None:
    """Raise ``UserError`` naming the first member and agent of ``values`` (``[P, N, ...]``) that is not finite."""
    if math.isfinite(values.sum()):
        return
    bad = (~torch.isfinite(values)).flatten(2).any(-1) if values.dim() > 2 else ~torch.isfinite(values)
    if bad.any():
        member, agent = bad.nonzero()[0].tolist()
        who = agents[agent] if bad.shape[1] == len(agents) else "the shared network"
        raise UserError(f"{what} of {who} (member {member}) is not finite at step {step}; the last checkpoint is kept")
