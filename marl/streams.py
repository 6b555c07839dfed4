"""All randomness of a run: one seed per population member, one named stream per purpose.

A member's streams depend on its own seed and on nothing else, so that member p of a population draws the same numbers
as the run of that member alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from marl.types import State


def derive(seed: int, *path: str | int) -> int:
    """A seed in [0, 2**63) for the purpose named by ``path``; equal arguments give equal seeds on every machine."""
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Streams:
    """One generator per member; a draw of shape ``s`` returns ``[P, *s]``, on the CPU whatever torch's default device.

    Args:
        seeds: one per member (P of them).
        name: what the numbers are for, for example ``"explore"``; other names give independent streams.

    Attributes:
        shared: somebody else may draw from them too.
    """

    shared = False

    def __init__(self, seeds: Sequence[int], name: str) -> None:
        self.generators = [torch.Generator().manual_seed(derive(seed, name)) for seed in seeds]

    def __len__(self) -> int:
        return len(self.generators)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """``[P, *shape]`` from the uniform distribution on [0, 1)."""
        return self._drawn(lambda g: torch.rand((1, *shape), generator=g, dtype=dtype, device="cpu"))

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """``[P, *shape]`` from the standard normal distribution."""
        return self._drawn(lambda g: torch.randn((1, *shape), generator=g, dtype=dtype, device="cpu"))

    def integers(self, high: int, *shape: int) -> Tensor:
        """``[P, *shape]`` int64, uniform on 0 .. high - 1."""
        return self._drawn(lambda g: torch.randint(high, (1, *shape), generator=g, device="cpu"))

    def _drawn(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Every member's ``[1, *shape]`` as one tensor; a single member's need not be copied."""
        parts = [draw(generator) for generator in self.generators]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def state_dict(self) -> State:
        return {"generators": torch.stack([g.get_state() for g in self.generators])}

    def load_state_dict(self, state: State) -> None:
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.set_state(saved.clone())  # torch crashes on a row of a larger tensor
