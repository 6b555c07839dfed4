"""The loop: what happens in which order, how many updates are owed, and what counts as an episode's return."""

import dataclasses
import itertools
import os
from dataclasses import dataclass

import pytest
import torch

from marl.envs.base import EnvSpec, Step
from marl.envs.probes import Discount, ProbeOptions, Truncation
from marl.evaluation import Evaluation
from marl.finite import require_finite
from marl.loop import (
    LoopConfig,
    Returns,
    Stopwatch,
    Training,
    first_view,
    interact,
    passed,
    random_actions,
    train,
)
from marl.replay import Replay
from marl.streams import Streams
from marl.types import Acted, Schedule, UserError


@dataclass(frozen=True)
class Config:
    warmup: int = 2
    update_every: int = 1


class Tape(list):
    """What happened, in order; and the lines that the user was told."""

    def __init__(self):
        super().__init__()
        self.lines = []


class Learner:
    """Plays zeros; its updates have these ``metrics``."""

    memory_size = 0

    def __init__(self, tape, metrics):
        self.tape, self.metrics, self.batches = tape, metrics, []

    def act(self, view, explore):
        self.tape.append("act")
        return Acted(torch.zeros(*view.obs.shape[:3], 1))

    def update(self, batch):
        self.tape.append("update")
        self.batches.append(batch)
        return self.metrics

    def state_dict(self):
        return {}

    load_state_dict = None


def studio(env_class=Discount, config=None, metrics=None, copies=1, plays=None, **loop):
    """A tape, a training that records on it, and ``roll()``, which runs the loop.

    ``plays``: for each evaluation the signal that comes in the midst of it, or None.
    """
    tape = Tape()

    class Env(env_class):
        def step(self, action):
            tape.append("step")
            return super().step(action)

    class Memory(Replay):
        def add(self, *arguments):
            tape.append("add")
            super().add(*arguments)

    class Recorder:
        members = ("kappa=0.5",)

        def write(self, step, values):
            if values:
                tape.append(f"log {step} {'eval' if 'eval/return_mean' in values else 'train'}")

        def flush(self):
            pass

        def state_dict(self):
            return {}

    class Saver:
        def save(self, step, state, journal):
            assert state["steps"] == step
            tape.append(f"save {step}")

    class Evaluator:
        def __call__(self, learner, on_step):
            tape.append("evaluate")
            on_step(None, torch.ones(1, 1, 1, dtype=torch.bool))
            if plays is not None and (number := next(plays)):
                os.kill(os.getpid(), number)
            on_step(None, torch.ones(1, 1, 1, dtype=torch.bool))
            return Evaluation(torch.zeros(1, 1, 1), torch.ones(1, 1, 1), {})

    env = Env([0], copies, ProbeOptions())
    config = config or Config()
    schedule = Schedule(config.warmup, config.update_every)
    memory = Memory(100, env.spec, 1, copies, [0], batch_size=4, schedule=schedule)
    learner = Learner(tape, metrics or {})
    training = Training(LoopConfig(**loop), [0], env, learner, memory, Recorder(), first_view(env, learner))

    def roll(on_progress=lambda *_: None):
        train(training, Saver(), Evaluator() if loop.get("eval_every") else None, on_progress, tape.lines.append)

    return tape, training, roll


def test_a_step_acts_remembers_learns_logs_evaluates_and_saves_in_this_order():
    tape, _, roll = studio(steps=6, log_every=3, eval_every=4, checkpoint_every=4)
    roll()
    assert tape == [
        *("evaluate", "log 0 eval"),
        *("step", "add"),  # two random actions,
        *("step", "add"),  # then the learner's
        *("act", "step", "add", "update", "log 3 train"),
        *("act", "step", "add", "update", "evaluate", "log 4 eval", "save 4"),
        *("act", "step", "add", "update"),
        *("act", "step", "add", "update", "log 6 train", "evaluate", "log 6 eval", "save 6"),  # the end
    ]


def test_without_evaluation_and_checkpoints_only_the_end_is_saved():
    tape, _, roll = studio(steps=3, log_every=100, eval_every=0, checkpoint_every=0)
    roll()
    assert [event for event in tape if event not in ("act", "step", "add", "update")] == ["save 3"]


def test_a_finished_training_does_nothing_more():
    tape, training, roll = studio(steps=3, eval_every=2)
    roll()
    tape.clear()
    roll()
    assert tape == [] and training.steps == 3


@pytest.mark.parametrize(
    "copies, warmup, update_every, steps, updates",
    [
        (1, 2, 1, 7, 5),  # one for each step after the second
        (1, 5, 2, 10, 2),  # after steps 7 and 9
        (3, 4, 2, 12, 4),  # (12 - 4) / 2; 0, 1, 1, 2 of them after 3, 6, 9, 12 steps
        (4, 100, 1, 12, 0),
    ],
)
def test_updates_are_owed_for_the_steps_after_the_warm_up(copies, warmup, update_every, steps, updates):
    tape, training, roll = studio(config=Config(warmup, update_every), copies=copies, steps=steps, eval_every=0)
    roll()
    assert (tape.count("update"), training.updates, training.steps) == (updates, updates, steps)


