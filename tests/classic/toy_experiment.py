"""A small experiment for the tests of the frame: a random walk, a cloud of points, and ways to go wrong.

Run as a program it is ``marl`` with that experiment in its list, saving a checkpoint every 0.05 seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from marl.classic.experiments.base import Finding, Metric, Row, Table
from marl.config import option
from marl.types import State, UserError


@dataclass(frozen=True)
class ToyOptions:
    steps: int = option(20, "Steps of the walk.")
    drift: float = option(0.5, "Mean of a step.", least=-1, most=1)
    pause: float = option(0.0, "Seconds that a step takes.")
    spin: float = option(0.0, "Seconds that a step computes.")
    trouble: str = option("none", "What happens to seed 1 in its 5th step: none, raise, die or warn.")


class Toy:
    """``a`` walks with drift, ``b`` without; after the last step a point says where both are."""

    Options = ToyOptions
    metrics = {  # noqa: RUF012
        "place": Metric("Where the walk is", "metres", "steps"),
        "cloud": Metric("Where both ended", "metres (b)", "metres (a)", kind="points"),
        "draws": Metric("Random numbers so far", "numbers", "steps", kind="none"),
    }
    unit = "steps"

    def __init__(self, options: ToyOptions, seed: int) -> None:
        if options.steps == 13:
            raise UserError("steps: 13 brings bad luck, expected another number")
        self.options, self.seed = options, seed
        self.total, self.done = options.steps, 0
        self.generator = np.random.default_rng(np.random.SeedSequence(seed))
        self.places = np.zeros(2)

    def advance(self) -> Sequence[Row]:
        end = time.monotonic() + self.options.spin
        while time.monotonic() < end:
            pass
        time.sleep(self.options.pause)
        self.done += 1
        self.places += self.generator.normal(size=2)
        self.places[0] += self.options.drift
        if self.seed == 1 and self.done == 5:
            self._go_wrong()
        rows = [Row(name, "place", self.done, place) for name, place in zip("ab", self.places, strict=True)]
        rows.append(Row("a", "draws", self.done, 2.0 * self.done))
        if self.done == self.total:
            rows.append(Row("both", "cloud", *self.places))
        return rows

    def _go_wrong(self) -> None:
        if self.options.trouble == "raise":
            raise ZeroDivisionError("the toy\nbroke")
        if self.options.trouble == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.options.trouble == "warn":
            import logging

            logging.getLogger("marl").warning("the toy is tired")

    def state_dict(self) -> State:
        return {"done": self.done, "places": self.places, "generator": self.generator.bit_generator.state}

    def load_state_dict(self, state: State) -> None:
        self.done, self.places = state["done"], state["places"].copy()
        self.generator.bit_generator.state = state["generator"]

    @staticmethod
    def findings(table: Table, options: ToyOptions) -> Sequence[Finding]:
        assert ("both", "cloud") not in table or len(table["both", "cloud"][0]) == 1
        return [Finding(f"end of {name}", table[name, "place"][1][:, -1], "metres") for name in "ab"]


def main() -> int:
    """``marl`` with ``toy`` in its list."""
    from marl import cli
    from marl.classic import experiments, runner

    entry = experiments.Entry("toy_experiment", "Toy", "a random walk with drift")
    experiments.EXPERIMENTS["toy"] = entry
    runner.CHECKPOINT_SECONDS = 0.05
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
