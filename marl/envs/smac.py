"""The StarCraft multi-agent challenge as its authors wrote it: ``smac/3m`` drives ``smac.env.StarCraft2Env``.

Samvelyan et al., "The StarCraft Multi-Agent Challenge", arXiv 1902.04043. It needs three things that no package index
holds: the package (from its repository), the game, and the maps. ``missing`` finds out which of them is not there.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marl.config import suggestion
from marl.envs.base import EnvSpec, VectorEnv, with_agents
from marl.envs.copies import Dead
from marl.envs.workers import make_copies
from marl.types import State, UserError

MAPS = (
    *("3m", "8m", "25m", "5m_vs_6m", "8m_vs_9m", "10m_vs_11m", "27m_vs_30m", "MMM", "MMM2", "2s3z", "3s5z"),
    *("3s5z_vs_3s6z", "3s_vs_3z", "3s_vs_4z", "3s_vs_5z", "1c3s5z", "2m_vs_1z", "corridor", "6h_vs_8z"),
    *("2s_vs_1sc", "so_many_baneling", "bane_vs_bane", "2c_vs_64zg"),
)
"""SMAC's own 23. Another one is accepted once its file lies among the maps and SMAC's registry knows it."""

TIMEOUT = 300.0
"""Seconds that one step may take: the game is launched within the first one, and again within one where it failed."""

BUILDS = {"69232": "4.6.2", "75689": "4.10"}
"""The game's releases by the number of their build, the two on which results were published."""

DEFAULTS = {"Darwin": "/Applications/StarCraft II", "Windows": "C:/Program Files (x86)/StarCraft II"}
"""Where the game lies if SC2PATH does not say; elsewhere ``~/StarCraftII``."""

INSTALL = "pip install git+https://github.com/oxwhirl/smac.git"
GAME = (
    "curl -LO https://blzdistsc2-a.akamaihd.net/Linux/SC2.4.10.zip",
    "unzip -P iagreetotheeula SC2.4.10.zip -d ~   # the password says that you agree to Blizzard's licence",
    "export SC2PATH=~/StarCraftII",
)
MAPS_ZIP = (
    "curl -LO https://github.com/oxwhirl/smac/releases/download/v0.1-beta1/SMAC_Maps.zip",
    'unzip SMAC_Maps.zip -d "${SC2PATH:-$HOME/StarCraftII}/Maps"',
)


class Need(NamedTuple):
    """Something that ``smac/*`` misses on this machine: one line, and the commands that mend it in order."""

    what: str
    commands: tuple[str, ...]


def missing() -> list[Need]:
    """What ``smac/*`` still needs here, in the order of mending; nothing is imported."""
    return [need for need in (wrong_package() or _no_package(), _no_game(), _no_maps()) if need]


def wrong_package() -> Need | None:
    """If the module ``smac`` here is the hyper-parameter optimiser of that name, which pip installs for ``smac``."""
    if _found() is not False:
        return None
    try:
        name = f"smac {importlib.metadata.version('smac')}"
    except importlib.metadata.PackageNotFoundError:
        name = "the module 'smac'"
    return Need(
        f"{name} here is not StarCraft's but another one (PyPI's smac is a hyper-parameter optimiser)",
        ("pip uninstall smac", INSTALL),
    )


def _no_package() -> Need | None:
    if _found() is None:
        return Need("SMAC is not installed; it comes from its repository, not from PyPI", (INSTALL,))
    return None


def _no_game() -> Need | None:
    if (game_folder() / "Versions").is_dir():
        return None
    said = "SC2PATH says so" if "SC2PATH" in os.environ else "SC2PATH is not set"
    return Need(f"StarCraft II is not in {game_folder()} ({said})", GAME)


def _no_maps() -> Need | None:
    if _maps().is_dir():
        return None
    return Need(f"the maps are not in {_maps()}", MAPS_ZIP)


def _found() -> bool | None:
    """Whether the module ``smac`` is the one of StarCraft; None: there is none."""
    spec = importlib.util.find_spec("smac")
    if spec is None:
        return None
    return any((Path(place) / "env" / "starcraft2").is_dir() for place in spec.submodule_search_locations or ())


def game_folder() -> Path:
    """Where the game is expected."""
    return Path(os.environ.get("SC2PATH") or DEFAULTS.get(platform.system(), "~/StarCraftII")).expanduser()


def _maps() -> Path:
    return game_folder() / "Maps" / "SMAC_Maps"


def game_version() -> str:
    """The newest release in the game's folder, which is the one that is launched; empty where there is none."""
    builds = [f.name.removeprefix("Base") for f in (game_folder() / "Versions").glob("Base*")]
    newest = max((build for build in builds if build.isdigit()), key=int, default="")
    return BUILDS.get(newest, newest and f"build {newest}")


