"""Any Gymnasium environment: ``gym/CartPole-v1``, ``gym/my_package:MyTask-v0``; N agents are independent learners."""

from __future__ import annotations

import difflib
import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from marl.config import suggestion
from marl.envs.base import EnvSpec, VectorEnv
from marl.envs.packing import generator_state, load_generator, pack, unpack
from marl.envs.workers import make_copies
from marl.types import State, UserError

CLASSIC = ("CartPole-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1")
"""What ``marl list`` shows; their state is saved exactly, since it is all in plain attributes."""

RETURNS = {"reset": ("observation", "info"), "step": ("observation", "reward", "terminated", "truncated", "info")}
"""What the methods of an environment return."""


class Keeper(NamedTuple):
    """How to save what an unwrapped environment holds beside its generator and its step count."""

    save: Callable[[Any], State]
    load: Callable[[Any, State], None]


OWN = Keeper(lambda world: pack(world.state_dict()), lambda world, state: world.load_state_dict(unpack(state)))
"""For an environment that has ``state_dict`` and ``load_state_dict``."""


def keeps_itself(world: Any) -> bool:
    """Whether ``OWN`` works for an unwrapped environment."""
    return hasattr(world, "state_dict") and hasattr(world, "load_state_dict")


class GymCopy:
    """One Gymnasium environment with ``Box`` observations (flattened) and ``Box`` or ``Discrete`` actions.

    Args:
        seed: of its generator.
        id: the full name, with the family.
        name: what Gymnasium calls it; ``module:ID`` imports the module first, which is to register the ID.
        options: keywords for ``gymnasium.make``; ``max_episode_steps`` changes the time limit.
        keeper: how its state is saved; None: by the environment's own ``state_dict`` and ``load_state_dict`` (numpy
            arrays and JSON values), or not at all where it has none.
        rules: for ``EnvSpec.rules``.

    Raises:
        UserError: for an unknown name, a module that cannot be imported, keywords it does not take, or spaces of other
            kinds; out of ``reset`` and ``step``, for other values than ``RETURNS``, an observation that is not of its
            space's size, or a reward that is not one number; for a ``reset`` that takes no seed.
    """

    def __init__(
        self, seed: int, id: str, name: str, options: Mapping[str, Any], keeper: Keeper | None, rules: str = ""
    ) -> None:
        self.env, self.limit = _make(id, name, options)
        world = self.env.unwrapped
        if keeper is None and keeps_itself(world):
            keeper = OWN
        self.keeper = keeper
        self.actions = ActionMap(self.env.action_space, id)
        self.spec = EnvSpec(
            id=id,
            agents=("agent",),
            obs_sizes=(box_size(self.env.observation_space, id),),
            action_sizes=(self.actions.size,),
            discrete=self.actions.discrete,
            max_steps=self.limit,
            exact_state=keeper is not None,
            rules=rules,
        )
        self.steps = 0
        begin(self.env, seed, id)

    def reset(self) -> list[np.ndarray]:
        self.steps = 0
        obs, _ = returned(self.spec.id, "reset", RETURNS, self.env.reset())
        return [self._flat(obs)]

    def step(self, action: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, bool]:
        answer = self.env.step(self.actions(action[0]))
        obs, reward, terminated, truncated, _ = returned(self.spec.id, "step", RETURNS, answer)
        self.steps += 1
        ended = bool(truncated) or (self.limit is not None and self.steps >= self.limit)
        earned = number(reward, f"{self.spec.id}: expected one number as the reward")
        return [self._flat(obs)], np.asarray([earned]), np.asarray([bool(terminated)]), ended

    def state_dict(self) -> State:
        assert self.keeper is not None, "its spec says that it cannot be saved"
        world = self.env.unwrapped
        return {
            "steps": self.steps,
            "generator": generator_state(world.np_random),
            "world": self.keeper.save(world),
        }

    def load_state_dict(self, state: State) -> None:
        assert self.keeper is not None, "its spec says that it cannot be saved"
        world = self.env.unwrapped
        self.env.reset()  # so that wrappers know that an episode is going on
        self.steps = state["steps"]
        load_generator(world.np_random, state["generator"])
        self.keeper.load(world, state["world"])

    def render(self) -> np.ndarray:
        if self.env.render_mode != "rgb_array":
            raise UserError(f"{self.spec.id} has no render mode 'rgb_array', so it cannot be drawn")
        return draw(self.spec.id, self.env.unwrapped, self.env.render)

    def close(self) -> None:
        self.env.close()

    def _flat(self, obs: Any) -> np.ndarray:
        return flat(obs, self.spec.obs_size, self.spec.id)


