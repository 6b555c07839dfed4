"""Run a policy that `marl export` wrote, in whichever format.

This file is written beside each exported policy as policy.py; copy it wherever you like. It needs what the format needs
and nothing else: numpy and safetensors for policy.safetensors, torch for policy.pt2, onnxruntime for policy.onnx. Where
policy.json lies beside the policy, its checksum tells whether the file is whole.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

FORMAT = 1
"""Changes whenever files of an older version can no longer be read."""


class Policy:
    """One agent's policy without exploration: `action = policy(obs)`; with a memory, `action, memory = policy(...)`.

    Attributes:
        about: what the file says of itself, the content of policy.json but for the checksum.
    """

    def __init__(self, path: str | Path) -> None:
        """Read a file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is no exported policy, or damaged, or of another version, or its library cannot read it.
        """
        path = Path(path)
        if path.suffix not in KINDS:
            raise ValueError(f"{path}: expected a file that ends in {', '.join(KINDS)}")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        _check(path)
        self._file = KINDS[path.suffix](path)
        try:
            self.about = json.loads(self._file.about)
            found = self.about["format"]
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path} {NOT_OURS}") from None
        if type(found) is not int or found != FORMAT:  # 1.0 and True equal 1
            raise ValueError(f"{path} is an exported policy of format {found!r}, this reader expects format {FORMAT}")
        self._file.open(self.about)
        try:
            self(self._file.array([], "float32").reshape(0, self.about["inputs"]["obs"]["size"]))
        except Exception as error:  # of any kind: whatever it needs first may be missing
            raise ValueError(f"{path} {NOT_OURS}") from error

    def __call__(self, obs: Any, avail: Any = None, memory: Any = None) -> Any:
        """The actions for rows of observations; arrays of numpy, of policy.pt2 tensors of torch.

        Args:
            obs: [B, D] numbers as the environment gave them; B may be 0.
            avail: [B, A] bool, which actions may be taken; None: all. Only where policy.json names this input.
            memory: [B, H], what the last call gave; None: zeros, as an episode begins. Likewise.

        Returns:
            [B] indices, or [B, A] numbers in [-1, 1]; and the next memory, if there is one.

        Raises:
            ValueError: another shape, or an input that this policy has not.
        """
        wanted = self.about["inputs"]
        inputs = {"obs": self._rows("obs", obs)}
        rows = len(inputs["obs"])
        for name, value in (("avail", avail), ("memory", memory)):
            if name in wanted and value is None:
                value, size = name == "avail", wanted[name]["size"]
                inputs[name] = self._file.array([[value] * size] * rows, wanted[name]["type"]).reshape(rows, size)
            elif name in wanted:
                inputs[name] = self._rows(name, value, rows)
            elif value is not None:
                raise ValueError(f"{name}: this policy has no such input, it takes {' and '.join(wanted)}")
        action, memory = self._file.run(inputs)
        return action if memory is None else (action, memory)

    def _rows(self, name: str, value: Any, rows: int | None = None) -> Any:
        """An input as an array [rows, size]; None: any number of rows."""
        size, kind = self.about["inputs"][name]["size"], self.about["inputs"][name]["type"]
        expected = (
            f"expected {'' if rows is None else f'{rows} '}rows of {size} {'flags' if kind == 'bool' else 'numbers'}"
        )
        try:
            x = self._file.array(value, kind)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{name}: {expected}, got {type(value).__name__}") from None
        if x.ndim != 2 or x.shape[1] != size or rows not in (None, len(x)):
            raise ValueError(f"{name}: {expected}, got an array of shape {tuple(x.shape)}")
        return x


class Safetensors:
    """policy.safetensors: weights and a description, and numpy to compute with."""

    def __init__(self, path: Path) -> None:
        import numpy
        import safetensors

        self.numpy = numpy
        try:
            with safetensors.safe_open(path, "numpy") as file:
                self.about = (file.metadata() or {}).get("policy")
                self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError:
            self.about = None

    def open(self, about: dict[str, Any]) -> None:
        self.plan = about

    def array(self, value: Any, kind: str) -> Any:
        return self.numpy.asarray(value, kind)

    def run(self, inputs: dict[str, Any]) -> tuple[Any, Any]:
        np, x, memory = self.numpy, inputs["obs"], inputs.get("memory")
        for i, layer in enumerate(self.plan["layers"]):
            p = {name.split(".")[2]: t for name, t in self.tensors.items() if name.startswith(f"layers.{i}.")}
            if layer["kind"] == "gru":
                x = memory = self.gru(x, memory, p)
            elif layer["kind"] == "conv":
                x = self.conv(x.reshape(len(x), *layer.get("pixels", x.shape[1:])), p, layer["stride"])
            else:
                x = x.reshape(len(x), p["weight"].shape[1]) @ p["weight"].T + p["bias"]
            if layer["then"] == "relu":
                x = np.maximum(x, 0)
            elif layer["then"] == "tanh":
                x = np.tanh(x)
            elif layer["then"] == "clip":
                x = np.clip(x, -1, 1)
        if "index" in self.plan["output"]:
            x = np.where(inputs.get("avail", True), x, -1e9).argmax(-1)
        return x, memory

    def gru(self, x: Any, hidden: Any, p: dict[str, Any]) -> Any:
        """As torch.nn.GRUCell."""
        np = self.numpy
        from_x, from_h = x @ p["weight_ih"].T + p["bias_ih"], hidden @ p["weight_hh"].T + p["bias_hh"]
        (reset, update, new), (h_reset, h_update, h_new) = np.split(from_x, 3, -1), np.split(from_h, 3, -1)
        reset, update = (np.tanh(gate / 2) / 2 + 0.5 for gate in (reset + h_reset, update + h_update))  # sigmoids
        new = np.tanh(new + reset * h_new)
        return new + update * (hidden - new)

    def conv(self, x: Any, p: dict[str, Any], stride: int) -> Any:
        """As torch.nn.Conv2d without padding: [B, in, H, W] -> [B, out, H', W']."""
        np = self.numpy
        seen = np.lib.stride_tricks.sliding_window_view(x, p["weight"].shape[2:], (2, 3))[:, :, ::stride, ::stride]
        return np.einsum("bihwyx,oiyx->bohw", seen, p["weight"], optimize=True) + p["bias"][:, None, None]


class TorchExport:
    """policy.pt2: a program of torch.export. What it says of itself is read before torch is asked to."""

    def __init__(self, path: Path) -> None:
        self.path, self.about = path, None
        if not zipfile.is_zipfile(path):
            return
        try:
            with zipfile.ZipFile(path) as file:
                if broken := file.testzip():
                    raise zipfile.BadZipFile(f"{broken} in it has another checksum")
                names = [name for name in file.namelist() if name.endswith("extra/policy.json")]
                self.about = file.read(names[0]) if names else None
        except Exception as error:  # zipfile has many words for it
            raise ValueError(f"{path} is damaged: {_line(error)}") from error

    def open(self, about: dict[str, Any]) -> None:
        import torch

        self.torch = torch
        try:
            self.act = torch.export.load(self.path).module()
        except Exception as error:  # torch says in many ways that it is too old or too new
            written = f"{self.path} was written with torch {about.get('torch')}"
            raise ValueError(f"{written}, torch {torch.__version__} cannot read it: {_line(error)}") from error

    def array(self, value: Any, kind: str) -> Any:
        if any(stride < 0 for stride in getattr(value, "strides", ())):  # torch takes no array of numpy turned around
            value = value.copy()
        return self.torch.as_tensor(value, dtype=getattr(self.torch, kind))

    def run(self, inputs: dict[str, Any]) -> tuple[Any, Any]:
        answer = self.act(inputs.pop("obs"), **inputs)
        action, memory = answer if isinstance(answer, tuple | list) else (answer, None)
        return action, memory


class Onnx:
    """policy.onnx, and onnxruntime."""

    def __init__(self, path: Path) -> None:
        import numpy
        import onnxruntime

        self.numpy = numpy
        try:
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no name in common
            raise ValueError(f"{path}: onnxruntime {onnxruntime.__version__} cannot read it: {_line(error)}") from error
        self.about = self.session.get_modelmeta().custom_metadata_map.get("policy")

    def open(self, about: dict[str, Any]) -> None:
        pass

    def array(self, value: Any, kind: str) -> Any:
        return self.numpy.asarray(value, kind)

    def run(self, inputs: dict[str, Any]) -> tuple[Any, Any]:
        rows, padded = len(inputs["obs"]), inputs
        if rows == 0:  # of no rows ArgMax makes an array of another shape
            padded = {name: self.numpy.zeros((1, *x.shape[1:]), x.dtype) for name, x in inputs.items()}
        action, *memory = (x[:rows] for x in self.session.run(None, padded))
        return action, memory[0] if memory else None


def _check(path: Path) -> None:
    """Refuse a file that differs from what policy.json beside it says; alone, or from before checksums, it is taken."""
    beside = path.with_name("policy.json")
    try:
        expected = json.loads(beside.read_bytes())["sha256"][path.name]
    except (OSError, LookupError, TypeError):
        return
    except ValueError:
        raise ValueError(f"{beside} is damaged: expected JSON") from None
    if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        raise ValueError(f"{path} is damaged: its checksum differs from policy.json's")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


NOT_OURS = "is no exported policy: expected a file that `marl export` wrote"
KINDS: dict[str, Any] = {".safetensors": Safetensors, ".pt2": TorchExport, ".onnx": Onnx}
