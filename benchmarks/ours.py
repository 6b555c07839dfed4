"""This project's side of each comparison: a function that prepares, and returns the work to be timed."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.pair import Work
from benchmarks.terms import GRUTerms, MAPPOTerms, QMIXTerms
from marl.algos.td3 import TD3, TD3Config
from marl.api import make_recipe
from marl.cli import keep_memory
from marl.envs import make_env
from marl.envs.base import EnvSpec, Step
from marl.loop import Training, first_view, interact
from marl.modules.recurrent import StackedRNN
from marl.recipe import Recipe
from marl.replay import Replay
from marl.streams import Streams
from marl.types import Acted, Batch, View

HOPPER = EnvSpec("hopper", ("hopper",), (11,), (3,), discrete=False, max_steps=1000)


def mpe_steps(copies: int) -> Work:
    """Environment steps of simple_spread_v3 with N = 3 and discrete actions, resets included."""
    env = make_env("mpe/simple_spread_v3", copies=copies, options={"continuous": False})
    env.reset()
    actions = torch.randint(5, (25, 1, 3, copies))
    turn = iter(range(sys.maxsize))

    def work() -> float:
        env.step(actions[next(turn) % 25])
        return copies

    return work


def maddpg_updates(agents: int) -> Work:
    """Updates of MADDPG on batches of 256, three layers of 64 units, continuous actions."""
    keep_memory()  # as `marl train` does
    env = make_env("mpe/simple_spread_v3", agents=agents)
    recipe = make_recipe("maddpg", "mpe/simple_spread_v3", [0], {}, {}, {"agents": agents})
    learner, batch = recipe.make_learner(env.spec), random_batch(env.spec, 256)

    def work() -> float:
        learner.update(batch)
        return 1.0

    return work


def td3_updates(learners: int) -> Work:
    """Learner updates of TD3 at Hopper's sizes with two layers of 256 units, drawing 256 transitions included."""
    keep_memory()  # as `marl train` does
    spec = EnvSpec("hopper", tuple(map(str, range(learners))), (11,) * learners, (3,) * learners, discrete=False)
    config = TD3Config(hidden=(256, 256), batch_size=256)
    learner, replay = TD3(spec, [config], [0]), Replay(10_000, spec, 1, 100, [0])
    for _ in range(100):
        replay.add(*random_slot(spec, 100))

    def work() -> float:
        learner.update(replay.sample(256))
        return float(learners)

    return work


def training_steps(algorithm: str, environment: str, members: int = 1, **settings: Any) -> Work:
    """Steps of the training loop with one update each: act, step the environment, remember, draw, learn."""
    keep_memory()  # as `marl train` does
    _, step = stepping(make_recipe(algorithm, environment, range(members), {}, {}, {"warmup": 500, **settings}))

    def work() -> float:
        step()
        return 1.0

    for _ in range(600):
        work()
    return work


def stepping(recipe: Recipe) -> tuple[Training, Callable[[], None]]:
    """A run without log, evaluation and checkpoints, and what does its next step and the updates that are due."""
    env = recipe.make_env(recipe.loop.copies)
    learner = recipe.make_learner(env.spec)
    buffer = learner.Buffer.of(recipe.config, env.spec, env.copies, recipe.seeds, learner.memory_size)
    recorder: Any = SimpleNamespace(members=[])  # nothing is logged
    training = Training(recipe.loop, recipe.seeds, env, learner, buffer, recorder, first_view(env, learner))
    transitions = interact(env, training.view, training.act)

    def step() -> None:
        training.remember(next(transitions))
        training.learn()

    return training, step


