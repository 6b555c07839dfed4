"""What travels between processes: pickled, with tensors as NumPy has them."""

from __future__ import annotations

import io
import pickle
import sys
from typing import Any

import numpy as np


def dumps(what: Any) -> bytes:
    """Pickled, with tensors as the numbers that they show.

    torch's own pickles are slower, hold the whole tensor of which one is a view, and cannot be read back where numbers
    are uint16, uint32 or uint64.
    """
    stream = io.BytesIO()
    _Pickler(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(what)
    return stream.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, what: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is not None and type(what) is torch.Tensor:
            try:
                return _tensor, (what.numpy(),)
            except (RuntimeError, TypeError):  # what numpy does not have: gradients, bfloat16, devices
                pass
        return NotImplemented


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array)
