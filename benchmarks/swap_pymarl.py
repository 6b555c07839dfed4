"""The learners of PyMARL and EPyMARL as ``examples/swap_in/pymarl`` has them, with and without reciprocity."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.pair import Work

RECIPE = Path(__file__).parent.parent / "examples" / "swap_in" / "pymarl"


def updates(learner: str = "qmix", **reciprocity: Any) -> Work:
    """Updates of one learner of three agents from 32 episodes of up to 15 steps; {}: without reciprocity."""
    sys.path.insert(0, str(RECIPE))
    script = importlib.import_module("reciprocal" if reciprocity else "plain")
    parts = importlib.import_module("small_pymarl")
    torch.manual_seed(0)
    args = SimpleNamespace(**script.DEFAULTS, reciprocity=reciprocity)
    mac = parts.BasicMAC(args) if learner == "qmix" else parts.MADDPGMAC(args)
    host = script.QLearner(mac, args) if learner == "qmix" else script.MADDPGLearner(mac, args)
    batch = parts.run_episodes(mac, args.batch_size, explore=1.0)

    def work() -> float:
        host.train(batch)
        return 1.0

    for _ in range(5):
        work()
    return work
