"""Numpy values and generators as what a checkpoint holds: tensors and JSON values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl.types import State


def generator_state(generator: np.random.Generator | np.random.RandomState) -> State:
    """The state of a numpy generator as tensors and JSON values."""
    if isinstance(generator, np.random.RandomState):
        return pack(generator.get_state(legacy=False))
    return pack(generator.bit_generator.state)


def load_generator(generator: np.random.Generator | np.random.RandomState, state: State) -> None:
    """The inverse of ``generator_state``; the generator must be of the same kind."""
    if isinstance(generator, np.random.RandomState):
        generator.set_state(unpack(state))
    else:
        generator.bit_generator.state = unpack(state)


def pack(value: Any) -> Any:
    """Numpy arrays to tensors and numpy numbers to Python's, inside dictionaries and lists too, all copied."""
    if isinstance(value, dict):
        return {key: pack(v) for key, v in value.items()}
    if isinstance(value, list):
        return [pack(v) for v in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return value.item() if isinstance(value, np.generic) else value


def unpack(value: Any) -> Any:
    """Tensors back to numpy arrays, inside dictionaries and lists too, all copied."""
    if isinstance(value, dict):
        return {key: unpack(v) for key, v in value.items()}
    if isinstance(value, list):
        return [unpack(v) for v in value]
    return value.numpy().copy() if isinstance(value, Tensor) else value
