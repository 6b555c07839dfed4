"""The hub: every task that any agent ever met, how to recognise it, and what was learnt of it.

After DistMT's deep agent (Section 4 of the paper): an agent trains a small network, SimNet, on the task before it, and
its weights are the task's fingerprint. The hub compares them with those it has; a match returns the network and the
replay of whoever learnt the task.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from marl.lifelong.codec import pack, raw_size, unpack
from marl.lifelong.store import Entry, Store
from marl.types import UserError

log = logging.getLogger("marl")

Layout = list[tuple[str, tuple[int, ...]]]


class Match(NamedTuple):
    """A task of the hub.

    Attributes:
        task: its number.
        distance: between the two fingerprints; 0 for a new task.
        learnt: somebody has published what was learnt of it.
        new: the hub had nothing like it, and has it from now on.
    """

    task: int
    distance: float
    learnt: bool
    new: bool = False


class Knowledge(NamedTuple):
    """What was learnt of a task, as it was published.

    Attributes:
        network: the learner's tensors.
        transitions: its replay, ``[n, ...]`` each; None: evicted (see ``Hub``).
        score: as the learner measured it.
        agent: who learnt it.
    """

    network: dict[str, Tensor]
    transitions: dict[str, Tensor] | None
    score: float
    agent: str


class Traffic(NamedTuple):
    """Bytes between one agent and the hub: tensors only, compressed as they travel and raw as they lie in memory."""

    sent: int = 0
    sent_raw: int = 0
    received: int = 0
    received_raw: int = 0


class Hub:
    """A registry of tasks in a folder, shared by any number of threads and processes; each process opens its own.

    What a method has returned from is on the disk and survives any kill. Whatever is read is checked against a SHA-256
    checksum; what does not pass is dropped with one warning line, and its task is to be learnt anew.

    Args:
        folder: made if need be.
        threshold: a task is recognised up to this distance, inclusive.
        limit_bytes: what all replays together may take on disk, compressed; None: no limit. After each publication the
            replays that were published or fetched longest ago go until the rest fits, and a replay that is too large
            by itself is not kept at all. Networks and fingerprints always stay.

    Raises:
        UserError: the threshold makes no sense, or the folder cannot be written.
    """

    def __init__(self, folder: Path, threshold: float, limit_bytes: int | None = None) -> None:
        if not (math.isfinite(threshold) and threshold >= 0):
            raise UserError(f"threshold of the hub: expected a finite number, 0 or more, got {threshold}")
        self.folder, self.threshold, self.limit_bytes = folder, threshold, limit_bytes
        self._store = Store(folder)
        self._tasks: list[int] = []  # of the rows of self._known
        self._known = torch.empty(0, 0)
        self._layout: Layout | None = None
        self._seen = 0  # highest task read
        with self._store.transaction():
            self._learn_fingerprints()  # now, so that the first question is not slower than others

    def __reduce__(self) -> tuple[type[Hub], tuple[Path, float, int | None]]:
        """A process that receives a hub opens its own on the same folder."""
        return Hub, (self.folder, self.threshold, self.limit_bytes)

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._store.close()

    def __len__(self) -> int:
        """How many tasks it knows."""
        with self._store.transaction():
            return len(self._store.entries())

    def query(self, fingerprint: Mapping[str, Tensor]) -> Match | None:
        """The nearest task within the threshold, the first met of equally near ones; None: the task is new.

        The distance of two fingerprints is the sum over their tensors of the Euclidean norm of the difference. To ask
        changes nothing and counts as no traffic.

        Args:
            fingerprint: float32 tensors, alike in names and shapes for all tasks of a hub.

        Raises:
            UserError: the names or shapes are others, or a number is not finite.
        """
        with self._store.transaction():
            return self._nearest(fingerprint)

    def meet(self, fingerprint: Mapping[str, Tensor], agent: str) -> Match:
        """As ``query``, and in the same moment register the task if it is new: no two agents can both do that.

        Raises:
            UserError: see ``query``.
        """
        packed = pack(fingerprint)
        with self._store.transaction():
            self._store.add_traffic(agent, sent=(len(packed), raw_size(fingerprint)))
            match = self._nearest(fingerprint)
            if match is None:
                match = Match(self._store.next_task(), 0.0, learnt=False, new=True)
                self._store.put(Entry(match.task, agent, packed))
            return match

    def publish(
        self, task: int, network: Mapping[str, Tensor], transitions: Mapping[str, Tensor], score: float, agent: str
    ) -> bool:
        """Share what was learnt. Of several publications the one with the highest score stays, the first of equals.

        Args:
            task: from ``meet``.
            network: the learner's tensors.
            transitions: ``obs``, ``action``, ``reward``, ``next_obs``, ``terminated`` or whatever the learners agree
                on, ``[n, ...]`` each. In the order of time, one copy of the environment after the other, they compress
                several times better than shuffled.
            score: on one scale for all agents, for example the return per episode.
            agent: who learnt it.

        Returns:
            Whether it was kept: network, transitions, score and agent replace those of before, all or none.

        Raises:
            UserError: the score is not finite, or the disk is full.
        """
        if not math.isfinite(score):
            raise UserError(f"score of task {task} by {agent}: expected a finite number, got {score}")
        files = {"network": pack(network), "replay": pack(transitions)}
        store = self._store
        with store.transaction():
            sent = sum(len(data) for data in files.values())
            store.add_traffic(agent, sent=(sent, raw_size(network) + raw_size(transitions)))
            entry = store.entry(task)
            if entry is None:
                log.warning("hub %s: task %s is not known; what %s learnt of it is not kept", store.folder, task, agent)
            if entry is None or entry.score >= score:
                return False
            fits = self.limit_bytes is None or len(files["replay"]) <= self.limit_bytes
            entry = entry.unlearnt()._replace(
                network=store.write(task, "network", files["network"]),
                replay=store.write(task, "replay", files["replay"]) if fits else None,
                replay_size=len(files["replay"]) if fits else 0,
                score=float(score),
                learner=agent,
                used=store.next_use(),
            )
            store.put(entry)
            self._evict()
            return True

    def fetch(self, task: int, agent: str) -> Knowledge | None:
        """What was learnt of a task; None: nobody has learnt it, or what there was is damaged and dropped now.

        Args:
            task: from ``meet`` or ``query``.
            agent: who asks, for the account.
        """
        store = self._store
        with store.transaction():
            entry = store.entry(task)
            if entry is None or entry.network is None:
                return None
            network = store.read(entry.network)
            replay = store.read(entry.replay) if entry.replay else None
            if network is None or (replay is None and entry.replay):
                store.put(entry.unlearnt())
                bad = entry.network if network is None else entry.replay
                message = "hub %s: task %s: %s is damaged or gone; what %s learnt is dropped, to be learnt anew"
                log.warning(message, store.folder, task, bad, entry.learner)
                return None
            store.put(entry._replace(used=store.next_use()))
        knowledge = Knowledge(unpack(network), unpack(replay) if replay else None, entry.score, entry.learner)
        with store.transaction():
            raw = raw_size(knowledge.network) + raw_size(knowledge.transitions or {})
            store.add_traffic(agent, received=(len(network) + len(replay or b""), raw))
        return knowledge

    def traffic(self) -> dict[str, Traffic]:
        """For every agent, the bytes of its meetings, publications (kept or not) and fetches since the hub exists."""
        with self._store.transaction():
            return {agent: Traffic(*counts) for agent, *counts in self._store.traffic()}

    # ---- inside a transaction -------------------------------------------------------------------------------------

    def _nearest(self, fingerprint: Mapping[str, Tensor]) -> Match | None:
        self._learn_fingerprints()
        asked = self._vector(fingerprint)
        while self._tasks:
            assert self._layout is not None
            parts = (self._known - asked).split([math.prod(shape) for _, shape in self._layout], dim=1)
            distances = torch.stack([torch.linalg.vector_norm(part, dim=1) for part in parts]).sum(0)
            row = int((distances == distances.min()).nonzero()[0])
            if float(distances[row]) > self.threshold:
                return None
            entry = self._store.entry(self._tasks[row])
            if entry is not None:
                return Match(entry.task, float(distances[row]), learnt=entry.network is not None)
            del self._tasks[row]  # forgotten since it was read
            self._known = torch.cat([self._known[:row], self._known[row + 1 :]])
        return None

    def _learn_fingerprints(self) -> None:
        """Read those of the tasks that other processes have registered since."""
        entries = self._store.entries(after=self._seen)
        if entries:
            fingerprints = [unpack(entry.fingerprint) for entry in entries]
            self._layout = self._layout or _layout(fingerprints[0])
            rows = torch.stack([self._vector(fingerprint) for fingerprint in fingerprints])
            self._known = torch.cat([self._known, rows]) if self._tasks else rows
            self._tasks += [entry.task for entry in entries]
            self._seen = entries[-1].task

    def _vector(self, fingerprint: Mapping[str, Tensor]) -> Tensor:
        """All numbers of a fingerprint, the tensors in the order of their names."""
        layout = _layout(fingerprint)
        if layout != (self._layout or layout):
            known = _text(self._layout or [])
            raise UserError(f"fingerprint: expected {known}, as the hub's tasks have, got {_text(layout)}")
        vector = torch.cat([fingerprint[name].detach().reshape(-1).float().cpu() for name, _ in layout])
        if not bool(vector.isfinite().all()):
            raise UserError("fingerprint: expected finite numbers, got NaN or infinity")
        return vector

    def _evict(self) -> None:
        if self.limit_bytes is None:
            return
        holders = sorted((e for e in self._store.entries() if e.replay is not None), key=lambda entry: entry.used)
        total = sum(entry.replay_size for entry in holders)
        for entry in holders:
            if total <= self.limit_bytes:
                break
            self._store.put(entry._replace(replay=None, replay_size=0))
            total -= entry.replay_size


def _layout(fingerprint: Mapping[str, Tensor]) -> Layout:
    return [(name, tuple(fingerprint[name].shape)) for name in sorted(fingerprint)]


def _text(layout: Layout) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in layout)
