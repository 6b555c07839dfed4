"""Every run of Figures 5 to 8 of the policy-reciprocity paper, by name: ``marl train --preset pr-fig5-hopper-td3``.

A preset keeps apart what the paper prints (``published``) and what it leaves open (``decided``, ``env``). Where a
figure compares with and without reciprocity, both train as one population: a sweep of ``reciprocity.kappa`` from 0.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from marl.config import suggestion
from marl.types import UserError

KAPPA = "reciprocity.kappa"


@dataclass(frozen=True)
class Preset:
    """One run of a figure.

    Attributes:
        about: the figure and what it shows, in a line.
        algorithm, environment: names.
        published: settings of the loop or the algorithm, the paper's values.
        decided: settings that the paper leaves open, this project's values; what stands in neither is the default.
        env: the environment's options, this project's values.
        sweep: setting -> values to compare.
        note: where the sweep, and what else needs a word, comes from.
        seeds: the paper averages five; which ones is this project's choice.
    """

    about: str
    algorithm: str
    environment: str
    published: Mapping[str, Any]
    decided: Mapping[str, Any]
    env: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, Sequence[float]] = field(default_factory=dict)
    note: str = ""
    seeds: Sequence[int] = (0, 1, 2, 3, 4)

    @property
    def settings(self) -> dict[str, Any]:
        """Of the loop and the algorithm, the paper's and this project's."""
        return {**self.published, **self.decided}

    def arguments(
        self,
        seeds: Sequence[int] | None = None,
        sweep: Mapping[str, Sequence[Any]] | None = None,
        env: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """What ``marl.train`` takes, ``marl.train(**preset.arguments(steps=1000))``.

        Seeds, options and settings that are given stand instead of the preset's. A sweep that is given stands instead
        of the preset's whole sweep; a setting that is given is swept no more.
        """
        kept = {name: values for name, values in self.sweep.items() if name not in settings}
        return {
            "algorithm": self.algorithm,
            "environment": self.environment,
            "seeds": list(seeds or self.seeds),
            "sweep": dict(sweep or kept),
            "env": {**self.env, **(env or {})},
            **self.settings,
            **settings,
        }

    def command(self) -> str:
        """The command line that trains the same without the preset."""
        options = {**self.settings, **{f"env.{name}": value for name, value in self.env.items()}}
        words = ["marl", "train", self.algorithm, self.environment]
        for name, value in options.items():
            words += ["--" + name.replace("_", "-"), _spell(value)]
        for name, values in self.sweep.items():
            words += ["--sweep", f"{name}={_spell(values)}"]
        return shlex.join([*words, "--seeds", *map(str, self.seeds)])

    def describe(self) -> str:
        """The head of its page of help: what is the paper's, what is not."""
        decided = {**self.decided, **{f"env.{name}": value for name, value in self.env.items()}}
        return "\n".join(
            (
                f"{self.about}.\n",
                f"published: {_listed(self.published)}",
                f"decided here: {_listed(decided)}",
                f"compared: {_listed(self.sweep) or 'seeds only'}",
                f"note: {self.note}",
                f"\nthe same as\n  {self.command()}",
            )
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "about": self.about,
            "algorithm": self.algorithm,
            "environment": self.environment,
            "published": dict(self.published),
            "decided": dict(self.decided),
            "env": dict(self.env),
            "sweep": {name: list(values) for name, values in self.sweep.items()},
            "note": self.note,
            "seeds": list(self.seeds),
            "command": self.command(),
        }


