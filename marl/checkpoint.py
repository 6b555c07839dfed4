"""Checkpoints: tensors and JSON in files that are whole or absent, each with a checksum.

A folder of checkpoints holds, for the checkpoint of step 2000::

    000000002000.json                           the manifest, written last: the state's JSON, and the files it needs
    000000002000-<digest>.safetensors           the state's tensors
    replay-<start>-<stop>-<digest>.safetensors  time slots of the replay buffer; several checkpoints may share one

Loading reads numbers and text; nothing in these files can run code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from marl.runfolder import explain_disk_errors, size, write_atomically
from marl.types import Journal, State, UserError

FORMAT = 2
"""Changes whenever files of an older version can no longer be read."""

_OURS = re.compile(r"(\d{12}|replay)[-\w]*\.(json|safetensors)(\.tmp)?")


def flatten(state: State) -> tuple[dict[str, Tensor], State]:
    """Split a state into its tensors, by path, and its JSON values, in which every tensor is replaced by None.

    A path is a JSON pointer (RFC 6901): ``/actor/weight``, with ``~0`` for a tilde and ``~1`` for a slash inside a key.

    Raises:
        TypeError: a key is no string, or a leaf is neither a tensor nor a JSON value.
    """
    tensors: dict[str, Tensor] = {}

    def split(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            tensors[path] = node
            return None
        if isinstance(node, Mapping):
            for key in node:
                if not isinstance(key, str):
                    raise TypeError(f"state at {path or '/'}: key {key!r} is not a string")
            return {key: split(child, f"{path}/{_escape(key)}") for key, child in node.items()}
        if not _is_json(node):
            raise TypeError(f"state at {path}: {type(node).__name__} is neither a tensor nor a JSON value")
        return node

    return tensors, split(dict(state), "")


def unflatten(tensors: Mapping[str, Tensor], values: State) -> State:
    """The inverse of ``flatten``; raises ``KeyError`` for a path that ``values`` does not have."""

    def copy(node: Any) -> Any:
        return {key: copy(child) for key, child in node.items()} if isinstance(node, dict) else node

    state: State = copy(values)
    for path, tensor in tensors.items():
        *parents, name = [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]
        node = state
        for part in parents:
            node = node[part]
        if node[name] is not None:
            raise KeyError(path)
        node[name] = tensor
    return state


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _is_json(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str) or _is_json_list(value)


def _is_json_list(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_json, value))


class File(NamedTuple):
    """A file that a checkpoint needs. ``start``, ``stop``: the replay's slots in it (0, 0 for the state's tensors)."""

    name: str
    bytes: int
    digest: str
    start: int = 0
    stop: int = 0


class Manifest(NamedTuple):
    """One checkpoint's list of files; ``segments`` are those of the replay, ascending."""

    step: int
    tensors: File
    segments: list[File]

    def names(self) -> list[str]:
        """Every file of this checkpoint, the manifest first."""
        return [f"{self.step:012d}.json", self.tensors.name, *(segment.name for segment in self.segments)]


class Loaded(NamedTuple):
    """What a checkpoint held. ``chunks``: for ``Journal.restore``, read one file at a time."""

    step: int
    state: State
    chunks: Iterator[tuple[int, dict[str, Tensor]]]


class _Damaged(Exception):
    """Why a checkpoint cannot be used."""


