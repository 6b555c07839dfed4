"""Run a policy that `marl export` wrote, with numpy and safetensors alone.

This file needs nothing else and is written beside each policy.safetensors as policy.py; copy it wherever you like.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

FORMAT = 1
"""Changes whenever files of an older version can no longer be read."""


class Policy:
    """One agent's policy without exploration: `action = policy(obs)`; with a memory, `action, memory = policy(...)`.

    Attributes:
        about: what the file says of itself, the content of policy.json.
    """

    def __init__(self, path: str | Path) -> None:
        """Read a file; ValueError where it is no exported policy, or one of another version."""
        with safe_open(path, "numpy") as file:
            about = (file.metadata() or {}).get("policy")
            if about is None:
                raise ValueError(f"{path} is no exported policy: expected a file that `marl export` wrote")
            self.about = json.loads(about)
            if self.about["format"] != FORMAT:
                found = self.about["format"]
                raise ValueError(f"{path} is an exported policy of format {found}, this reader expects format {FORMAT}")
            self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def __call__(self, obs: Any, avail: Any = None, memory: Any = None) -> Any:
        """The actions for rows of observations.

        Args:
            obs: [B, D] numbers as the environment gave them.
            avail: [B, A] bool, which actions may be taken; None: all. Only where policy.json names this input.
            memory: [B, H], what the last call gave; None: zeros, as an episode begins. Likewise.

        Returns:
            [B] indices, or [B, A] numbers in [-1, 1]; and the next memory, if there is one.
        """
        x, inputs = np.asarray(obs, np.float32), self.about["inputs"]
        if x.ndim != 2 or x.shape[1] != inputs["obs"]["size"]:
            raise ValueError(f"obs: expected rows of {inputs['obs']['size']} numbers, got an array of shape {x.shape}")
        if "memory" in inputs and memory is None:
            memory = np.zeros((len(x), inputs["memory"]["size"]), np.float32)
        for i, layer in enumerate(self.about["layers"]):
            p = {name.split(".")[2]: t for name, t in self._tensors.items() if name.startswith(f"layers.{i}.")}
            if layer["kind"] == "gru":
                x = memory = _gru(x, memory, p)
            elif layer["kind"] == "conv":
                x = _conv(x.reshape(len(x), *layer.get("pixels", x.shape[1:])), p, layer["stride"])
            else:
                x = x.reshape(len(x), -1) @ p["weight"].T + p["bias"]
            if layer["then"] == "relu":
                x = np.maximum(x, 0)
            elif layer["then"] == "tanh":
                x = np.tanh(x)
            elif layer["then"] == "clip":
                x = np.clip(x, -1, 1)
        if "index" in self.about["output"]:
            x = (x if avail is None else np.where(avail, x, -1e9)).argmax(-1)
        return (x, memory) if "memory" in inputs else x


def _gru(x: np.ndarray, hidden: np.ndarray, p: dict[str, np.ndarray]) -> np.ndarray:
    """As torch.nn.GRUCell."""
    from_x, from_h = x @ p["weight_ih"].T + p["bias_ih"], hidden @ p["weight_hh"].T + p["bias_hh"]
    (reset, update, new), (h_reset, h_update, h_new) = np.split(from_x, 3, -1), np.split(from_h, 3, -1)
    reset, update = (1 / (1 + np.exp(-gate)) for gate in (reset + h_reset, update + h_update))
    new = np.tanh(new + reset * h_new)
    return new + update * (hidden - new)


def _conv(x: np.ndarray, p: dict[str, np.ndarray], stride: int) -> np.ndarray:
    """As torch.nn.Conv2d without padding: [B, in, H, W] -> [B, out, H', W']."""
    seen = np.lib.stride_tricks.sliding_window_view(x, p["weight"].shape[2:], (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bihwyx,oiyx->bohw", seen, p["weight"], optimize=True) + p["bias"][:, None, None]