def returned(id: str, method: str, values: Mapping[str, Sequence[str]], answer: Any) -> Sequence[Any]:
    """What a method of an environment returned; raises ``UserError`` unless these are as many as its ``values``."""
    if isinstance(answer, tuple | list) and len(answer) == len(values[method]):
        return answer
    got = f"{len(answer)} values" if isinstance(answer, tuple | list) else f"a {type(answer).__name__}"
    raise UserError(f"{id}: expected {method} to return {', '.join(values[method])}, got {got}")


def draw(id: str, world: Any, render: Callable[[], Any]) -> np.ndarray:
    """The picture ``[height, width, 3]`` uint8 that ``render`` makes of ``world``, an unwrapped environment.

    Raises:
        UserError: MuJoCo has no OpenGL, which without a display it has with ``MUJOCO_GL=egl`` alone.
    """
    if not hasattr(world, "mujoco_renderer"):
        return np.asarray(render())
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # a viewer that was never whole fails to end as well
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GLFW says in its own words that there is no display
            return np.asarray(render())
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
    finally:
        sys.unraisablehook = hook
    raise UserError(f"{id} cannot be drawn; without a display set MUJOCO_GL=egl ({reason})")


class ActionMap:
    """From actions in [-1, 1] (or indices from 0) to those of a Gymnasium space; whole numbers are rounded to.

    Raises:
        UserError: for a space that is neither ``Discrete`` nor a bounded ``Box``.
    """

    def __init__(self, space: Any, id: str) -> None:
        spaces = _gymnasium().spaces
        self.discrete = isinstance(space, spaces.Discrete)
        if self.discrete:
            self.size, self.start = int(space.n), int(space.start)
        elif isinstance(space, spaces.Box) and space.is_bounded("both"):
            self.size, self.shape, self.dtype = int(np.prod(space.shape)), space.shape, space.dtype
            self.low, self.high = space.low.reshape(-1).astype(np.float64), space.high.reshape(-1).astype(np.float64)
            self.center, self.half = (self.high + self.low) / 2, (self.high - self.low) / 2  # -1, 1: left as they are
        else:
            raise UserError(f"{id}: expected Discrete or bounded Box actions, got {space}")

    def __call__(self, action: np.ndarray) -> Any:
        if self.discrete:
            return self.start + int(action)
        own = self.center + self.half * np.clip(action[: self.size], -1, 1)
        own = np.clip(own, self.low, self.high)  # which its rounding may have left
        if self.dtype.kind != "f":
            own = np.rint(own)
        return own.reshape(self.shape).astype(self.dtype)


def box_size(space: Any, id: str) -> int:
    """The number of components of a ``Box`` space; raises ``UserError`` for another one."""
    if not isinstance(space, _gymnasium().spaces.Box):
        raise UserError(f"{id}: expected Box observations, got {space}")
    return int(np.prod(space.shape))


def begin(env: Any, seed: int, id: str) -> None:
    """Seed an environment by its first ``reset``; raises ``UserError`` where that takes no seed."""
    try:
        env.reset(seed=seed)
    except TypeError as error:
        if "'seed'" not in str(error):
            raise
        raise UserError(f"{id}: expected reset to take a seed ({error})") from None


def flat(obs: Any, size: int, id: str) -> np.ndarray:
    """An observation as ``[size]``; raises ``UserError`` where it is not as many numbers as its space has."""
    row = _numbers(obs)
    if row is None or len(row) != size:
        raise UserError(f"{id}: expected an observation of {size} numbers, as its space has, got {_told(obs, row)}")
    return row


def number(reward: Any, expected: str) -> float:
    """A reward; raises ``UserError``, which begins with ``expected``, where it is not one number."""
    row = _numbers(reward)
    if row is None or len(row) != 1:
        raise UserError(f"{expected}, got {_told(reward, row)}")
    return float(row[0])


def _numbers(value: Any) -> np.ndarray | None:
    """``[size]``; None where it is anything but numbers."""
    try:
        row = np.asarray(value).reshape(-1)
    except ValueError:  # lists of unequal lengths
        return None
    return row if row.dtype.kind in "biuf" else None


