"""What a program around marl may have chosen for its own use of torch, set aside while marl computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from marl.types import UserError


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Inside, gradients are taken, in full precision and on the CPU, whatever this thread has chosen for itself.

    Raises ``UserError`` for a default type other than float32: all threads share it, so it is the program's to change.
    """
    if (kind := torch.get_default_dtype()) is not torch.float32:
        raise UserError(f"torch's default dtype is {kind}, expected torch.float32; torch.set_default_dtype sets it")
    with contextlib.ExitStack() as stack:  # of what is needed only, for a step of a team is short
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        if torch.is_autocast_enabled("cpu"):
            stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
