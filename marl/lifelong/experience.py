"""Replays as bundles of tensors: one member's for the hub, whole ones for a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from marl.algos.dqn import DQNConfig
from marl.envs.base import EnvSpec
from marl.lifelong.abreast import joined
from marl.replay import Replay
from marl.types import Batch, State

_HEAD = "head_"
_WHOSE = {"final": "ended", "older": "begun"}
"""Tensors whose names begin so have a row for each copy of each slot that is marked there."""


def extract(replay: Replay, member: int, newest: int | None = None) -> dict[str, Tensor]:
    """What a replay holds of one member, in the order of time: ``[T, 1, E, ...]``, what was seen stored once.

    All of it, or the ``newest`` so many transitions, in whole steps of all copies.

    ``head_obs`` is what was seen after the last step, ``final_obs`` what at episodes' ends. Of stacked frames each is
    there once; ``older_frames`` are those before an episode's first one.
    """
    first = replay.oldest
    if newest is not None:
        first = max(first, replay.written - max(newest // replay.copies, 1))
    slots = replay.read(first, replay.written)
    part = slice(member, member + 1)
    result = {}
    for name, x in slots.items():
        marks = _WHOSE.get(name.partition("_")[0])
        result[name] = x[:, part].contiguous() if marks is None else x[slots[marks].nonzero()[:, 1] == member]
    now = replay.written % replay.ring
    return result | {_HEAD + name: ring[now, part].clone() for name, ring in replay.seen.items()}


def restored(bundle: Mapping[str, Tensor], config: DQNConfig, spec: EnvSpec, seed: int) -> Replay:
    """A replay of one member that holds what ``extract`` took, to be sampled from a stream of its own."""
    slots, _, copies = bundle["reward"].shape[:3]
    config = dataclasses.replace(config, buffer_size=slots * copies)
    replay = Replay.of(config, spec, copies, [seed], 0)
    head = {name: bundle[_HEAD + name] for name in replay.seen}
    replay.load_state_dict(replay.state_dict() | {"written": slots, "head": head})
    replay.restore([(0, dict(bundle))])
    return replay


def save_replay(replay: Replay) -> State:
    """Everything in it, as one state."""
    slots = replay.read(replay.oldest, replay.written)
    return {"state": replay.state_dict(), "start": replay.oldest, "slots": slots}


def load_replay(replay: Replay, state: State) -> None:
    """The inverse of ``save_replay``, into a new replay of the same kind."""
    replay.load_state_dict(state["state"])
    replay.restore([(state["start"], state["slots"])])


def in_order(batches: Sequence[Batch], order: Sequence[int]) -> Batch:
    """Several replays' batches as one: row k of all their members together is agent ``order[k]``'s."""
    place = torch.tensor(order).argsort()
    if len(batches) == 1 and place.tolist() == list(range(len(place))):
        return batches[0]
    fields = (joined(parts) for parts in zip(*batches, strict=True))
    return Batch(*(x if x is None else x[place] for x in fields))  # type: ignore[arg-type]


def parted(batch: Batch, parts: int) -> list[Batch]:
    """A batch as so many equal ones, one part of its rows after the other."""
    shares = (parts * [None] if x is None else x.chunk(parts, 2) for x in batch)
    return [Batch(*fields) for fields in zip(*shares, strict=True)]
