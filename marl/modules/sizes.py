"""How critic j reads the state of agent i where agents see different things: padding, masks, observation matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from marl.modules.guards import full_precision, require_floating, require_tensor, same_device
from marl.types import UserError


class Alike(torch.nn.Module):
    """All states are of one size and mean the same to everybody.

    Attributes:
        widths: the size of each agent's state; None: any, the same for all.
        mask: ``[N, D]`` bool, which coordinates of the states, padded to the widest, are real; None: all.
    """

    widths: Sequence[int] | None = None
    mask: Tensor | None = None

    def check(self, states: Sequence[Tensor]) -> None:
        """Raise ``UserError`` unless the states, one for each agent, have the sizes that were announced."""
        found = [state.shape[-1] for state in states]
        if found != list(self.widths or found[:1] * len(found)):
            raise UserError(f"states: sizes {found} arrived, but widths is {self.widths and list(self.widths)}")

    def read(self, state: Tensor, i: int, j: int) -> Tensor:
        """Agent i's state ``[B, D]``, padded with zeros to the widest, as critic j reads it; for i = j as it is."""
        return state


class Leading(Alike):
    """Critic j reads the leading coordinates of agent i's state, cut or filled with zeros to its own size."""

    def __init__(self, widths: Sequence[int], agents: int) -> None:
        super().__init__()
        if not isinstance(widths, Sequence):
            raise UserError(f"widths: expected a sequence, one for each critic, got {type(widths).__name__}")
        if len(widths) != agents:
            raise UserError(f"widths: expected one for each of {agents} critics, got {len(widths)}")
        self.widths = widths
        self.mask = real(widths)

    def read(self, state: Tensor, i: int, j: int) -> Tensor:
        assert self.widths is not None
        return fitted(state, self.widths[j])


class Masked(Alike):
    """The states come padded to one size; critic j reads the coordinates that are real for it, zeros elsewhere.

    Args:
        masks: ``[N, D]`` bool, True where a coordinate of agent i's state is real.
    """

    def __init__(self, masks: Tensor, agents: int) -> None:
        super().__init__()
        require_tensor("masks", masks)
        if masks.dim() != 2 or len(masks) != agents or masks.dtype != torch.bool:
            kind = str(masks.dtype).removeprefix("torch.")
            raise UserError(f"masks: expected bool of shape [{agents}, D], got {kind} of shape {list(masks.shape)}")
        self.widths = [masks.shape[-1]] * agents
        self.register_buffer("masks", masks, persistent=False)
        self.mask = masks

    def check(self, states: Sequence[Tensor]) -> None:
        super().check(states)
        same_device({"states": states[0], "masks": self.get_buffer("masks")})

    def read(self, state: Tensor, i: int, j: int) -> Tensor:
        return state if i == j else state.masked_fill(~self.get_buffer("masks")[j], 0.0)


class Projected(Alike):
    """Agent i sees o_i = Pi_i s of a global state s; critic j reads Pi_j Pi_i^T o_i (the paper's embedding by Pi^T).

    Args:
        projections: N matrices Pi_i ``[D_i, S]``. Rows that pick coordinates of s make Pi_i^T o_i that part of s.
    """

    def __init__(self, projections: Sequence[Tensor], agents: int) -> None:
        super().__init__()
        if len(projections) != agents:
            raise UserError(f"projections: expected one for each of {agents} critics, got {len(projections)}")
        for i, matrix in enumerate(projections):
            require_tensor(f"projections[{i}]", matrix)
            if matrix.dim() != 2 or matrix.shape[-1] != projections[0].shape[-1]:
                shapes = [list(matrix.shape) for matrix in projections]
                raise UserError(f"projections: expected matrices [D_i, S] with one S for all, got shapes {shapes}")
            if matrix.dtype != projections[0].dtype:
                expected, found = (str(x.dtype).removeprefix("torch.") for x in (projections[0], matrix))
                raise UserError(f"projections[{i}]: expected {expected} as projections[0], got {found}")
        same_device({f"projections[{i}]": matrix for i, matrix in enumerate(projections)})
        self.widths = [len(matrix) for matrix in projections]
        self.mask = real(self.widths)
        for i, source in enumerate(projections):
            for j, reader in enumerate(projections):
                self.register_buffer(f"from_{i}_to_{j}", source.detach() @ reader.detach().T, persistent=False)

    def check(self, states: Sequence[Tensor]) -> None:
        super().check(states)
        same_device({"states": states[0], "projections": self.get_buffer("from_0_to_0")})

    def read(self, state: Tensor, i: int, j: int) -> Tensor:
        assert self.widths is not None
        seen = fitted(state, self.widths[i])
        if i == j:
            return seen
        require_floating(f"states[{i}]", seen)  # to whole numbers the matrix would be rounded
        with full_precision(seen):
            return seen @ self.get_buffer(f"from_{i}_to_{j}").to(seen.dtype)


def make_sizes(
    agents: int, widths: Sequence[int] | None, masks: Tensor | None, projections: Sequence[Tensor] | None
) -> Alike:
    """The one that was asked for; raises ``UserError`` for more than one."""
    given: dict[str, Any] = {"widths": widths, "masks": masks, "projections": projections}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UserError(f"expected one of widths, masks and projections, got {' and '.join(named)}")
    if widths is not None:
        return Leading(widths, agents)
    if masks is not None:
        return Masked(masks, agents)
    return Alike() if projections is None else Projected(projections, agents)


def real(widths: Sequence[int]) -> Tensor:
    """``[N, D]`` bool: the leading ``widths[i]`` of D coordinates."""
    return torch.arange(max(widths)) < torch.tensor(list(widths)).unsqueeze(-1)


def fitted(tensor: Tensor, width: int) -> Tensor:
    """The last dimension cut or filled with zeros to ``width``."""
    extra = width - tensor.shape[-1]
    return tensor if extra == 0 else pad(tensor, (0, extra))