class Checkpoints:
    """The checkpoints of one run.

    ``save`` belongs to the process that holds the run's lock; ``load`` only reads, so that any process may call it.

    Args:
        folder: made at the first ``save``.
        keep: how many checkpoints stay; older ones are deleted once a newer one is complete.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder.absolute()  # of now, wherever the process goes later
        self.keep = keep
        self._kept: list[Manifest] = []

    @classmethod
    def of(cls, run: Path) -> Checkpoints:
        """Those in a run's folder."""
        return cls(run / "checkpoints")

    def save(self, step: int, state: State, journal: Journal | None = None) -> Path:
        """Write the checkpoint of ``step`` and return its manifest's path.

        It is complete once its manifest has its final name; whatever happens before, the previous one stays the newest.
        The replay's slots go into one new file that holds those since the previous checkpoint, at most ``capacity``.

        Raises:
            UserError: the disk is full or cannot be written to; nothing of this attempt stays, the last one does. Or
                the last one is gone, since the folder was moved, deleted or emptied; it is not made again.
        """
        with explain_disk_errors(self.folder, f"the checkpoint of step {step} was not written"):
            self._require_home()
        files: dict[str, bytes] = {}
        segments = self._segments(journal, files) if journal is not None else []
        tensors, values = flatten(state)
        manifest = Manifest(step, _pack(f"{step:012d}", tensors, files), segments)
        path = self.folder / manifest.names()[0]
        files[path.name] = _manifest_text(manifest, values)

        kept = f"the checkpoint of step {self._kept[-1].step} is kept" if self._kept else "there is no earlier one"
        needed = size(sum(map(len, files.values())))
        with explain_disk_errors(self.folder, f"the checkpoint of step {step} needs {needed}; {kept}"):
            try:
                if not self._kept:
                    self.folder.mkdir(parents=True, exist_ok=True)
                for name, data in files.items():
                    write_atomically(self.folder / name, data)
            except OSError:
                self._prune()
                raise
        self._kept = [*(m for m in self._kept if m.step != step), manifest][-self.keep :]
        self._prune()
        return path

    def load(self, replay: bool = True) -> Loaded:
        """The newest checkpoint whose files are all whole. A ``save`` after it goes on from there.

        A damaged one is passed over, and the log says so in one line.

        Args:
            replay: False: the replay's files are not looked at, ``chunks`` is empty, and no ``save`` may follow.

        Raises:
            UserError: there is none, or none that can be used.
        """
        reasons: list[str] = []
        paths = self._manifests()
        for path in reversed(paths):
            try:
                manifest, values = _read_manifest(path)
                state = unflatten(_unpack(self.folder, manifest.tensors), values)
                segments = manifest.segments if replay else []
                for segment in segments:
                    _verify(self.folder, segment)
            except _Damaged as error:
                reasons.append(f"checkpoint {path.name} cannot be used ({error})")
                continue
            if reasons:
                message = "%s: %s; going on from the checkpoint of step %d"
                logging.getLogger("marl").warning(message, self.folder, "; ".join(reasons), manifest.step)
            if replay:
                self._kept = [*self._older(paths[: paths.index(path)]), manifest][-self.keep :]
            return Loaded(manifest.step, state, self._chunks(segments))
        raise UserError(f"{self.folder}: " + ("; ".join(reasons) or "no checkpoint was saved here"))

    def newest(self) -> int | None:
        """The step of the newest checkpoint, whether it can be used or not; None where there is none."""
        paths = self._manifests()
        return int(paths[-1].stem) if paths else None

    def _require_home(self) -> None:
        """Raise ``UserError`` unless the folder is still that of the last ``save``, or one where nothing was saved."""
        if not self._kept:
            if self._manifests():
                raise UserError(
                    f"{self.folder} already holds checkpoints of another run; to go on with it: marl resume"
                )
        elif not self._has(self._kept[-1].tensors):
            raise UserError(
                f"{self.folder.parent}: the checkpoint of step {self._kept[-1].step} is gone from where it was; "
                "its folder was moved, deleted or emptied, and the run can go on where it is now"
            )

    def _has(self, file: File) -> bool:
        try:
            (self.folder / file.name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _manifests(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]" * 12 + ".json"))

    def _older(self, paths: list[Path]) -> Iterator[Manifest]:
        """Manifests that can be read; their files stay until newer checkpoints replace them."""
        for path in paths:
            try:
                yield _read_manifest(path)[0]
            except _Damaged:
                continue

    def _chunks(self, segments: list[File]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        return ((segment.start, _unpack(self.folder, segment)) for segment in segments)

    def _segments(self, journal: Journal, files: dict[str, bytes]) -> list[File]:
        """The segments that cover what the buffer holds; the slots that are in none yet are added to ``files``."""
        old = self._kept[-1].segments if self._kept else []
        old = old if all(map(self._has, old)) else []  # somebody deleted one; the buffer has it all
        oldest = max(journal.written - journal.capacity, 0)
        start = max(old[-1].stop if old else 0, oldest)
        segments = [segment for segment in old if segment.stop > oldest]
        if journal.written > start:
            name = f"replay-{start:012d}-{journal.written:012d}"
            packed = _pack(name, journal.read(start, journal.written), files)
            segments.append(packed._replace(start=start, stop=journal.written))
        return segments

    def _prune(self) -> None:
        """Delete every file of ours that no kept checkpoint needs; manifests go first, so that none lacks a file."""
        needed = {name for manifest in self._kept for name in manifest.names()}
        paths = [path for path in self.folder.glob("*") if _OURS.fullmatch(path.name) and path.name not in needed]
        for path in sorted(paths, key=lambda path: path.suffix != ".json"):
            path.unlink(missing_ok=True)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _pack(stem: str, tensors: Mapping[str, Tensor], files: dict[str, bytes]) -> File:
    """Add the tensors' file to ``files``. Its name holds its digest: a name never stands for two contents."""
    # A fresh copy of each, because safetensors refuses tensors that share memory or are not contiguous.
    copies = {
        name: torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format).copy_(tensor.detach())
        for name, tensor in tensors.items()
    }
    data = safetensors.torch.save(copies)
    digest = _digest(data)
    name = f"{stem}-{digest[:8]}.safetensors"
    files[name] = data
    return File(name, len(data), digest)


def _read(folder: Path, name: str) -> bytes:
    if Path(name).name != name:
        raise _Damaged(f"{name!r} is not a file name")
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise _Damaged(f"{name}: {error.strerror}") from None


def _verify(folder: Path, file: File) -> bytes:
    data = _read(folder, file.name)
    if len(data) != file.bytes:
        raise _Damaged(f"{file.name} has {len(data)} bytes instead of {file.bytes}")
    if _digest(data) != file.digest:
        raise _Damaged(f"{file.name} fails its checksum")
    return data


def _unpack(folder: Path, file: File) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(_verify(folder, file))
    except safetensors.SafetensorError as error:
        raise _Damaged(f"{file.name}: {error}") from None


def _manifest_text(manifest: Manifest, values: State) -> bytes:
    body = {
        "step": manifest.step,
        "tensors": manifest.tensors._asdict(),
        "segments": [segment._asdict() for segment in manifest.segments],
        "values": values,
    }
    text = json.dumps(body, separators=(",", ":"))
    return json.dumps(
        {"format": FORMAT, "digest": _digest(text.encode()), "body": body}, separators=(",", ":")
    ).encode()


def _read_manifest(path: Path) -> tuple[Manifest, State]:
    try:
        content = json.loads(_read(path.parent, path.name))
        if content["format"] != FORMAT:
            raise _Damaged(f"its format is {content['format']}, this version of marl reads format {FORMAT}")
        body = content["body"]
        if _digest(json.dumps(body, separators=(",", ":")).encode()) != content["digest"]:
            raise _Damaged(f"{path.name} fails its checksum")
        segments = [File(**segment) for segment in body["segments"]]
        return Manifest(body["step"], File(**body["tensors"]), segments), body["values"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _Damaged(f"{path.name} is not a manifest") from None
