"""Gymnasium's MuJoCo tasks: ``mujoco/Hopper-v5``. ``agents=N`` gives N learners, each in copies of its own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from marl.config import suggestion
from marl.envs.base import VectorEnv
from marl.envs.gym import GymCopy, Keeper, import_module, learners, load_plain, plain_state
from marl.envs.workers import make_copies
from marl.types import State, UserError

TASKS = (
    *("Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v4", "HalfCheetah-v4", "Hopper-v4", "Walker2d-v4"),
    *("Humanoid-v5", "HumanoidStandup-v5", "Swimmer-v5", "Reacher-v5", "Pusher-v5"),
    *("InvertedPendulum-v5", "InvertedDoublePendulum-v5"),
)


SCRATCH = ("_", "maxuse", "plugin_data", "iLD", "iM", "map_", "dof_island", "tree_island", "tendon_efcadr")
"""How the names of ``MjData``'s attributes begin that are no part of its state; not even a reset clears them."""


def _arrays(data: Any) -> dict[str, list[str]]:
    """The arrays of an ``MjData`` that every moment has, by kind of number.

    Those of contacts, constraints and their islands are left out: a step computes them anew before it reads them, and
    until then they have no entries, or what the memory happened to hold (``SCRATCH``).
    """
    import mujoco

    new = mujoco.MjData(data.model)
    kinds: dict[str, list[str]] = {"floats": [], "integers": []}
    for name in sorted(dir(new)):
        value = None if name.startswith(SCRATCH) else getattr(new, name)
        if isinstance(value, np.ndarray) and value.size:
            kinds["floats" if value.dtype.kind == "f" else "integers"].append(name)
    return kinds


def save_world(world: Any) -> State:
    """Everything that the next observations *and rewards* read.

    The integration state alone (``mj_getState``) would not do: rewards compare positions before and after a step and
    read contact forces, which are left from the step before.
    """
    data = world.data
    kinds = {
        kind: np.concatenate([getattr(data, name).ravel() for name in names]) for kind, names in _arrays(data).items()
    }
    return {
        "time": data.time,
        "floats": torch.from_numpy(kinds["floats"]),
        "integers": torch.from_numpy(kinds["integers"].astype(np.int64)),
        "attributes": plain_state(world),
    }


def load_world(world: Any, state: State) -> None:
    """The inverse of ``save_world``, into an environment of the same task and options."""
    data = world.data
    for kind, names in _arrays(data).items():
        arrays, saved = [getattr(data, name) for name in names], state[kind].numpy()
        ends = np.cumsum([array.size for array in arrays])
        if ends[-1] != len(saved):
            raise UserError(f"this MuJoCo state has {len(saved)} {kind} where this environment has {ends[-1]}")
        for array, values in zip(arrays, np.split(saved, ends[:-1]), strict=True):
            array[...] = values.reshape(array.shape)
    data.time = state["time"]
    load_plain(world, state["attributes"])


class MuJoCo:
    """``mujoco/ID``; every keyword of ``--env.X`` is handed to ``gymnasium.make``."""

    options: type | None = None

    def names(self) -> Sequence[str]:
        return TASKS

    def make(
        self, name: str, *, seeds: Sequence[int], copies: int, agents: int | None, workers: int, options: Any
    ) -> VectorEnv:
        hint = "; pip install 'gymnasium[mujoco]' mujoco imageio"
        gymnasium, mujoco = (import_module(f"mujoco/{name}", module, hint) for module in ("gymnasium", "mujoco"))
        known = [key for key, spec in gymnasium.registry.items() if "envs.mujoco" in str(spec.entry_point)]
        if name not in known:
            raise UserError(f"no environment 'mujoco/{name}'{suggestion(name, known)}")
        build = functools.partial(
            GymCopy,
            id=f"mujoco/{name}",
            name=name,
            options=options,
            keeper=Keeper(save_world, load_world),
            rules=f"MuJoCo {mujoco.__version__}",
        )
        group = learners(f"mujoco/{name}", agents)
        return make_copies(build, seeds=seeds, copies=copies, learners=group, workers=workers)


FAMILY = MuJoCo()
