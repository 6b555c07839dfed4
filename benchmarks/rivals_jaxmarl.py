"""MAPPO and QMIX on JaxMARL's environments, compiled as a whole.

The package ``jaxmarl`` holds environments only; its baselines are scripts of its repository, with imports that it does
not install. What stands here is our own code after their structure: one compiled call gathers with ``lax.scan``, then
learns with ``lax.scan`` over epochs and minibatches (or updates). Where that gives the same numbers for less work, work
is left out: agents with one set of weights are folded into the rows, and MAPPO's value is computed once for a team.
"""

from __future__ import annotations

from typing import Any

from benchmarks.pair import Work
from benchmarks.terms import MAPPOTerms, QMIXTerms


def mappo_steps(**settings: Any) -> Work:
    """Environment steps of MAPPO on JaxMARL's simple_spread_v3, learning included; one call gathers and learns."""
    import jax
    import jax.numpy as jnp
    import jaxmarl
    import optax
    from flax import linen

    terms = MAPPOTerms(**settings)
    env = jaxmarl.make("MPE_simple_spread_v3", max_steps=terms.steps)
    frames, rows = terms.copies * terms.steps, terms.copies * terms.steps // terms.minibatches

    class MLP(linen.Module):
        outputs: int
        scale: float

        @linen.compact
        def __call__(self, x: Any) -> Any:
            for units in terms.hidden:
                x = linen.tanh(linen.Dense(units, kernel_init=linen.initializers.orthogonal(2**0.5))(x))
            return linen.Dense(self.outputs, kernel_init=linen.initializers.orthogonal(self.scale))(x)

    actor, critic = MLP(env.action_space(env.agents[0]).n, 0.01), MLP(1, 1.0)
    optimiser = optax.chain(optax.clip_by_global_norm(terms.max_grad_norm), optax.adam(terms.lr, eps=1e-5))

    def stacked(x: dict[str, Any]) -> Any:
        """A number for each agent, ``[E, N, ...]``."""
        return jnp.stack([x[name] for name in env.agents], axis=1)

    def value(params: Any, obs: Any) -> Any:
        """The team's value ``[..., 1]`` from all observations ``[..., N, D]``."""
        return critic.apply(params, obs.reshape(*obs.shape[:-2], -1))

    def log_prob(logits: Any, action: Any) -> Any:
        return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], -1)[..., 0]

    def gather(carry: Any, _: Any) -> tuple[Any, Any]:
        params, state, obs, key = carry
        key, choose, move = jax.random.split(key, 3)
        logits = actor.apply(params[0], obs)
        action = jax.random.categorical(choose, logits)
        chosen = {name: action[:, i] for i, name in enumerate(env.agents)}
        following, state, reward, done, _ = jax.vmap(env.step)(jax.random.split(move, terms.copies), state, chosen)
        seen = (obs, action, log_prob(logits, action), value(params[1], obs), stacked(reward), done["__all__"])
        return (params, state, stacked(following), key), seen

    def advantages(last: Any, values: Any, rewards: Any, dones: Any) -> Any:
        def back(carry: Any, seen: Any) -> tuple[Any, Any]:
            advantage, following = carry
            value, reward, done = seen
            going = terms.gamma * (1 - done[:, None])
            advantage = reward + going * (following + terms.lam * advantage) - value
            return (advantage, value), advantage

        start = (jnp.zeros_like(last), last)
        return jax.lax.scan(back, start, (values, rewards, dones), reverse=True, unroll=16)[1]

    def actor_loss(params: Any, obs: Any, action: Any, old: Any, advantage: Any) -> Any:
        logits = actor.apply(params, obs)
        logs = jax.nn.log_softmax(logits)
        ratio = jnp.exp(log_prob(logits, action) - old)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        clipped = jnp.clip(ratio, 1 - terms.clip, 1 + terms.clip)
        entropy = -(jnp.exp(logs) * logs).sum(-1).mean()
        return -jnp.minimum(ratio * advantage, clipped * advantage).mean() - terms.entropy * entropy

    def critic_loss(params: Any, obs: Any, old: Any, target: Any) -> Any:
        new = value(params, obs)
        clipped = old + jnp.clip(new - old, -terms.clip, terms.clip)
        return 0.5 * jnp.maximum((new - target) ** 2, (clipped - target) ** 2).mean()

    def learn(carry: Any, part: Any) -> tuple[Any, None]:
        (actor_params, critic_params), (actor_memory, critic_memory) = carry
        obs, action, old, value, advantage, target = part
        slope = jax.grad(actor_loss)(actor_params, obs, action, old, advantage)
        change, actor_memory = optimiser.update(slope, actor_memory)
        actor_params = optax.apply_updates(actor_params, change)
        slope = jax.grad(critic_loss)(critic_params, obs, value, target)
        change, critic_memory = optimiser.update(slope, critic_memory)
        return ((actor_params, optax.apply_updates(critic_params, change)), (actor_memory, critic_memory)), None

    @jax.jit
    def update(params: Any, memory: Any, state: Any, obs: Any, key: Any) -> Any:
        (_, state, obs, key), seen = jax.lax.scan(gather, (params, state, obs, key), None, terms.steps)
        seen_obs, action, logs, values, rewards, dones = seen
        values = jnp.broadcast_to(values, rewards.shape)
        last = jnp.broadcast_to(value(params[1], obs), rewards[0].shape)
        advantage = advantages(last, values, rewards, dones)
        data = seen_obs, action, logs, values, advantage, advantage + values
        flat = jax.tree.map(lambda x: x.reshape(frames, *x.shape[2:]), data)

        def epoch(carry: Any, key: Any) -> tuple[Any, None]:
            order = jax.random.permutation(key, frames)
            parts = jax.tree.map(lambda x: x[order].reshape(terms.minibatches, rows, *x.shape[1:]), flat)
            return jax.lax.scan(learn, carry, parts)

        key, one = jax.random.split(key)
        (params, memory), _ = jax.lax.scan(epoch, (params, memory), jax.random.split(one, terms.epochs))
        return params, memory, state, obs, key

    key = jax.random.PRNGKey(0)
    first, state = jax.jit(jax.vmap(env.reset))(jax.random.split(key, terms.copies))
    obs = stacked(first)
    params = actor.init(key, obs), critic.init(key, obs.reshape(terms.copies, -1))
    carry: Any = (params, tuple(map(optimiser.init, params)), state, obs, key)

    def work() -> float:
        nonlocal carry
        carry = jax.block_until_ready(update(*carry))
        return float(frames)

    return work


