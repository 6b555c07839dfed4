"""The other side of each comparison: other people's libraries, used as their own documentation does."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from benchmarks.loops import LoopMADDPG
from benchmarks.pair import Work
from benchmarks.terms import GRUTerms


def mpe2_steps() -> Work:
    """Environment steps of mpe2's simple_spread_v3, N = 3, discrete actions, resets included."""
    from mpe2 import simple_spread_v3

    env = simple_spread_v3.parallel_env(N=3, max_cycles=25)
    env.reset(seed=0)
    names = list(env.agents)
    actions = np.random.default_rng(0).integers(5, size=(25, 3))
    turn = iter(range(sys.maxsize))

    def work() -> float:
        env.step(dict(zip(names, actions[next(turn) % 25], strict=True)))
        if not env.agents:
            env.reset()
        return 1.0

    return work


def jaxmarl_steps(copies: int, unroll: bool) -> Work:
    """Environment steps of JaxMARL's jitted simple_spread_v3, N = 3, discrete actions, resets included.

    Args:
        copies: stepped at once.
        unroll: 25 steps in one compiled call (``lax.scan``), or one call per step as with a policy outside JAX.
    """
    import jax
    import jaxmarl

    env = jaxmarl.make("MPE_simple_spread_v3")
    key = jax.random.PRNGKey(0)
    actions = jax.random.randint(key, (25, 3, copies), 0, 5)
    _, state = jax.jit(jax.vmap(env.reset))(jax.random.split(key, copies))

    def step(carry: Any, action: Any) -> tuple[Any, Any]:
        key, state = carry
        key, one = jax.random.split(key)
        chosen = {name: action[i] for i, name in enumerate(env.agents)}
        obs, state, reward, done, _ = jax.vmap(env.step)(jax.random.split(one, copies), state, chosen)
        return (key, state), (obs, reward, done)

    run = jax.jit(lambda carry, actions: jax.lax.scan(step, carry, actions)) if unroll else jax.jit(step)
    carry: Any = (key, state)
    turn = iter(range(sys.maxsize))

    def work() -> float:
        nonlocal carry
        carry, answer = run(carry, actions if unroll else actions[next(turn) % 25])
        jax.block_until_ready(answer)
        return float(copies * (25 if unroll else 1))

    return work


def loop_maddpg_updates(agents: int) -> Work:
    """Updates of MADDPG as a loop of separate networks; sizes and batch as ``ours.maddpg_updates``."""
    obs_size = 4 + 2 * agents + 4 * (agents - 1)
    learner = LoopMADDPG(
        [obs_size] * agents, [5] * agents, (64, 64, 64), gamma=0.95, tau=0.01, actor_lr=1e-4, critic_lr=1e-3
    )
    obs, next_obs = torch.randn(2, agents, 256, obs_size)
    action, reward = 2 * torch.rand(agents, 256, 5) - 1, torch.randn(agents, 256)
    batch = [list(x) for x in (obs, action, reward, next_obs, torch.rand(agents, 256) < 0.05)]

    def work() -> float:
        learner.update(*batch)
        return 1.0

    return work


def loop_gru_unrolls(**settings: Any) -> Work:
    """The work of ``ours.gru_unrolls`` as a loop over agents of separate modules of torch."""
    terms = GRUTerms(**settings)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = torch.nn.Linear(terms.inputs, terms.hidden)
            self.gru = torch.nn.GRU(terms.hidden, terms.hidden)
            self.leave = torch.nn.Linear(terms.hidden, terms.outputs)

        def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
            hidden, _ = self.gru(torch.relu(self.enter(x)), memory)
            return self.leave(hidden)

    nets = [Net() for _ in range(terms.agents)]
    x = torch.randn(terms.agents, terms.steps, terms.batch, terms.inputs)
    memory = torch.zeros(terms.agents, 1, terms.batch, terms.hidden)

    def work() -> float:
        for net, seen, begun in zip(nets, x, memory, strict=True):
            net(seen, begun).square().mean().backward()
            net.zero_grad()
        return 1.0

    return work


def sb3_td3_updates() -> Work:
    """Updates of stable-baselines3's TD3, sizes as ``ours.td3_updates``, drawing from its replay buffer included."""
    import gymnasium
    from stable_baselines3 import TD3
    from stable_baselines3.common.logger import Logger

    class Blank(gymnasium.Env[Any, Any]):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (11,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)

    model = TD3(
        "MlpPolicy",
        Blank(),
        learning_rate=3e-4,
        batch_size=256,
        buffer_size=10_000,
        policy_kwargs={"net_arch": [256, 256]},
        device="cpu",
    )
    model.set_logger(Logger(None, []))
    rng = np.random.default_rng(0)
    for _ in range(10_000):
        obs, next_obs = rng.normal(size=(2, 1, 11))
        action = rng.uniform(-1, 1, (1, 3))
        assert model.replay_buffer is not None
        model.replay_buffer.add(obs, next_obs, action, rng.normal(size=1), rng.random(1) < 0.05, [{}])

    def work() -> float:
        model.train(gradient_steps=20, batch_size=256)
        return 20.0

    return work