def test_an_interval_is_passed_when_a_multiple_of_it_lies_between_two_steps():
    assert [now for now in range(3, 30, 3) if passed(10, now - 3, now)] == [12, 21]  # 10 and 20; 30 is not reached
    assert passed(10, 9, 10) and not passed(10, 10, 11) and not passed(0, 0, 10)


def test_a_learner_is_taught_that_a_time_limit_is_no_end():
    """The limit of 5 steps: nothing is ever terminated, and no successor is a reset's."""
    _, training, roll = studio(Truncation, steps=40, eval_every=0)
    roll()
    assert not any(batch.terminated.any() for batch in training.learner.batches)
    _, training, roll = studio(Discount, steps=40, eval_every=0)
    roll()
    batches = training.learner.batches
    # Episodes of two steps that see (1, 0), (0, 1) and, at the end, (0, 0).
    for batch in batches:
        last = batch.obs[..., 1] == 1
        assert torch.equal(batch.terminated, last)
        assert (batch.next_obs[last] == 0).all() and (batch.next_obs[~last] == torch.tensor([0.0, 1.0])).all()


def test_interaction_acts_on_the_observation_after_the_reset():
    env = Discount([0], 1, ProbeOptions())
    seen = []
    steps = interact(
        env, env.start(), lambda view: seen.append(view.obs.flatten().tolist()) or Acted(torch.zeros(1, 1, 1, 1))
    )
    taken = [next(steps) for _ in range(3)]
    assert seen == [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    assert [t.view.obs.flatten().tolist() for t in taken] == seen
    assert taken[1].step.next_obs.flatten().tolist() == [0.0, 0.0]  # what the episode ended with


# ---- numbers ------------------------------------------------------------------------------------------------------


PAIR = EnvSpec("test/pair", ("a", "b"), (1, 1), (1, 1), False)


def a_step(reward, done, lost=None):
    """One member, two agents, two copies: ``reward`` and ``done`` are ``[N][E]``."""
    flags = torch.tensor([done]).bool()
    none = torch.zeros_like(flags)
    obs = torch.zeros(1, 2, 2, 1)
    return Step(obs, obs, torch.tensor([reward]).float(), none, flags, None if lost is None else torch.tensor([lost]))


def test_returns_by_hand():
    returns = Returns(1, 2, PAIR)
    returns.add(a_step([[1, 10], [2, 20]], [[0, 0], [0, 0]]))
    assert returns.take() == {}  # no episode has ended
    returns.add(a_step([[1, 10], [2, 20]], [[1, 0], [1, 0]]))  # copy 0 ends: agents got 2 and 4 in two steps
    returns.add(a_step([[5, 10], [5, 20]], [[0, 1], [0, 1]]))  # copy 1 ends: 30 and 60 in three
    taken = returns.take()
    assert taken["train/return_mean"].tolist() == [[16.0, 32.0]]  # (2 + 30) / 2 and (4 + 60) / 2
    assert taken["train/return_sum"].tolist() == [48.0]
    assert taken["train/episode_length"].tolist() == [2.5]
    assert returns.take() == {}
    returns.add(a_step([[1, 0], [1, 0]], [[1, 0], [1, 0]]))  # copy 0 had one step of 5 before
    assert returns.take()["train/return_mean"].tolist() == [[6.0, 6.0]]


def test_a_return_needs_an_episode_of_every_agent_and_an_episode_with_a_loss_counts_for_nobody():
    returns = Returns(1, 2, PAIR)
    returns.add(a_step([[1, 1], [1, 1]], [[1, 0], [0, 0]]))
    assert returns.take() == {}  # agent 1 has ended none
    returns.add(a_step([[1, 1], [9, 9]], [[0, 0], [1, 1]], lost=[[False, False], [True, False]]))
    # Agent 1's copy 0 lost a step; its copy 1 got 1 + 9. Agent 0's episode of reward 1 was still waiting.
    assert returns.take()["train/return_mean"].tolist() == [[1.0, 10.0]]


def test_returns_are_restored_in_the_middle_of_an_episode():
    returns, other = Returns(1, 2, PAIR), Returns(1, 2, PAIR)
    returns.add(a_step([[1, 2], [3, 4]], [[1, 0], [1, 0]]))
    state = returns.state_dict()
    returns.add(a_step([[0, 2], [0, 4]], [[0, 1], [0, 1]]))
    other.load_state_dict(state)
    other.add(a_step([[0, 2], [0, 4]], [[0, 1], [0, 1]]))
    ours, theirs = returns.take(), other.take()
    assert ours["train/return_mean"].tolist() == theirs["train/return_mean"].tolist() == [[2.5, 5.5]]


def test_outcomes_are_means_over_the_episodes_that_ended_whole():
    spec = dataclasses.replace(PAIR, outcomes=("win_rate", "dead_agents"))
    returns = Returns(1, 2, spec)
    said = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])  # what copy 0 and copy 1 say
    returns.add(a_step([[0, 0], [0, 0]], [[1, 0], [1, 0]])._replace(outcome=said))  # copy 0 wins, nobody dead
    returns.add(a_step([[0, 0], [0, 0]], [[1, 1], [1, 1]])._replace(outcome=said))  # again, and copy 1 loses 2 agents
    lost = [[False, True], [False, True]]
    returns.add(a_step([[0, 0], [0, 0]], [[0, 1], [0, 1]], lost)._replace(outcome=said))  # does not count
    other = Returns(1, 2, spec)
    other.load_state_dict(returns.state_dict())
    for one in (returns, other):
        taken = one.take()
        assert taken["train/win_rate"].tolist() == pytest.approx([2 / 3])
        assert taken["train/dead_agents"].tolist() == pytest.approx([2 / 3])
        assert one.take() == {}


