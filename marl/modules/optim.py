"""Adam for stacked networks: a learning rate per member, a gradient norm and its clipping per network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from marl.modules.stacked import Stacked
from marl.types import State


class StackedAdam:
    """``torch.optim.Adam`` over all P x N networks of a module.

    A loss must be a mean over the batch and a sum over P and N, so that each network sees the gradient it would see
    alone.

    Args:
        module: the stacked networks.
        lr: learning rate of each member, ``[P, 1, 1]``.
        max_norm: gradients of a network whose Euclidean norm is larger are scaled down to it; None: never.
    """

    def __init__(self, module: Stacked, lr: Tensor, max_norm: float | None = None) -> None:
        self.flat = module.flat
        self.max_norm = max_norm
        rates = lr.flatten().tolist()
        together = len(set(rates)) == 1
        slices = [slice(None)] if together else [slice(p, p + 1) for p in range(len(rates))]
        groups = []
        for members, rate in zip(slices, rates, strict=False):
            part = self.flat.data[members]
            part.grad = self.flat.grad[members]
            groups.append({"params": [part], "lr": rate})
        self.adam = torch.optim.Adam(groups, fused=True)

    def step(self, loss: Tensor) -> Tensor:
        """Differentiate ``loss``, clip, move the parameters; the gradients' norms before clipping, ``[P, N]``."""
        return self.apply(torch.autograd.grad(loss, self.flat.parameters))

    def apply(self, gradients: Sequence[Tensor]) -> Tensor:
        """The same with the parameters' gradients at hand."""
        torch.cat([g.flatten(2) for g in gradients], dim=-1, out=self.flat.grad)
        norm = torch.linalg.vector_norm(self.flat.grad, dim=-1)
        if self.max_norm is not None:
            self.flat.grad.mul_((self.max_norm / (norm + 1e-6)).clamp_(max=1.0).unsqueeze(-1))
        self.adam.step()
        return norm

    def state_dict(self) -> State:
        """Adam's step count and moments, one entry per parameter group; empty before the first step."""
        return {str(i): dict(s) for i, s in self.adam.state_dict()["state"].items()}

    def load_state_dict(self, state: State) -> None:
        saved = self.adam.state_dict()
        saved["state"] = {int(i): {k: v.clone() for k, v in s.items()} for i, s in state.items()}
        self.adam.load_state_dict(saved)


def step_together(loss: Tensor, optimizers: Sequence[StackedAdam]) -> list[Tensor]:
    """One step of every optimizer on a loss that all their modules share, differentiated once; the norms of each."""
    gradients = iter(torch.autograd.grad(loss, [p for o in optimizers for p in o.flat.parameters]))
    return [o.apply([next(gradients) for _ in o.flat.parameters]) for o in optimizers]
