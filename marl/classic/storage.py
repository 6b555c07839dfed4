"""Saved states: one ``.npz`` of arrays and JSON, whole or absent, with a checksum; loading one cannot run code.

The file's arrays are the state's, named ``a0``, ``a1``, ..., and ``json``, the UTF-8 text of everything else, in which
``{"array": "a0"}`` stands for an array, ``{"int": "0x1f"}`` for an integer beyond 64 bits and ``{"dict": {...}}`` for a
dictionary. The archive's comment is the checksum (BLAKE2b, 16 bytes) of all that comes before it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from marl.runfolder import write_atomically
from marl.types import State, UserError

DIGEST = 16
"""Bytes of the checksum."""


def save_state(path: Path, state: State) -> None:
    """Write a state whole or not at all.

    Raises:
        TypeError: a key is no string, or a leaf is neither a NumPy array nor a JSON value.
        OSError: the disk; what was there before stays.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    text = json.dumps(_encode(dict(state), "", arrays), separators=(",", ":"))
    file = io.BytesIO()
    np.savez(file, json=np.frombuffer(text.encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    # The last two bytes of a zip archive are the length of its comment, which is still empty.
    data = file.getvalue()
    write_atomically(path, data[:-2] + DIGEST.to_bytes(2, "little") + _digest(data))


def load_state(path: Path) -> State:
    """What ``save_state`` wrote; raises ``UserError`` where the file is absent, damaged or something else."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    data, end = content[: -DIGEST - 2] + bytes(2), content[-DIGEST - 2 :]
    if end != DIGEST.to_bytes(2, "little") + _digest(data):
        raise UserError(f"{path} fails its checksum")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        state: State = _decode(json.loads(arrays["json"].tobytes()), arrays)
        return state


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST).digest()


def _encode(node: Any, path: str, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    """``node`` as JSON values; its arrays go into ``arrays``."""
    if isinstance(node, np.ndarray) and not node.dtype.hasobject:
        name = f"a{len(arrays)}"
        arrays[name] = node
        return {"array": name}
    if isinstance(node, Mapping):
        for key in node:
            if not isinstance(key, str):
                raise TypeError(f"state at {path or '/'}: key {key!r} is not a string")
        return {"dict": {key: _encode(child, f"{path}/{key}", arrays) for key, child in node.items()}}
    if isinstance(node, list):
        return [_encode(child, f"{path}/{i}", arrays) for i, child in enumerate(node)]
    if isinstance(node, int) and not -(2**63) <= node < 2**63:
        return {"int": hex(node)}  # Python refuses decimal texts of many thousand digits
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise TypeError(f"state at {path or '/'}: {type(node).__name__} is neither a NumPy array nor a JSON value")


def _decode(node: Any, arrays: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_decode(child, arrays) for child in node]
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "dict":
        return {key: _decode(child, arrays) for key, child in value.items()}
    return arrays[value] if kind == "array" else int(value, 16)