def test_random_actions_are_uniform_among_those_that_may_be_taken():
    spec = EnvSpec("test/masked", ("a", "b"), (1, 1), (3, 3), discrete=True, masked=True)
    avail = torch.tensor([[True, False, True], [False, True, False]])[None, :, None].expand(1, 2, 10_000, 3)
    actions = random_actions(Streams([0], "x"), spec, 10_000, avail)
    assert actions.dtype == torch.int64 and (actions[0, 1] == 1).all() and (actions[0, 0] != 1).all()
    assert abs((actions[0, 0] == 0).double().mean() - 0.5) < 4 * 0.5 / 100  # four standard errors


class Counting:
    """Notes how many steps of the episode it has seen."""

    memory_size = 1

    def act(self, view, explore):
        self.seen.append(view.memory.flatten().tolist())
        return Acted(torch.zeros(*view.obs.shape[:3], 1), view.memory + 1)

    def __init__(self):
        self.seen = []


def test_what_an_agent_noted_is_seen_at_the_next_step_and_forgotten_where_an_episode_ends():
    env, learner = Discount([0], 1, ProbeOptions()), Counting()
    list(itertools.islice(interact(env, first_view(env, learner), lambda view: learner.act(view, True)), 5))
    assert learner.seen == [[0.0], [1.0], [0.0], [1.0], [0.0]]


def test_random_actions_fill_each_agents_own_range():
    spec = Discount([0], 1, ProbeOptions()).spec
    actions = random_actions(Streams([0], "x"), spec, 10_000)
    # Uniform on [-1, 1]: mean 0 and variance 1/3, within four standard errors of 10 000 draws.
    assert actions.shape == (1, 1, 10_000, 1) and actions.abs().max() <= 1
    assert abs(actions.mean()) < 0.024 and abs(actions.var() - 1 / 3) < 0.012
    from marl.envs.probes import Heterogeneous

    discrete = Heterogeneous([0], 1, ProbeOptions(continuous=False)).spec  # agents of 2 and 3 actions
    actions = random_actions(Streams([0], "x"), discrete, 1000)
    assert [a.unique().tolist() for a in actions[0]] == [[0, 1], [0, 1, 2]] and actions.dtype == torch.int64
    wide = Heterogeneous([0], 1, ProbeOptions()).spec  # of 1 and 2 components
    assert (random_actions(Streams([0], "x"), wide, 50)[0, 0, :, 1] == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_first_agent_with_a_number_that_is_not_finite_is_named(value):
    rewards = torch.zeros(2, 3, 4)
    require_finite(rewards, "reward", 5, "abc")
    rewards[1, 2, 3] = value
    with pytest.raises(UserError, match=r"^reward of c \(member 1\) is not finite at step 5; the last checkpoint is"):
        require_finite(rewards, "reward", 5, "abc")
    with pytest.raises(UserError, match=r"^reward of c \(member lr=0.1\) is not finite"):
        require_finite(rewards, "reward", 5, "abc", ["lr=0.01", "lr=0.1"])
    with pytest.raises(UserError, match=r"^loss of the shared network \(member 0\) is not finite"):
        require_finite(torch.tensor([[value], [0.0]]), "loss", 5, "abc")


@pytest.mark.parametrize("name", ["grad/critic_norm", "grad/actor_norm", "loss/option", "distil/value"])
def test_a_spoilt_network_stops_the_loop_before_anything_is_saved(name):
    tape, _, roll = studio(metrics={name: torch.full((1, 1), float("nan"))}, steps=10, checkpoint_every=1, eval_every=0)
    with pytest.raises(UserError, match=rf"{name} of agent_0 \(member kappa=0.5\) is not finite at step 3"):
        roll()
    assert tape[-2:] == ["add", "update"] and "save 3" not in tape


# ---- time -----------------------------------------------------------------------------------------------------------


def test_the_stopwatch_divides_work_by_its_own_time(monkeypatch):
    times = iter([10.0, 12.0, 20.0, 21.0])
    monkeypatch.setattr("marl.loop.time.perf_counter", lambda: next(times))
    watch = Stopwatch()
    for kind in ("env", "eval"):
        with watch.time(kind):
            pass
    watch.work["env"] += 100
    assert watch.rates() == {"env": 50.0}  # 100 steps in 2 seconds; of eval no work is known
    assert watch.rates() == {}