def _told(value: Any, row: np.ndarray | None) -> str:
    if value is None or row is not None:
        return str(None if row is None else len(row))
    return f"a {type(value).__name__} that is no array of numbers"


def plain_state(world: Any) -> State:
    """Every attribute of an object that is a number, a flag, None, a numpy array or a tuple of numbers."""
    return {name: pack(_listed(value)) for name, value in vars(world).items() if _is_plain(value)}


def load_plain(world: Any, state: State) -> None:
    """The inverse of ``plain_state``; tuples stay tuples."""
    for name, value in state.items():
        value = unpack(value)
        setattr(world, name, tuple(value) if isinstance(value, list) else value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(v, int | float | np.number) for v in value)
    return value is None or isinstance(value, bool | int | float | np.number | np.ndarray)


def _listed(value: Any) -> Any:
    return [pack(v) for v in value] if isinstance(value, tuple) else value


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError:
        raise UserError("gym/* and mujoco/* need gymnasium: pip install gymnasium") from None
    return gymnasium


def _make(id: str, name: str, options: Mapping[str, Any]) -> tuple[Any, int | None]:
    """The environment without a time limit of its own, and the limit in steps that it should have."""
    gymnasium = _gymnasium()
    from gymnasium.envs.registration import load_env_creator

    options, name = dict(options), _imported(id, name)
    try:
        spec = gymnasium.spec(name)
        limit = options.pop("max_episode_steps", spec.max_episode_steps)
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
        if "rgb_array" in (getattr(creator, "metadata", None) or {}).get("render_modes", ()):
            options.setdefault("render_mode", "rgb_array")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # an older version is what was asked for
            env = gymnasium.make(name, max_episode_steps=-1, disable_env_checker=True, **options)
    except gymnasium.error.DependencyNotInstalled as error:
        raise UserError(f"{id}: {' '.join(str(error).split())}") from None
    except (gymnasium.error.Error, ImportError) as error:
        reason = " ".join(str(error).split())
        others = [known for known in gymnasium.registry if known != name]
        near = difflib.get_close_matches(name, others, n=1, cutoff=0.5)  # the registry is long
        raise UserError(f"no environment {id!r} ({reason}){suggestion(name, near)}") from None
    except TypeError as error:
        raise UserError(f"{id} does not take these keywords: {' '.join(str(error).split())}") from None
    check_limit(id, limit)
    return env, limit


def _imported(id: str, name: str) -> str:
    """The bare ID of ``module:ID``, once the module is imported; Gymnasium's own ``spec`` does neither."""
    module, colon, bare = name.rpartition(":")
    if colon:
        import_module(id, module)
    return bare


def import_module(id: str, module: str, hint: str = "") -> Any:
    """A module by its name; whatever its code raises is a ``UserError``, with ``hint`` if a part is not installed."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        hint = hint if isinstance(error, ImportError) else ""
        raise UserError(f"{id}: cannot import {module!r} ({reason}){hint}") from error


def check_limit(id: str, limit: Any) -> None:
    """Raise ``UserError`` unless ``limit``, the keyword ``max_episode_steps``, is a number of steps, or None."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise UserError(f"{id}: max_episode_steps is a positive number of steps, got {limit!r}")


class Gym:
    """``gym/ID``: every keyword of ``--env.X`` is handed to ``gymnasium.make``; N agents are N independent learners."""

    options: type | None = None

    def names(self) -> Sequence[str]:
        return CLASSIC

    def make(
        self, name: str, *, seeds: Sequence[int], copies: int, agents: int | None, workers: int, options: Any
    ) -> VectorEnv:
        keeper = Keeper(plain_state, load_plain) if name in CLASSIC else None
        build = functools.partial(GymCopy, id=f"gym/{name}", name=name, options=options, keeper=keeper)
        return make_copies(build, seeds=seeds, copies=copies, learners=learners(f"gym/{name}", agents), workers=workers)


def learners(id: str, agents: int | None) -> int:
    """How many independent learners ``agents`` asks for; raises ``UserError`` unless that is positive."""
    if agents is not None and agents < 1:
        raise UserError(f"{id}: the number of agents must be at least 1, got {agents}")
    return agents or 1


FAMILY = Gym()
