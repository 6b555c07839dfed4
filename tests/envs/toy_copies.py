"""A foreign environment of a few lines, importable by worker processes."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from marl.envs.base import EnvSpec
from marl.envs.copies import Dead
from marl.envs.packing import generator_state, load_generator
from marl.types import State

DIE, HANG, FAIL = 1.0, -1.0, 0.99
KILL, OVER = 98, 99
"""Actions of agent 0 in ``Duel`` that end its process at once, and by ``Dead``."""


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


class Duel(Toy):
    """``Toy`` with masks, a global state and an outcome.

    Agent 0 has two actions, agent 1 three; both may always stay (0), and take their last action at even steps. The
    state is (step, drawn number); the outcome is whether the number drawn last is below 1/2, and how often it was.
    """

    def __init__(self, seed: int, exact: bool = True) -> None:
        super().__init__(seed, exact)
        self.spec = EnvSpec(
            "duel",
            ("a", "b"),
            (1, 2),
            (2, 3),
            discrete=True,
            exact_state=exact,
            state_size=2,
            masked=True,
            outcomes=("win_rate", "dead_agents"),
        )
        self.low = 0

    def reset(self) -> list[np.ndarray]:
        self.low = 0
        return super().reset()

    def step(self, action: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, bool]:
        if action[0] == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if action[0] == OVER:
            raise Dead("the duel's engine failed")
        moved = super().step(np.zeros((2, 1)))
        self.low += self.drawn < 0.5
        return moved

    def avail(self) -> np.ndarray:
        even = self.time % 2 == 0
        return np.array([[True, even, False], [True, False, even]])

    def state(self) -> np.ndarray:
        return np.array([self.time, self.drawn])

    def outcome(self) -> np.ndarray:
        return np.array([self.drawn < 0.5, self.low])

    def state_dict(self) -> State:
        return {**super().state_dict(), "low": int(self.low), "drawn": self.drawn}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.low, self.drawn = state["low"], state["drawn"]


class Lone(Toy):
    """``Toy`` of agent 0 alone, who is paid 1 a step and whose task ends when it acts 1/2."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.spec = EnvSpec("lone", ("a",), (1,), (1,), discrete=False)

    def observe(self) -> list[np.ndarray]:
        return super().observe()[:1]

    def step(self, action: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, bool]:
        obs, reward, *_ = super().step(action)
        return obs, reward[:1], np.array([action[0, 0] == 0.5]), False


def only_once(seed: int, marker: str) -> Toy:
    """A build that kills its process from the second time on; ``marker`` is the file by which it knows."""
    if os.path.exists(marker):
        os.kill(os.getpid(), signal.SIGKILL)
    open(marker, "x").close()
    return Toy(seed)


def stillborn(seed: int) -> Toy:
    """A build that kills its process."""
    os.kill(os.getpid(), signal.SIGKILL)
    return Toy(seed)
