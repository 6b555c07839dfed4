"""NaN and infinity end a run in one line that says where they came from, before anything is saved."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from marl.types import UserError


def require_seen(
    obs: Tensor, state: Tensor | None, step: int | None, agents: Sequence[str], members: Sequence[str] = ()
) -> None:
    """``require_finite`` of observations ``[P, N, E, D]`` and the global state ``[P, E, S]``."""
    require_finite(obs, "observation", step, agents, members)
    if state is not None:
        require_finite(state.unsqueeze(1), "state", step, ["the environment"], members)


def require_finite(
    values: Tensor, what: str, step: int | None, agents: Sequence[str], members: Sequence[str] = ()
) -> None:
    """Raise ``UserError`` naming the first member and agent of ``values`` (``[P, N, ...]``) that is not finite.

    Args:
        step: of the run; None: it has not begun.
        members: their names; none: they are numbered.
    """
    if math.isfinite(values.sum()):
        return
    bad = (~torch.isfinite(values)).flatten(2).any(-1) if values.dim() > 2 else ~torch.isfinite(values)
    if bad.any():
        member, agent = bad.nonzero()[0].tolist()
        who = agents[agent] if bad.shape[1] == len(agents) else "the shared network"
        when = "as the first episode begins" if step is None else f"at step {step}; the last checkpoint is kept"
        name = members[member] if members else member
        raise UserError(f"{what} of {who} (member {name}) is not finite {when}")
