"""BenchMARL's MADDPG, MAPPO and QMIX with policy reciprocity; importing this file makes them known to BenchMARL.

Each is BenchMARL's own algorithm whose loss, which is TorchRL's, bootstraps from blended values.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import benchmarl
from benchmarl.algorithms import (
    Algorithm,
    AlgorithmConfig,
    Maddpg,
    MaddpgConfig,
    Mappo,
    MappoConfig,
    Qmix,
    QmixConfig,
    algorithm_config_registry,
)
from hydra.core.config_store import ConfigStore
from hydra.errors import CompactHydraException
from torchrl.objectives import LossModule

from marl.reciprocity import Reciprocal, UserError
from marl.swap.torchrl import blend_targets


class Refused(UserError, CompactHydraException):
    """A setting that cannot be; Hydra prints it without a traceback."""


@dataclass
class Settings(AlgorithmConfig):
    """What the algorithms below take beyond BenchMARL's own settings; see ``marl.reciprocity.Reciprocal``."""

    host: ClassVar[str]
    kappa: float = 0.5
    graph: str = "complete"
    neighbours: int = 2
    adjacency: str = "resample"
    rho: list[int] = field(default_factory=lambda: [1])
    count: int = 1
    sigma: float = 0.02
    metric: str = "euclidean"

    @classmethod
    def get_from_yaml(cls, path: str | None = None) -> Any:
        """As BenchMARL's own; without a path, its defaults for the algorithm without reciprocity."""
        folder = Path(benchmarl.__file__).parent / "conf" / "algorithm"
        return super().get_from_yaml(path or str(folder / f"{cls.host}.yaml"))


class WithReciprocity(Algorithm):
    """One of BenchMARL's algorithms whose losses blend their targets, each among the agents of its group."""

    def __init__(self, **settings: Any) -> None:
        self.reciprocity = {each.name: settings.pop(each.name) for each in fields(Settings)}
        super().__init__(**settings)

    def _get_loss(self, group: str, policy_for_loss: Any, continuous: bool) -> tuple[LossModule, bool]:
        loss, delayed = super()._get_loss(group, policy_for_loss, continuous)
        blend_targets(loss, self.reciprocal(group))
        return loss, delayed

    def reciprocal(self, group: str) -> Reciprocal:
        if self.has_rnn:
            raise Refused("model: recurrent networks do not go with reciprocity here, choose layers/mlp")
        if self.state_spec is not None and self.has_centralized_critic:
            raise Refused("task: critics of a global state do not go with reciprocity here, choose reciprocal_qmix")
        try:
            return Reciprocal(len(self.group_map[group]), **self.reciprocity)
        except UserError as error:
            raise Refused(str(error)) from None


class ReciprocalMaddpg(WithReciprocity, Maddpg): ...


class ReciprocalMappo(WithReciprocity, Mappo): ...


class ReciprocalQmix(WithReciprocity, Qmix): ...


@dataclass
class ReciprocalMaddpgConfig(Settings, MaddpgConfig):
    host = "maddpg"

    @staticmethod
    def associated_class() -> type[Maddpg]:
        return ReciprocalMaddpg


@dataclass
class ReciprocalMappoConfig(Settings, MappoConfig):
    host = "mappo"

    @staticmethod
    def associated_class() -> type[Mappo]:
        return ReciprocalMappo


@dataclass
class ReciprocalQmixConfig(Settings, QmixConfig):
    host = "qmix"

    @staticmethod
    def associated_class() -> type[Qmix]:
        return ReciprocalQmix


for config in (ReciprocalMaddpgConfig, ReciprocalMappoConfig, ReciprocalQmixConfig):
    algorithm_config_registry[f"reciprocal_{config.host}"] = config
    ConfigStore.instance().store(f"reciprocal_{config.host}", config.get_from_yaml(), "algorithm")
