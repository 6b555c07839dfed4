"""Critics for the tests of ``HookedCritics``, and what they are asked."""

import torch
from torch import nn

STATES = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
ACTIONS = torch.randn(3, 8, 2, generator=torch.Generator().manual_seed(1))
NOTHING = torch.zeros(1, 1)


class Twins(nn.Module):
    """Answers ``scale`` times the sum of the state, plus the action; and twice that."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.asked: list[list] = []

    def forward(self, state, action):
        self.asked.append(state.tolist())
        value = self.scale * state.sum(-1, keepdim=True) + action
        return value, 2 * value


class Single(Twins):
    def forward(self, state, action):
        return super().forward(state, action)[0]


def networks(n: int = 3) -> list[nn.Module]:
    """Critics of the concatenated state and action."""

    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))

        def forward(self, state, action):
            return self.layers(torch.cat([state, action], -1))

    torch.manual_seed(0)
    return [Critic() for _ in range(n)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def number(value: float) -> torch.Tensor:
    return torch.full((1, 1), value)


class Odd(Twins):
    """Answers whatever it is told to."""

    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, state, action):
        return self.make(super().forward(state, action))
