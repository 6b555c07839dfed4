"""The ``--env.X`` settings of the MPE family, and which scenario knows which of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from marl.config import option, suggestion
from marl.types import UserError


@dataclass(frozen=True)
class MpeOptions:
    """Options of mpe2 have mpe2's meaning; None stands for mpe2's own default."""

    continuous: bool = option(True, "Actions are vectors in [-1, 1], mapped to mpe2's [0, 1]; no: an index.")
    max_cycles: int = option(25, "Steps per episode, after which it is truncated (100 in the paper's code).")
    dynamics: Literal["mpe2", "openai"] = option(
        "mpe2", "Rules of the game: mpe2 (= PettingZoo v3), or openai, the original of the MADDPG and MAPPO papers."
    )
    engine: Literal["batched", "mpe2"] = option(
        "batched", "batched: all copies in one tensor program, where the scenario has one; mpe2: the package itself."
    )
    dtype: Literal["float32", "float64"] = option("float32", "Arithmetic inside the batched engine.")
    local_ratio: float | None = option(None, "Weight of an agent's own reward against the team's (mpe2: 0.5).")
    dynamic_rescaling: bool = option(True, "Pictures: bodies shrink as the camera zooms out.")
    num_agent_neighbors: int | None = option(None, "Observe the nearest n agents only, nearest first.")
    num_landmark_neighbors: int | None = option(None, "Observe the nearest n landmarks only, nearest first.")
    curriculum: bool = option(False, "Easier rules by stage: spread without collisions' penalty, tag with slow prey.")
    curriculum_stage: int = option(0, "Stage of the curriculum (spread 0 to 1, tag 0 to 2; the last is the full game).")
    terminate_on_success: bool = option(False, "End the episode as soon as the team has reached its aim.")
    num_good: int | None = option(None, "Prey in tag (mpe2: 1) and world_comm (mpe2: 2).")
    num_obstacles: int | None = option(None, "Obstacles in tag (mpe2: 2) and world_comm (mpe2: 1).")
    num_food: int | None = option(None, "Food in world_comm (mpe2: 2).")
    num_forests: int | None = option(None, "Forests in world_comm (mpe2: 2).")
    num_deposits: int | None = option(None, "Deposits in collect_treasure (mpe2: 2).")
    num_treasures: int | None = option(None, "Treasures in collect_treasure (mpe2: 6).")
    prey: Literal["random", "heuristic", "checkpoint"] = option(
        "random", "How the prey of tag acts; heuristic: it flees the nearest predator."
    )
    prey_policy: str = option("", "Path of the safetensors file that holds the prey's actor (prey = checkpoint).")


BATCHED: dict[str, tuple[str, ...]] = {
    "simple_spread_v3": (
        *("local_ratio", "curriculum", "curriculum_stage", "terminate_on_success"),
        *("num_agent_neighbors", "num_landmark_neighbors"),
    ),
    "simple_tag_v3": (
        *("num_good", "num_obstacles", "curriculum", "curriculum_stage", "terminate_on_success"),
        *("num_agent_neighbors", "num_landmark_neighbors", "prey", "prey_policy"),
    ),
    "simple_adversary_v3": ("num_agent_neighbors", "num_landmark_neighbors"),
    "simple_push_v3": (),
    "simple_speaker_listener_v4": (),
    "simple_reference_v3": ("local_ratio",),
    "spread_assigned": ("num_agent_neighbors", "num_landmark_neighbors"),
}
"""The scenarios of the batched engine, each with the options that it has besides those that all have."""

SCENARIOS = BATCHED | {
    "simple_v3": (),
    "simple_crypto_v3": (),
    "simple_world_comm_v3": ("num_good", "num_obstacles", "num_food", "num_forests"),
    "collect_treasure_v1": ("num_deposits", "num_treasures"),
    "simple_formation_v1": ("terminate_on_success",),
    "simple_line_v1": ("terminate_on_success",),
}

COMMON = ("continuous", "max_cycles", "dynamics", "engine", "dtype", "dynamic_rescaling")


def check(name: str, options: MpeOptions, agents: int | None) -> None:
    """Raise ``UserError`` for a scenario that does not exist, or options or agents that it does not have."""
    if name not in SCENARIOS:
        raise UserError(f"no environment mpe/{name}{suggestion(name, SCENARIOS)}")
    for field in dataclasses.fields(options):
        if field.name not in (*COMMON, *SCENARIOS[name]) and getattr(options, field.name) != field.default:
            raise UserError(
                f"mpe/{name} has no option {field.name!r}{suggestion(field.name, (*COMMON, *SCENARIOS[name]))}"
            )
    if agents is not None and agents < 1:
        raise UserError(f"mpe/{name}: expected at least 1 agent, got {agents}")
    _at_least(options, 1, "max_cycles", "num_agent_neighbors", "num_landmark_neighbors", "num_good", "num_deposits")
    _at_least(options, 1, "num_treasures", "num_food")
    _at_least(options, 0, "num_obstacles", "num_forests", "curriculum_stage")
    if options.local_ratio is not None and not 0 <= options.local_ratio <= 1:
        raise UserError(f"local_ratio: expected a number from 0 to 1, got {options.local_ratio}")
    last = 1 if name == "simple_spread_v3" else 2
    if options.curriculum_stage > last:
        raise UserError(f"curriculum_stage: expected 0 to {last} in mpe/{name}, got {options.curriculum_stage}")
    if options.dynamics == "openai":
        if name not in BATCHED or options.engine == "mpe2":
            raise UserError(f"dynamics=openai needs the batched engine, which has {', '.join(BATCHED)}; got mpe/{name}")
        if options.local_ratio is not None:
            raise UserError("local_ratio belongs to dynamics=mpe2; in openai's rules a team earns the sum over agents")
    if name == "spread_assigned" and options.engine == "mpe2":
        raise UserError("mpe/spread_assigned is not part of mpe2; choose engine=batched")
    if (options.prey == "checkpoint") != bool(options.prey_policy):
        raise UserError("prey=checkpoint and prey_policy=FILE are given together or not at all")


def _at_least(options: MpeOptions, low: int, *names: str) -> None:
    for name in names:
        value: Any = getattr(options, name)
        if value is not None and value < low:
            raise UserError(f"{name}: expected at least {low}, got {value}")
