"""Names of algorithms and environment families, each imported only when asked for."""

from __future__ import annotations

import importlib
from typing import Any

from marl.config import suggestion
from marl.types import UserError

ALGORITHMS: dict[str, str] = {
    "ddpg": "marl.algos.ddpg:DDPG",
    "td3": "marl.algos.td3:TD3",
    "maddpg": "marl.algos.maddpg:MADDPG",
    "qmix": "marl.algos.qmix:QMIX",
    "mappo": "marl.algos.mappo:MAPPO",
    "maptf": "marl.algos.maptf:MAPTF",
    "maptf-mappo": "marl.algos.maptf_mappo:MAPTFMAPPO",
    "dvm": "marl.algos.dvm:DVM",
    "dqn": "marl.algos.dqn:DQN",
}
"""Name -> ``"module:Class"`` of a learner. Add your own before calling ``marl.train``."""

ENVIRONMENTS: dict[str, str] = {
    "mpe": "marl.envs.mpe:FAMILY",
    "mujoco": "marl.envs.mujoco:FAMILY",
    "mamujoco": "marl.envs.mamujoco:FAMILY",
    "gym": "marl.envs.gym:FAMILY",
    "pettingzoo": "marl.envs.pettingzoo:FAMILY",
    "probe": "marl.envs.probes:FAMILY",
    "smax": "marl.envs.smax:FAMILY",
    "smac": "marl.envs.smac:FAMILY",
    "small": "marl.envs.small:FAMILY",
    "minatar": "marl.envs.minatar:FAMILY",
    "atari": "marl.envs.atari:FAMILY",
}
"""Family (the part of an environment's id before the slash) -> ``"module:object"`` of an ``EnvFamily``."""


def entries(algorithm: str, environment: str, engine: str) -> tuple[str, str]:
    """Where an algorithm and an environment's family are, for the workers of an engine that may not know them.

    Raises ``UserError`` for one that is defined in the script itself, which workers of ``ray`` cannot import.
    """
    found = ALGORITHMS[algorithm], ENVIRONMENTS[environment.partition("/")[0]]
    for entry in found:
        if engine == "ray" and entry.startswith("__main__:"):
            raise UserError(
                f"engine ray: {entry} is in the script itself; put it in a module that the workers can import"
            )
    return found


def load(entry: str) -> Any:
    """The object that ``"module:name"`` points to; raises ``UserError`` where there is none."""
    module, _, name = entry.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"registry: expected 'module:name' of something to import, got {entry!r} ({error})") from error


def algorithm(name: str) -> Any:
    """The learner class of that name; raises ``UserError`` with the nearest valid name."""
    if name not in ALGORITHMS:
        raise UserError(f"no algorithm {name!r}{suggestion(name, ALGORITHMS)}")
    return load(ALGORITHMS[name])


def family(name: str) -> Any:
    """The environment family of that name; raises ``UserError`` with the nearest valid name."""
    if name not in ENVIRONMENTS:
        raise UserError(f"no environment family {name!r}{suggestion(name, ENVIRONMENTS)}")
    return load(ENVIRONMENTS[name])