def _spell(value: Any) -> str:
    """As the command line reads it."""
    if isinstance(value, tuple):
        return ",".join(map(_spell, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_spell(value)}" for name, value in values.items())


def find(name: str) -> Preset:
    """The preset of that name; raises ``UserError`` with the nearest one."""
    if name not in PRESETS:
        near = suggestion(name, PRESETS)
        raise UserError(f"no preset {name!r}{near if 'did you mean' in near else '; see marl list --presets'}")
    return PRESETS[name]


MUJOCO = {
    **{"buffer_size": 1_000_000, "gamma": 0.99, "actor_lr": 3e-4, "critic_lr": 3e-4},
    **{"noise": 0.1, "batch_size": 256},
}
MADDPG = {
    **{"buffer_size": 500_000, "gamma": 0.95, "actor_lr": 1e-4, "critic_lr": 1e-3},
    **{"noise": 0.1, "tau": 0.01},
}
MAPPO = {"gamma": 0.99, "actor_lr": 1e-4, "critic_lr": 1e-4, "entropy": 0.01, "gae_lambda": 0.95}
QMIX = {"gamma": 0.99, "lr": 5e-4, "epsilon_start": 1.0, "epsilon_end": 0.05, "epsilon_steps": 50_000}
"""Section V.B of the paper."""

GAME = {"dynamics": "openai", "max_cycles": 100}
"""The paper cites the original MPE; episodes of 100 steps are those of the code that its MADDPG settings match."""

OFF_POLICY = {"steps": 1_000_000}
ON_POLICY = {"steps": 1_000_000, "copies": 8, "shared": False}
"""Each agent has a critic of its own, which is what reciprocity is about; 8 copies x 100 steps for each update."""

HALF = "kappa .5 is Figure 7's best value; the text names none for this run."
UNLABELLED = f"The text does not say which algorithm a panel shows: MADDPG and MAPPO are both here. {HALF}"


def _figure5() -> dict[str, Preset]:
    found = {}
    for task, kappa, tau in (("Ant", 0.3, 0.008), ("HalfCheetah", 0.5, 0.005), ("Hopper", 0.5, 0.005)):
        for algorithm, extra in (("td3", {"policy_delay": 2}), ("ddpg", {})):
            found[f"pr-fig5-{task.lower()}-{algorithm}"] = Preset(
                f"Figure 5: {algorithm.upper()} on {task}, with and without reciprocity",
                algorithm,
                f"mujoco/{task}-v4",
                published={**MUJOCO, "tau": tau, **extra},
                decided={"agents": 3, "steps": 1_000_000},
                sweep={KAPPA: (0.0, kappa)},
                note=f"kappa {kappa} is the paper's. It used the v3 tasks, which are gone; v4 is the nearest. "
                "It gives no number of learners. A step moves each of the 3 learners' own copies: 3 steps of the task.",
            )
    return found


def _figure6() -> dict[str, Preset]:
    found = {}
    bases: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
        ("maddpg", MADDPG, OFF_POLICY),
        ("mappo", MAPPO, ON_POLICY),
    )
    for task, scenario, what in (
        ("tag", "simple_tag_v3", "predator-prey"),
        ("spread", "simple_spread_v3", "cooperative navigation"),
    ):
        prey = {"prey": "random"} if task == "tag" else {}
        for n in (3, 6):
            for algorithm, published, decided in bases:
                found[f"pr-fig6-{task}-n{n}-{algorithm}"] = Preset(
                    f"Figure 6: {algorithm.upper()} on {what}, {n} agents, with and without reciprocity",
                    algorithm,
                    f"mpe/{scenario}",
                    published={"agents": n, **published},
                    decided=decided,
                    env={**GAME, **prey},
                    sweep={KAPPA: (0.0, 0.5)},
                    note=UNLABELLED,
                )
    for game, family, prefix, rules in (
        ("StarCraft (SMAC)", "smac", "", ""),
        ("JaxMARL's SMAX", "smax", "smax-", " The paper played StarCraft; SMAX has other dynamics."),
    ):
        for battle, interval in (("3s_vs_5z", 160), ("5m_vs_6m", 180)):
            found[f"pr-fig6-{prefix}{battle}-qmix"] = Preset(
                f"Figure 6: QMIX on {battle} of {game}, with and without reciprocity",
                "qmix",
                f"{family}/{battle}",
                published={**QMIX, "target_interval": interval},
                decided={"steps": 2_000_000},
                sweep={KAPPA: (0.0, 0.5)},
                note=f"The target interval is counted in updates. {HALF}{rules}",
            )
    return found


def _figure7() -> dict[str, Preset]:
    def preset(about: str, decided: dict[str, Any], sweep: dict[str, Sequence[float]], note: str) -> Preset:
        return Preset(
            about,
            "maddpg",
            "mpe/simple_tag_v3",
            published={"agents": 4, **MADDPG},
            decided={**OFF_POLICY, **decided},
            env={**GAME, "prey": "random"},
            sweep=sweep,
            note=note,
        )

    found = {
        "pr-fig7a-tag-n4-maddpg": preset(
            "Figure 7a: MADDPG on predator-prey, 4 agents, with and without reciprocity",
            {},
            {KAPPA: (0.0, 0.5)},
            "kappa .5 is the best of Figure 7b.",
        ),
        "pr-fig7b-tag-n4-kappa": preset(
            "Figure 7b: how much the neighbours' values weigh; MADDPG on predator-prey, 4 agents",
            {},
            {KAPPA: (0.0, 0.2, 0.5, 0.8)},
            "kappa .2, .5 and .8 are the paper's; 0 is the baseline of Figure 7a. It gives no N: 4 as in Figure 7a.",
        ),
    }
    for k in range(4):
        links = {"reciprocity.graph": "nearest", "reciprocity.neighbours": k, KAPPA: 0.5} if k else {KAPPA: 0.0}
        found[f"pr-fig7c-tag-n4-neighbours-{k}"] = preset(
            f"Figure 7c: MADDPG on predator-prey, 4 agents, {k} neighbours for each",
            links,
            {},
            "The text names no numbers: 0 (without reciprocity) to 3 (all others). Members share one graph, so each "
            "number is a run of its own. kappa .5 is the best of Figure 7b.",
        )
    return found


def _figure8() -> dict[str, Preset]:
    found = {}
    bases: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
        ("maptf", "MAPTF on MADDPG", MADDPG, OFF_POLICY),
        ("maptf-mappo", "MAPTF on MAPPO", MAPPO, ON_POLICY),
        ("dvm", "DVM", MADDPG, OFF_POLICY),
    )
    for n in (3, 6):
        for algorithm, what, published, decided in bases:
            found[f"pr-fig8-spread-n{n}-{algorithm}"] = Preset(
                f"Figure 8: {what} on simple-spread for transfer, {n} agents, with and without reciprocity",
                algorithm,
                "mpe/spread_assigned",
                published={"agents": n, **published},
                decided=decided,
                env=GAME,
                sweep={KAPPA: (0.0, 0.5)},
                note="The settings are the paper's for the algorithm beneath, which it does not name; the "
                f"transfer's own are their defaults. Agents have landmarks of their own, as in MAPTF's code. {HALF}",
            )
    return found


PRESETS: dict[str, Preset] = {**_figure5(), **_figure6(), **_figure7(), **_figure8()}
"""Name -> run, in the order of the figures."""
