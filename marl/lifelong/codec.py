"""A dictionary of tensors as few bytes: lossless, and decoding it can run no code.

The bytes are zlib around safetensors. Before that, two things that make replays small:

- Each tensor is written column by column: first the first byte of every row, then the second, and so on. Between
  consecutive frames a byte of a game's memory seldom changes, so that a column is mostly runs of equal bytes.
- ``next_obs`` is written as its difference (exclusive or) from the following row of ``obs``: zeros, except where an
  episode ended or the order of time was not kept.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """The compressed bytes of ``tensors``, of any shapes and types; rows are the first dimension."""
    coded = {name: _as(t, _columns(_bytes(name, tensors))) for name, t in tensors.items()}
    return zlib.compress(safetensors.torch.save(coded))


def unpack(data: bytes) -> dict[str, Tensor]:
    """The inverse of ``pack``, to the bit. The caller has checked that ``data`` is what ``pack`` returned."""
    coded = safetensors.torch.load(zlib.decompress(data))
    tensors = {name: _as(t, _rows(t)) for name, t in coded.items()}
    if _has_successors(tensors):
        tensors["next_obs"] = _as(tensors["next_obs"], _difference(tensors))
    return tensors


def raw_size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors as they lie in memory."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _bytes(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """What is stored of a tensor, ``[rows, bytes of a row]`` uint8."""
    return _difference(tensors) if name == "next_obs" and _has_successors(tensors) else _grid(tensors[name])


def _has_successors(tensors: Mapping[str, Tensor]) -> bool:
    obs, next_obs = tensors.get("obs"), tensors.get("next_obs")
    return obs is not None and next_obs is not None and (obs.shape, obs.dtype) == (next_obs.shape, next_obs.dtype)


def _difference(tensors: Mapping[str, Tensor]) -> Tensor:
    """``next_obs[t] ^ obs[t + 1]``, the last row against the first; it undoes itself. ``[rows, bytes of a row]``."""
    return _grid(tensors["next_obs"]) ^ _grid(tensors["obs"]).roll(-1, 0)


def _grid(tensor: Tensor) -> Tensor:
    """``[rows, bytes of a row]`` uint8; a tensor without dimensions, or without content, is one row."""
    rows = tensor.shape[0] if tensor.dim() and tensor.numel() else 1
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).view(rows, -1)


def _columns(grid: Tensor) -> Tensor:
    return grid.t()


def _rows(coded: Tensor) -> Tensor:
    """The inverse of ``_columns``, from a tensor of the original shape."""
    grid = _grid(coded)
    return grid.view(grid.shape[1], grid.shape[0]).t()


def _as(tensor: Tensor, grid: Tensor) -> Tensor:
    """The bytes of ``grid`` in the type and shape of ``tensor``."""
    return grid.reshape(-1).view(tensor.dtype).view(tensor.shape)
