"""An environment of one's own: N walkers on a line that are paid for staying near each other.

``python examples/add_environment.py`` trains DDPG on it for a minute. The page ``docs/howto/add-an-environment.md``
explains the parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import marl
from marl import registry
from marl.config import option
from marl.envs import EnvSpec, Step, VectorEnv
from marl.streams import Streams
from marl.types import State


@dataclass(frozen=True)
class MeetingOptions:
    """Settings of the game, on the command line as ``--env.NAME``."""

    stride: float = option(0.3, "How far an action of 1 moves a walker.")
    max_steps: int = option(10, "Steps per episode.")


class Meeting(VectorEnv):
    """Walker i sees its own position and the mean of the others', and earns minus their distance at each step."""

    def __init__(self, seeds: Sequence[int], copies: int, agents: int, options: MeetingOptions) -> None:
        names = tuple(f"walker_{i}" for i in range(agents))
        self.spec = EnvSpec(
            "tutorial/meeting", names, (2,) * agents, (1,) * agents, discrete=False, max_steps=options.max_steps
        )
        self.members, self.copies, self.stride = len(seeds), copies, options.stride
        self.beginnings = Streams(seeds, "meeting/start")
        self.reset()

    def reset(self) -> Tensor:
        self.position = 2 * self.beginnings.uniform(self.spec.n_agents, self.copies) - 1  # [P, N, E]
        self.steps = 0
        return self.observe()

    def others(self) -> Tensor:
        return (self.position.sum(1, keepdim=True) - self.position) / (self.spec.n_agents - 1)

    def observe(self) -> Tensor:
        return torch.stack([self.position, self.others()], dim=-1)

    def step(self, action: Tensor) -> Step:
        self.position = self.position + self.stride * action.squeeze(-1).clamp(-1, 1)
        self.steps += 1
        reward = -(self.position - self.others()).abs()
        ended = self.steps == self.spec.max_steps
        next_obs = self.observe()
        obs = self.reset() if ended else next_obs  # the same step that ends an episode begins the next one
        never = torch.zeros_like(reward, dtype=torch.bool)  # a time limit is no termination
        return Step(obs, next_obs, reward, terminated=never, done=torch.full_like(never, ended))

    def state_dict(self) -> State:
        return {"position": self.position.clone(), "steps": self.steps, "beginnings": self.beginnings.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.position, self.steps = state["position"].clone(), state["steps"]
        self.beginnings.load_state_dict(state["beginnings"])


class Tutorial:
    """The family ``tutorial/*``."""

    options: type | None = MeetingOptions

    def names(self) -> Sequence[str]:
        return ("meeting",)

    def make(
        self, name: str, *, seeds: Sequence[int], copies: int, agents: int | None, workers: int, options: Any
    ) -> VectorEnv:
        if name not in self.names() or (agents is not None and agents < 2):
            raise marl.UserError(f"tutorial/{name} with {agents} agents: expected tutorial/meeting, 2 agents or more")
        return Meeting(seeds, copies, agents or 3, options)


FAMILY = Tutorial()
registry.ENVIRONMENTS["tutorial"] = f"{__name__}:FAMILY"


def main(**settings: Any) -> Mapping[str, Any]:
    """Train two members and evaluate them."""
    chosen = {"steps": 4_000, "warmup": 500, "eval_every": 1_000, "hidden": (64, 64), "noise": 0.2, **settings}
    run = marl.train("ddpg", "tutorial/meeting", seeds=[0, 1], **chosen)
    return marl.evaluate(run, episodes=100)


if __name__ == "__main__":
    print(main(progress=True))
