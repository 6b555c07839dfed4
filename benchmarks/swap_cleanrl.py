"""The single-file TD3 of ``examples/swap_in/cleanrl`` at CleanRL's sizes, with and without reciprocity."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from benchmarks.pair import Work
from marl.reciprocity import HookedCritics

SCRIPT = Path(__file__).parent.parent / "examples" / "swap_in" / "cleanrl" / "plain.py"


def updates(learners: int = 3, **reciprocity: Any) -> Work:
    """Updates of each of the learners, two layers of 256 units, batch 256; {}: without reciprocity.

    One piece of work is a whole round of updates: only the last of them moves the actor and costs more.
    """
    spec = importlib.util.spec_from_file_location("cleanrl_plain", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    torch.manual_seed(0)
    made = [script.Learner(script.Args(hidden=256), number) for number in range(learners)]
    if reciprocity:
        HookedCritics([(learner.qf1_target, learner.qf2_target) for learner in made], **reciprocity)
    for learner in made:
        for _ in range(1000):
            learner.step(random=True)
    round_length = script.Args.policy_frequency

    def work() -> float:
        for number in range(1, round_length + 1):
            for learner in made:
                learner.update(number, learner.sample())
        return float(round_length)

    for _ in range(2):
        work()
    return work
