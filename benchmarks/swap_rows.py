"""Rows of ``speed.py``: what reciprocity costs in the hosts of ``examples/swap_in``, one adjacent state each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import swap_benchmarl, swap_cleanrl, swap_pymarl, swap_sb3
from benchmarks.duels import Duel
from benchmarks.pair import Work

NEIGHBOUR = {"kappa": 0.5, "graph": "nearest", "neighbours": 1}
SELF = {"kappa": 0.5, "graph": "self"}
OFF = {"kappa": 0.0}


def torchrl_updates(**settings: Any) -> Work:
    """``swap_torchrl.updates``, whose file needs TorchRL to be imported."""
    from benchmarks import swap_torchrl

    return swap_torchrl.updates(**settings)


def rows(host: str, updates: Callable[..., Any], venv: str | None = None, **settings: Any) -> dict[str, Duel]:
    """A host with one neighbour each, with itself alone, and with kappa 0, against the same without reciprocity."""
    return {
        f"reciprocity, {host}, {name} : without": Duel(
            (updates, {**settings, **given}),
            (updates, settings),
            "update",
            1.15,
            cost=True,
            venv=venv,
            both=venv is not None,
        )
        for name, given in (("one neighbour", NEIGHBOUR), ("self", SELF), ("kappa 0", OFF))
    }


ROWS: dict[str, Duel] = {
    **rows("stable-baselines3's DDPG", swap_sb3.updates, algorithm="ddpg"),
    **rows("stable-baselines3's TD3", swap_sb3.updates, algorithm="td3"),
    **rows("TorchRL's DDPG", torchrl_updates, loss="ddpg"),
    **rows("TorchRL's TD3", torchrl_updates, loss="td3"),
    **rows("TorchRL's QMixer", torchrl_updates, loss="qmix"),
    **rows("TorchRL's PPO", torchrl_updates, loss="ppo"),
    **rows("BenchMARL's MADDPG", swap_benchmarl.updates, venv="benchmarl", algorithm="maddpg"),
    **rows("BenchMARL's QMIX", swap_benchmarl.updates, venv="benchmarl", algorithm="qmix"),
    **rows("CleanRL's TD3", swap_cleanrl.updates, learners=3),
    **rows("PyMARL's QMIX", swap_pymarl.updates, learner="qmix"),
    **rows("PyMARL's MADDPG", swap_pymarl.updates, learner="maddpg"),
}
