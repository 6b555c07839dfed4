"""What a run is made from: names, settings and members; what ``config.json`` holds."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marl import config as cfg
from marl import population, registry
from marl.algos.common import Learner
from marl.checkpoint import Checkpoints
from marl.config import LoopConfig
from marl.envs import all_options, evaluation_options, make_env
from marl.envs.base import EnvSpec, VectorEnv
from marl.modules.teachers import Teacher
from marl.runfolder import read_training
from marl.streams import derive
from marl.types import UserError


@dataclass(frozen=True)
class Recipe:
    """All that a run is made from; written to ``config.json``.

    Attributes:
        algorithm, environment: names.
        config: the algorithm's settings, an instance of its ``Config``.
        loop: the loop's settings.
        env: the environment's options.
        members: the population.
        init: where its networks start from, as ``marl.sources.origin`` says it; None: from random ones.
        teachers: frozen policies to learn from, as ``marl.sources.teachers`` says each.
    """

    algorithm: str
    environment: str
    config: Any
    loop: LoopConfig
    env: Mapping[str, Any]
    members: Sequence[population.Member]
    init: Mapping[str, Any] | None = None
    teachers: Sequence[Mapping[str, Any]] = ()

    def make_env(self, copies: int, workers: int = 0, purpose: str = "train") -> VectorEnv:
        """The environment with random streams of its own for each purpose."""
        seeds = [derive(seed, purpose) for seed in self.seeds]
        options = evaluation_options(self.environment, self.env) if purpose == "eval" else self.env
        return make_env(
            self.environment, seeds=seeds, copies=copies, agents=self.loop.agents, workers=workers, options=options
        )

    def spec(self) -> EnvSpec:
        """The environment's, which is made and closed to look."""
        with contextlib.closing(self.make_env(copies=1)) as env:
            return env.spec

    def make_learner(self, spec: EnvSpec) -> Learner:
        """The untrained population; its teachers know nothing yet."""
        configs = population.configs(self.config, self.members)
        more = {"teachers": [Teacher.of(record) for record in self.teachers]} if self.teachers else {}
        learner: Learner = registry.algorithm(self.algorithm)(spec, configs, self.seeds, **more)
        return learner

    @property
    def seeds(self) -> list[int]:
        return [member.seed for member in self.members]

    def check(self) -> None:
        """Raise ``UserError`` for a number that makes no sense."""
        for config in (self.loop, *population.configs(self.config, self.members)):
            cfg.check_ranges(config)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": 1,
            "algorithm": self.algorithm,
            "environment": self.environment,
            "members": [member._asdict() for member in self.members],
            "env": dict(self.env),
            "config": cfg.to_json(self.config),
            "loop": cfg.to_json(self.loop),
            **({} if self.init is None else {"init": dict(self.init)}),
            **({"teachers": [dict(record) for record in self.teachers]} if self.teachers else {}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of ``to_json``; raises ``UserError`` for a damaged file or one of another version."""
        if values.get("format") != 1:
            raise UserError(f"config.json: expected format 1, got {values.get('format')!r}")
        with explain("config.json is damaged"):
            recipe = cls(
                values["algorithm"],
                values["environment"],
                cfg.from_json(registry.algorithm(values["algorithm"]).Config, values["config"]),
                cfg.from_json(LoopConfig, values["loop"]),
                dict(values["env"]),
                [population.Member(**member) for member in values["members"]],
                values.get("init"),
                values.get("teachers", []),
            )
            recipe.check()
        return recipe


def recipe_of(folder: Path) -> Recipe:
    """What a run was made from; raises ``UserError`` where there is none, or its ``config.json`` cannot be read."""
    values = read_training(folder)
    try:
        return Recipe.from_json(values)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def make_recipe(
    algorithm: str,
    environment: str,
    seeds: Sequence[int],
    sweep: Mapping[str, Sequence[Any]],
    env: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Recipe:
    """A recipe from names and settings of the loop or the algorithm; raises ``UserError`` for what does not exist."""
    config, loop = registry.algorithm(algorithm).Config(), LoopConfig()
    loop_names = {field.name for field in dataclasses.fields(LoopConfig)}
    for name, value in settings.items():
        if name in loop_names:
            loop = cfg.replace(loop, name, value)
        else:
            config = cfg.replace(config, name, value)
    members = population.members(config, seeds, sweep)
    recipe = Recipe(algorithm, environment, config, loop, all_options(environment, env), members)
    recipe.check()
    return recipe


def load_learner(folder: Path, recipe: Recipe, spec: EnvSpec) -> tuple[int, Learner]:
    """The step of the newest checkpoint and its population."""
    loaded = Checkpoints.of(folder).load(replay=False)
    learner = recipe.make_learner(spec)
    with explain(f"{folder}: the checkpoint of step {loaded.step} is not of this run"):
        learner.load_state_dict(loaded.state["learner"])
    return loaded.step, learner


@contextlib.contextmanager
def explain(what: str) -> Iterator[None]:
    """Turn whatever content of the wrong shape leads to into a ``UserError`` of one line."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{what}: {reason}") from None
