"""A foreign environment of a few lines, importable by worker processes."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from marl.envs.base import EnvSpec
from marl.envs.copies import generator_state, load_generator
from marl.types import State

DIE, HANG, FAIL = 1.0, -1.0, 0.99


class Toy:
    """Two agents; agent 0 sees (step), agent 1 sees (a drawn number, step).

    Rewards are 1 and the drawn number. Agent 1 leaves at step 2, the task ends for agent 0 at step 4. The first action
    of agent 0 can do harm: see ``DIE``, ``HANG`` and ``FAIL``.
    """

    def __init__(self, seed: int, exact: bool = True) -> None:
        self.spec = EnvSpec("toy", ("a", "b"), (1, 2), (1, 1), discrete=False, exact_state=exact)
        self.generator = np.random.default_rng(seed)
        self.time = 0

    def observe(self) -> list[np.ndarray]:
        self.drawn = self.generator.random()
        return [np.array([self.time], float), np.array([self.drawn, self.time])]

    def reset(self) -> list[np.ndarray]:
        self.time = 0
        return self.observe()

    def step(self, action: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, bool]:
        word = round(float(action[0, 0]), 6)
        if word == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        if word == HANG:
            time.sleep(1000)
        if word == FAIL:
            raise ValueError("toy is broken")
        self.time += 1
        obs = self.observe()
        return obs, np.array([1.0, self.drawn]), np.array([self.time >= 4, self.time == 2]), False

    def state_dict(self) -> State:
        return {"time": self.time, "generator": generator_state(self.generator)}

    def load_state_dict(self, state: State) -> None:
        self.time = state["time"]
        load_generator(self.generator, state["generator"])

    def render(self) -> np.ndarray:
        return np.full((2, 2, 3), self.time, np.uint8)

    def close(self) -> None:
        pass


def stillborn(seed: int) -> Toy:
    """A build that kills its process."""
    os.kill(os.getpid(), signal.SIGKILL)
    return Toy(seed)