def qmix_updates(**settings: Any) -> Work:
    """Training steps of QMIX on a map of smax: updates, each with its share of acting; one call does a round."""
    import jax
    import jax.numpy as jnp
    import jaxmarl
    import optax
    from flax import linen
    from jaxmarl.environments.smax import map_name_to_scenario

    terms = QMIXTerms(**settings)
    env = jaxmarl.make("HeuristicEnemySMAX", scenario=map_name_to_scenario(terms.map), max_steps=terms.steps)
    agents, actions = len(env.agents), env.action_space(env.agents[0]).n

    class Cell(linen.Module):
        """A step of the GRU, from zeros where an episode begins."""

        @linen.compact
        def __call__(self, memory: Any, seen: Any) -> Any:
            x, began = seen
            return linen.GRUCell(terms.hidden)(jnp.where(began[..., None], 0.0, memory), x)

    class Utility(linen.Module):
        """``[T, rows, D]`` -> the last memory and ``[T, rows, actions]``."""

        @linen.compact
        def __call__(self, memory: Any, obs: Any, began: Any) -> Any:
            x = linen.relu(linen.Dense(terms.hidden)(obs))
            scan = linen.scan(Cell, variable_broadcast="params", split_rngs={"params": False})
            memory, x = scan()(memory, (x, began))
            return memory, linen.Dense(actions)(x)

    class Mixer(linen.Module):
        """``[..., N]`` utilities and the state -> ``[...]``, rising in every utility."""

        @linen.compact
        def __call__(self, q: Any, state: Any) -> Any:
            def hyper(units: int, outputs: int) -> Any:
                return linen.Dense(outputs)(linen.relu(linen.Dense(units)(state)))

            first = jnp.abs(hyper(terms.hyper, agents * terms.embed)).reshape(*q.shape, terms.embed)
            hidden = linen.elu((q[..., None] * first).sum(-2) + linen.Dense(terms.embed)(state))
            return (hidden * jnp.abs(hyper(terms.hyper, terms.embed))).sum(-1) + hyper(terms.embed, 1)[..., 0]

    utility, mixer = Utility(), Mixer()
    optimiser = optax.chain(optax.clip_by_global_norm(terms.max_grad_norm), optax.adam(terms.lr))

    def stacked(x: dict[str, Any]) -> Any:
        """A number for each agent, ``[E, N, ...]``."""
        return jnp.stack([x[name] for name in env.agents], axis=1)

    def numbered(obs: Any) -> Any:
        """Each agent's observation and its number, one-hot."""
        return jnp.concatenate([obs, jnp.broadcast_to(jnp.eye(agents), (*obs.shape[:-1], agents))], axis=-1)

    def utilities(params: Any, obs: Any, began: Any) -> Any:
        """``[T, B, N, D]`` -> ``[T, B, N, actions]``: the agents are rows."""
        span, batch = obs.shape[:2]
        rows = (x.reshape(span, batch * agents, *x.shape[3:]) for x in (obs, began))
        _, q = utility.apply(params, jnp.zeros((batch * agents, terms.hidden)), *rows)
        return q.reshape(span, batch, agents, actions)

    def beginning(key: Any) -> tuple[Any, Any, Any, Any]:
        """Memories, states, observations and flags of fresh episodes."""
        obs, state = jax.vmap(env.reset)(jax.random.split(key, terms.copies))
        ended = {name: jnp.zeros(terms.copies, bool) for name in [*env.agents, "__all__"]}
        return jnp.zeros((terms.copies * agents, terms.hidden)), state, obs, ended

    def gather(carry: Any, _: Any) -> tuple[Any, Any]:
        params, memory, state, obs, ended, key = carry
        key, choose, gamble, move = jax.random.split(key, 4)
        began = stacked(ended)
        seen = numbered(jnp.where(began[..., None], 0.0, stacked(obs)))
        rows = (x.reshape(1, terms.copies * agents, *x.shape[2:]) for x in (seen, began))
        memory, q = utility.apply(params, memory, *rows)
        avail = stacked(jax.vmap(env.get_avail_actions)(state))
        best = jnp.where(avail, q.reshape(avail.shape), -jnp.inf).argmax(-1)
        any_of = jax.random.categorical(choose, jnp.where(avail, 0.0, -jnp.inf))
        action = jnp.where(jax.random.uniform(gamble, best.shape) < terms.epsilon, any_of, best)
        chosen = {name: action[:, i] for i, name in enumerate(env.agents)}
        following, state, reward, done, _ = jax.vmap(env.step)(jax.random.split(move, terms.copies), state, chosen)
        step = (seen, began, action, avail, obs["world_state"], reward[env.agents[0]], done["__all__"])
        return (params, memory, state, following, done, key), step

    def loss(params: Any, target: Any, batch: Any) -> Any:
        obs, began, action, avail, state, reward, done = batch
        q = utilities(params[0], obs, began)
        best = jnp.where(avail, q, -jnp.inf).argmax(-1, keepdims=True)
        following = jnp.take_along_axis(utilities(target[0], obs, began), best, -1)[..., 0]
        aim = reward[:-1] + terms.gamma * (1 - done[:-1]) * mixer.apply(target[1], following, state)[1:]
        mixed = mixer.apply(params[1], jnp.take_along_axis(q, action[..., None], -1)[..., 0], state)[:-1]
        return ((mixed - jax.lax.stop_gradient(aim)) ** 2).mean()

    def learn(carry: Any, key: Any) -> tuple[Any, None]:
        params, target, memory, count, replay, filled = carry
        rows = jax.random.randint(key, (terms.batch,), 0, filled)
        batch = jax.tree.map(lambda x: jnp.swapaxes(x[rows], 0, 1), replay)
        change, memory = optimiser.update(jax.grad(loss)(params, target, batch), memory)
        params, count = optax.apply_updates(params, change), count + 1
        target = optax.periodic_update(params, target, count, terms.target_every)
        return (params, target, memory, count, replay, filled), None

    def round(params: Any, target: Any, memory: Any, count: Any, replay: Any, written: Any, key: Any) -> Any:
        key, start = jax.random.split(key)
        (*_, key), steps = jax.lax.scan(gather, (params[0], *beginning(start), key), None, terms.steps)
        rows = (written + jnp.arange(terms.copies)) % terms.episodes
        replay = jax.tree.map(lambda old, new: old.at[rows].set(jnp.swapaxes(new, 0, 1)), replay, steps)
        written = written + terms.copies
        key, one = jax.random.split(key)
        learning = (params, target, memory, count, replay, jnp.minimum(written, terms.episodes))
        learning, _ = jax.lax.scan(learn, learning, jax.random.split(one, terms.updates))
        return (*learning[:5], written, key)

    key = jax.random.PRNGKey(0)
    start = beginning(key)
    rows = (x.reshape(1, terms.copies * agents, *x.shape[2:]) for x in (numbered(stacked(start[2])), stacked(start[3])))
    params = (
        utility.init(key, start[0], *rows),
        mixer.init(key, jnp.zeros((terms.copies, agents)), start[2]["world_state"]),
    )
    carry = (params[0], *start, key)
    step = jax.eval_shape(gather, carry, None)[1]
    replay = jax.tree.map(lambda x: jnp.zeros((terms.episodes, terms.steps, *x.shape[1:]), x.dtype), step)
    compiled = jax.jit(round, donate_argnums=(0, 1, 2, 3, 4, 5))  # the replay is written in place
    target = jax.tree.map(jnp.copy, params)
    everything: Any = (params, target, optimiser.init(params), jnp.array(0), replay, jnp.array(0), key)

    def work() -> float:
        nonlocal everything
        everything = jax.block_until_ready(compiled(*everything))
        return float(terms.updates)

    return work