class SmacCopy:
    """One game. Observations are of one width; the reward is the team's, given to every agent.

    A dead agent stays until the battle ends, observes zeros and may take action 0 alone, which the living may not. An
    action that is not available is replaced by the agent's first one that is, where SMAC itself would raise. At the
    time limit an episode is truncated, and nobody has won.

    Args:
        seed: of the game.
        id: the full name, with the family.
        name: of the map.
        options: keywords for ``StarCraft2Env``.
        folder: where the game is; what SC2PATH says in a worker process may be older.
        rules: for ``EnvSpec.rules``.

    Raises:
        UserError: if SMAC cannot be imported, or does not take the keywords.
        Dead: out of ``step``, if the game failed.
    """

    def __init__(self, seed: int, id: str, name: str, options: Mapping[str, Any], folder: str, rules: str) -> None:
        os.environ["SC2PATH"] = folder
        try:
            from smac.env import StarCraft2Env
        except Exception as error:  # of all kinds: protobuf's mismatches with pysc2 are TypeErrors
            reason = " ".join(str(error).split())
            raise UserError(f"{id}: cannot import smac.env.StarCraft2Env ({reason}); {INSTALL}") from None
        try:
            # without continuing_episode SMAC does not tell a time limit from a battle's end
            self.env = StarCraft2Env(map_name=name, seed=seed, continuing_episode=True, **options)
        except TypeError as error:
            raise UserError(f"{id} does not take these keywords: {' '.join(str(error).split())}") from None
        info = self.env.get_env_info()
        n = int(info["n_agents"])
        self.spec = EnvSpec(
            id=id,
            agents=tuple(f"agent_{i}" for i in range(n)),
            obs_sizes=(int(info["obs_shape"]),) * n,
            action_sizes=(int(info["n_actions"]),) * n,
            discrete=True,
            max_steps=int(info["episode_limit"]),
            exact_state=False,
            rules=rules,
            state_size=int(info["state_shape"]),
            masked=True,
            outcomes=("win_rate", "dead_agents"),
        )
        self.won = False

    def reset(self) -> list[np.ndarray]:
        self.env.reset()
        return self._look()

    def step(self, action: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, bool]:
        chosen = [int(a) if able[a] else int(able.argmax()) for a, able in zip(action, self._avail, strict=True)]
        reward, ended, info = self.env.step(chosen)
        if "battle_won" not in info:
            raise Dead(f"{self.spec.id}: StarCraft II failed and was launched again")
        self.won = bool(info["battle_won"])
        truncated = bool(info.get("episode_limit", False))
        n = self.spec.n_agents
        return self._look(), np.full(n, float(reward)), np.full(n, bool(ended) and not truncated), truncated

    def avail(self) -> np.ndarray:
        return self._avail

    def state(self) -> np.ndarray:
        return np.asarray(self.env.get_state(), np.float32)

    def outcome(self) -> np.ndarray:
        """Whether the battle was won, and how many agents are dead: they alone may take action 0."""
        return np.array([self.won, self._avail[:, 0].sum()], np.float32)

    def state_dict(self) -> State:
        raise NotImplementedError("StarCraft II cannot save its state")

    def load_state_dict(self, state: State) -> None:
        raise NotImplementedError("StarCraft II cannot save its state")

    def render(self) -> np.ndarray:
        raise UserError(f"{self.spec.id} cannot be drawn; the game's own replays show it")

    def close(self) -> None:
        self.env.close()

    def _look(self) -> list[np.ndarray]:
        self._avail = np.asarray(self.env.get_avail_actions()).astype(bool)
        return [np.asarray(obs, np.float32) for obs in self.env.get_obs()]


class Smac:
    """``smac/MAP``; every keyword of ``--env.X`` is handed to ``StarCraft2Env``.

    The game never runs in the training process: without ``workers`` each copy has a process of its own.
    """

    options: type | None = None

    def names(self) -> Sequence[str]:
        return MAPS

    def make(
        self, name: str, *, seeds: Sequence[int], copies: int, agents: int | None, workers: int, options: Any
    ) -> VectorEnv:
        id = f"smac/{name}"
        if name not in MAPS and not (_maps() / f"{name}.SC2Map").is_file():
            raise UserError(f"no map {name!r}{suggestion(name, MAPS)}")
        if needs := missing():
            commands = "; ".join(command.partition("   #")[0] for command in needs[0].commands)
            raise UserError(f"{id}: {needs[0].what}: {commands} (marl doctor shows every step)")
        if taken := {"map_name", "seed", "continuing_episode"} & options.keys():
            raise UserError(f"{id}: {min(taken)} is set here already: map and seed by the run, a limit is a truncation")
        version = options.get("game_version") or game_version()
        rules = f"StarCraft II {version} via smac".replace("  ", " ")
        build = functools.partial(
            SmacCopy, id=id, name=name, options=dict(options), folder=str(game_folder()), rules=rules
        )
        env = make_copies(build, seeds=seeds, copies=copies, workers=workers or len(seeds) * copies, timeout=TIMEOUT)
        return with_agents(env, agents, "; the map decides")


FAMILY = Smac()
