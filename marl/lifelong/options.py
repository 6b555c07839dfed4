"""Settings of lifelong agents."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from marl.algos.dqn import DQNConfig
from marl.config import EngineName, option
from marl.lifelong.ewc import Mode
from marl.lifelong.sequence import Draws
from marl.lifelong.simnet import STEPS

Borrow: TypeAlias = Literal["distil", "replay"]

SMALL_DQN = DQNConfig(
    hidden=(128,), conv="none", lr=1e-3, epsilon_decay=4_000.0, warmup=1_000, batch_size=64, buffer_size=20_000
)
"""Learns a small game in 20 000 steps well enough to tell who has learnt it."""


@dataclass(frozen=True)
class LifelongOptions:
    """Settings of ``marl lifelong``; the defaults are made for small games. ``docs/lifelong/index.md`` has Atari's."""

    tasks: tuple[str, ...] = option(
        ("small/catch", "small/gates", "small/shoot"), "Environments with equal spaces and one agent, by their ids."
    )
    agents: int = option(3, "N, lifelong agents that learn at the same time.")
    isolated: bool = option(False, "Agents without a hub: each learns all by itself.")
    rounds: int | None = option(None, "Tasks that each agent is given in turn; none: as many as there are.")
    draws: Draws = option("permutation", "Every task once, in an order of the agent's own; or any, each time.")
    frames: int = option(20_000, "Frames of the game for which an agent plays a task that it has to learn.")
    copies: int = option(8, "Copies of its task that an agent plays at once.")
    identify: Literal["simnet", "told"] = option("simnet", "How an agent knows its task: by a SimNet, or it is told.")
    identify_steps: int = option(STEPS, "Environment steps that a SimNet plays to know a task.")
    threshold: float | None = option(None, "Distance up to which a task is recognised; none: SimNet's own.")
    borrow: Borrow = option("distil", "What a borrower learns: its lender's values, or from rewards alone (replay).")
    rehearse: float = option(0.25, "Share of each batch from replays of tasks met before; 0: none.", most=1)
    ewc: float = option(1.0, "Strength of the penalty against forgetting; 0: none.")
    ewc_mode: Mode = option("separate", "Anchors: one for each past task, one running one, or the last task's only.")
    ewc_samples: int = option(256, "Transitions from which it is estimated how much a weight matters.")
    without_ewc: bool = option(False, "Run everybody once more without that penalty, to compare.")
    evals: int = option(5, "Evaluations of an agent on its task while it learns it, the last one in the end.")
    eval_episodes: int = option(16, "Episodes of one evaluation on one task, per agent.")
    hub_bytes: int | None = option(None, "What the hub's replays may take on disk, its copies aside; none: no limit.")
    dqn: DQNConfig = option(SMALL_DQN, "The learner.")
    engine: EngineName = option("local", "Where the agents live: stacked in one process, in several, or in Ray's.")
    address: str | None = option(None, "HOST:PORT of a Ray cluster; none: $RAY_ADDRESS, else one on this machine.")
    workers: int | None = option(None, "Processes that share the agents where the engine has several.")
    env_workers: int = option(0, "Processes that play an agent's copies while its network learns; 0: none.", least=0)
    env: dict[str, Any] = dataclasses.field(default_factory=dict, metadata={"help": "Options of all tasks."})
