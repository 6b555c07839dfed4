"""From what learners choose to thrust and words.

mpe2's action is a vector in [0, 1]: still, -x, +x, -y, +y, then the words; or an index, move + 5 * word. In the
original rules moves 1 to 4 have the opposite signs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOVES = 5


def thrust_of(action: Tensor, sign: float = 1.0) -> Tensor:
    """``[..., >= 5]`` in [-1, 1], once mapped to [0, 1], is the thrust (right - left, up - down) ``[..., 2]``."""
    action = action[..., :MOVES].clamp(-1, 1)
    return (action[..., 2::2] - action[..., 1:4:2]) * (0.5 * sign)


def thrust_of_index(move: Tensor, dtype: torch.dtype, sign: float = 1.0) -> Tensor:
    """``[...]`` of 0 .. 4 to ``[..., 2]``."""
    return torch.tensor([[0, 0], [-sign, 0], [sign, 0], [0, -sign], [0, sign]], dtype=dtype)[move]


class Decoder:
    """Learners' actions to thrust ``[N, 2, M]`` and words ``[N, C, M]``.

    Words of silent agents are zero; the thrust of one that cannot move means nothing.

    Args:
        moves: for each agent whether it can move.
        speaks: for each agent whether it talks.
        channels: C.
        discrete: an index, or a vector.
        sign: -1 for the original rules.
        dtype: of the result.
    """

    def __init__(
        self,
        moves: Sequence[bool],
        speaks: Sequence[bool],
        channels: int,
        discrete: bool,
        sign: float,
        dtype: torch.dtype,
    ) -> None:
        self.channels, self.discrete, self.sign, self.dtype = channels, discrete, sign, dtype
        kinds = list(zip(moves, speaks, strict=True))
        if discrete:
            sizes = [(MOVES if move else 1) * (channels if speak else 1) for move, speak in kinds]
        else:
            sizes = [MOVES * move + channels * speak for move, speak in kinds]
        self.sizes = tuple(sizes)
        self._limit = torch.tensor(sizes)[:, None]
        self._speaks = torch.tensor(speaks)[:, None, None]
        self._stride = torch.tensor([MOVES if move else 1 for move in moves])[:, None]
        first = torch.tensor([[MOVES] if move and speak else [0] for move, speak in kinds])
        self._word = (first + torch.arange(channels))[:, None]

    def __call__(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """``action`` is ``[P, N, E, A]`` or ``[P, N, E]``; raises ``ValueError`` for an index that an agent lacks."""
        rows = action.transpose(0, 1).flatten(1, 2)
        if self.discrete:
            move, word = rows % MOVES, rows // self._stride
            if bool(((rows < 0) | (rows >= self._limit)).any()):
                raise ValueError(
                    f"discrete actions: agents have {self.sizes} choices, got {rows.amax(1).tolist()} at most"
                )
            thrust = thrust_of_index(move, self.dtype, self.sign)
            words = word[..., None] == torch.arange(self.channels)
        else:
            rows = rows.to(self.dtype)
            thrust = thrust_of(rows, self.sign)
            words = (rows.gather(2, self._word.expand(-1, rows.shape[1], -1)).clamp_(-1, 1) + 1) / 2
        spoken = torch.where(self._speaks, words, 0).to(self.dtype)
        return thrust.transpose(1, 2).contiguous(), spoken.transpose(1, 2).contiguous()