def mappo_steps(**settings: Any) -> Work:
    """Environment steps of MAPPO on simple_spread, learning included; one call gathers a rollout and learns.

    On top of what the rivals do, values are normalised, and the shared critic has a head for each agent.
    """
    keep_memory()  # as `marl train` does
    terms = MAPPOTerms(**settings)
    chosen = {
        "copies": terms.copies,
        "rollout": terms.steps,
        "epochs": terms.epochs,
        "minibatches": terms.minibatches,
        "hidden": tuple(terms.hidden),
        "activation": "tanh",
        "actor_lr": terms.lr,
        "critic_lr": terms.lr,
        "gamma": terms.gamma,
        "gae_lambda": terms.lam,
        "clip": terms.clip,
        "entropy": terms.entropy,
        "max_grad_norm": terms.max_grad_norm,
    }
    _, step = stepping(make_recipe("mappo", "mpe/simple_spread_v3", [0], {}, {"continuous": False}, chosen))

    def work() -> float:
        for _ in range(terms.steps):
            step()
        return float(terms.copies * terms.steps)

    return work


def qmix_updates(**settings: Any) -> Work:
    """Training steps of QMIX on a map of smax: updates, each with its share of acting; one call does a round.

    What is replayed are whole battles, cut at the longest of a batch; the rival's spans are of equal length and hold
    more than one battle where battles are short.
    """
    import jaxmarl  # noqa: F401  (missing: said before the environment does)

    keep_memory()  # as `marl train` does
    terms = QMIXTerms(**settings)
    chosen = {
        "copies": terms.copies,
        "update_every": terms.copies * terms.steps // terms.updates,
        "batch_size": terms.batch,
        "buffer_size": terms.episodes * terms.steps,
        "hidden": (terms.hidden,),
        "embed": terms.embed,
        "hyper_hidden": terms.hyper,
        "lr": terms.lr,
        "gamma": terms.gamma,
        "epsilon_start": terms.epsilon,
        "epsilon_end": terms.epsilon,
        "max_grad_norm": terms.max_grad_norm,
        "target_interval": terms.target_every,
    }
    training, step = stepping(make_recipe("qmix", f"smax/{terms.map}", [0], {}, {"max_steps": terms.steps}, chosen))

    def work() -> float:
        before = training.updates
        for _ in range(terms.steps):
            step()
        return float(training.updates - before)

    while not training.updates:
        step()
    return work


def gru_unrolls(**settings: Any) -> Work:
    """Passes of one batch forward and backward through every agent's linear, ReLU, GRU, linear."""
    terms = GRUTerms(**settings)
    n, rows = terms.agents, terms.batch
    net = StackedRNN(Streams([0], "init"), n, terms.inputs, terms.hidden, terms.outputs)
    x, memory = torch.randn(1, n, terms.steps, rows, terms.inputs), torch.zeros(1, n, rows, terms.hidden)

    def work() -> float:
        y, _ = net.unroll(x, memory)
        y.square().mean().backward()
        net.zero_grad()
        return 1.0

    return work


def replay_megabytes() -> float:
    """Memory that a million Hopper transitions take, an episode ending every 20 steps as a beginner's do."""
    copies = 1000
    slots = [random_slot(HOPPER, copies) for _ in range(20)]
    before = peak_megabytes()
    replay = Replay(1_000_000, HOPPER, 1, copies, [0])
    for number in range(1_001):
        replay.add(*slots[number % 20])
    assert len(replay) == 1_000_000
    return peak_megabytes() - before


def peak_megabytes() -> float:
    """The most memory (1e6 bytes) that this process ever held; the unit of ``ru_maxrss`` is the system's."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def random_batch(spec: EnvSpec, rows: int) -> Batch:
    """``[1, N, rows, *]`` with one row in twenty terminated."""
    obs = torch.randn(2, 1, spec.n_agents, rows, spec.obs_size)
    action = 2 * torch.rand(1, spec.n_agents, rows, spec.action_size) - 1
    ended = torch.rand(1, spec.n_agents, rows) < 0.05
    return Batch(obs[0], action, torch.randn(1, spec.n_agents, rows), obs[1], ended)


def random_slot(spec: EnvSpec, copies: int) -> tuple[View, Acted, Step]:
    """The arguments of ``Replay.add`` for one time slot."""
    batch = random_batch(spec, copies)
    step = Step(batch.next_obs, batch.next_obs, batch.reward, batch.terminated, batch.terminated)
    return View(batch.obs), Acted(batch.action), step
