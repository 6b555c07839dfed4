"""The JAX side: one map as two compiled programs, ``begin`` and ``advance``, for the E copies of one member at once.

XLA's rounding depends on how wide a program is: with all P * E copies in one program a member would differ in its last
bits from the run of that member alone. So members share the program, and JAX runs their calls side by side.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from tqdm import tqdm

from marl.envs.smax.options import SmaxOptions
from marl.types import UserError

Array: TypeAlias = Any
"""A ``jax.Array``; JAX is no requirement of this package, so its types cannot be named."""

MISSING = "smax/* needs JaxMARL, on Python 3.11 or newer: pip install -c constraints.txt -e '.[smax]'"


class Moment(NamedTuple):
    """All that the next steps depend on; every array leads with E.

    Attributes:
        key: ``[E, 2]`` uint32, each copy's own random key.
        world: JaxMARL's state, a tree of arrays.
        time: ``[E]`` int32, steps since the battle began.
    """

    key: Array
    world: Any
    time: Array


class Seen(NamedTuple):
    """``obs [N, E, D]`` float32, ``avail [N, E, A]`` bool, ``state [E, S]`` float32."""

    obs: Array
    avail: Array
    state: Array


class Outcome(NamedTuple):
    """What a step leaves behind; ``next`` is the true successor, ``now`` differs from it where a battle ended.

    ``reward [N, E]`` float32, ``terminated`` and ``done [E]`` bool, ``outcome [E, 2]`` float32: won, dead allies.
    """

    now: Seen
    next: Seen
    reward: Array
    terminated: Array
    done: Array
    outcome: Array


class Programs(NamedTuple):
    """Compiled for one map, its options and E.

    Attributes:
        begin: keys ``[E, 2]`` to the first moment of new battles, and what is seen then.
        advance: a moment and actions ``[N, E]`` int32 to the next moment and the outcome; ended battles restart.
        layout: a ``Moment`` whose leaves have a shape and a dtype only.
    """

    begin: Callable[[Array], tuple[Moment, Seen]]
    advance: Callable[[Moment, Array], tuple[Moment, Outcome]]
    layout: Moment


def jax_module() -> Any:
    """JAX, told to stay on the CPU and to keep what it compiles, unless the user has told it otherwise."""
    try:
        import jax
    except ImportError:
        raise UserError(MISSING) from None
    if jax.config.jax_platforms is None:
        jax.config.update("jax_platforms", "cpu")
    if jax.config.jax_compilation_cache_dir is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "marl" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if jax.default_backend() != "cpu":
        raise UserError(f"smax/* steps on the CPU, JAX on {jax.default_backend()}: set JAX_PLATFORMS=cpu")
    return jax


@functools.cache
def game(name: str, options: SmaxOptions) -> Any:
    """JaxMARL's ``HeuristicEnemySMAX`` of that map; raises ``UserError`` where JaxMARL is missing."""
    jax_module()
    try:
        with silent():
            from jaxmarl.environments.smax import HeuristicEnemySMAX, map_name_to_scenario
    except ImportError:
        raise UserError(MISSING) from None
    rules = {"see_enemy_actions": options.see_enemy_actions, "walls_cause_death": options.walls_cause_death}
    return HeuristicEnemySMAX(scenario=map_name_to_scenario(name), **rules)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """JaxMARL prints when it is imported, and sets ``sys.stdout`` and ``sys.stderr`` to Python's original ones."""
    before = sys.stdout, sys.stderr, sys.__stdout__
    sys.stdout = sys.__stdout__ = io.StringIO()  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        sys.stdout, sys.stderr, sys.__stdout__ = before  # type: ignore[misc]


def max_steps(name: str, options: SmaxOptions) -> int:
    """The time limit in steps."""
    return game(name, options).max_steps if options.max_steps is None else options.max_steps


@functools.cache
def programs(name: str, options: SmaxOptions, copies: int) -> Programs:
    """Trace and compile; says so on stderr, since it takes a while."""
    jax, env = jax_module(), game(name, options)
    jnp, limit = jax.numpy, max_steps(name, options)
    agents, allies = env.agents, env.num_allies

    def see(obs: dict[str, Array], world: Any) -> Seen:
        avail = env.get_avail_actions(world)
        return Seen(
            jnp.stack([obs[agent] for agent in agents]),
            jnp.stack([avail[agent] for agent in agents]).astype(bool),
            scaled(obs["world_state"]),
        )

    def scaled(state: Array) -> Array:
        """JaxMARL's global state with numbers of size 1: positions in map sizes, weapons not ready or ready (0)."""
        count, width = allies + env.num_enemies, len(env.own_features)
        units = state[: count * width].reshape(count, width)
        units = units.at[:, 1:3].divide(jnp.array([env.map_width, env.map_height]))
        units = units.at[:, 3].set(jnp.maximum(units[:, 3], 0.0))  # JaxMARL counts on below 0
        return jnp.concatenate([units.reshape(-1), state[count * width :]])

    def begin_one(key: Array) -> tuple[Moment, Seen]:
        key, now = jax.random.split(key)
        obs, world = env.reset(now)
        return Moment(key, world, jnp.int32(0)), see(obs, world)

    def step_one(moment: Moment, action: Array) -> tuple[Moment, Seen, Array]:
        key, now = jax.random.split(moment.key)
        chosen = {agent: action[i] for i, agent in enumerate(agents)}
        obs, world, reward, _, _ = env.step_env(now, moment.world, chosen)
        rewards = jnp.stack([reward[agent] for agent in agents])
        return Moment(key, world, moment.time + 1), see(obs, world), rewards

    def fold(seen: Seen) -> Seen:
        return Seen(seen.obs.swapaxes(0, 1), seen.avail.swapaxes(0, 1), seen.state)

    def plain(tree: Any) -> Any:
        """Without JAX's weak types, so that what a program returns is what it takes."""
        return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)

    def begin(key: Array) -> tuple[Moment, Seen]:
        moment, seen = jax.vmap(begin_one)(key)
        return plain(moment), fold(seen)

    def advance(moment: Moment, action: Array) -> tuple[Moment, Outcome]:
        after, seen, reward = jax.vmap(step_one)(moment, action.T)
        after = plain(after)
        alive = after.world.state.unit_alive
        survivors, enemies = alive[:, :allies].sum(1), alive[:, allies:].sum(1)
        terminated = (survivors == 0) | (enemies == 0)
        done = terminated | (after.time >= limit)
        won = (enemies == 0) & (survivors > 0)

        def restart(old: tuple[Moment, Seen]) -> tuple[Moment, Seen]:
            new_moment, new_seen = jax.vmap(begin_one)(old[0].key)
            new = plain(new_moment), new_seen
            return jax.tree.map(lambda a, b: jnp.where(done.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)

        now = jax.lax.cond(done.any(), restart, lambda old: old, (after, seen))
        outcome = jnp.stack([won, allies - survivors], -1).astype(jnp.float32)
        return now[0], Outcome(fold(now[1]), fold(seen), reward.T, terminated, done, outcome)

    line = f"compiling smax/{name} for {copies} copies (seconds to minutes; cached for the next run)"
    tqdm.write(line, file=sys.stderr)
    keys = jax.ShapeDtypeStruct((copies, 2), jnp.uint32)
    action = jax.ShapeDtypeStruct((len(agents), copies), jnp.int32)
    layout = jax.eval_shape(begin, keys)[0]
    return Programs(
        jax.jit(begin).lower(keys).compile(), jax.jit(advance).lower(layout, action).compile(), layout=layout
    )
