"""Experience replay by whole episodes, for learners that need to know how each moment came about."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from marl.envs.base import EnvSpec, Step
from marl.replay import Replay, take
from marl.types import Acted, EpisodeBatch, Schedule, State, View


class Episodes:
    """The whole episodes among the last ``capacity`` time slots of each member.

    A ``Replay`` holds what happened; here is noted only where episodes began and ended. One that lost a transition, was
    interrupted or is partly overwritten is not drawn.

    Args:
        slots: where transitions go.
        batch_size: episodes of a ``draw``, per member.
        schedule: when the loop draws.
    """

    def __init__(self, slots: Replay, batch_size: int, schedule: Schedule) -> None:
        if slots.spec.max_steps is None:
            raise ValueError(f"{slots.spec.id} has no time limit, so that its episodes may not fit into any buffer")
        self.slots, self.batch_size, self.schedule = slots, batch_size, schedule
        self.length = slots.spec.max_steps
        self.begun = torch.zeros(slots.members, slots.copies, dtype=torch.int64)  # the running episodes' first slots
        self.whole = torch.zeros(0, 4, dtype=torch.int64)  # member, copy, first slot, steps; in the order of ending
        self.ended: list[Tensor] = []  # likewise, those since the last draw

    @classmethod
    def of(cls, config: Any, spec: EnvSpec, copies: int, seeds: Sequence[int], memory_size: int) -> Episodes:
        """As a learner's configuration asks for: ``buffer_size``, ``batch_size``, ``warmup``, ``update_every``.

        There is room for two episodes of each copy at least, and the warm-up is long enough for ``batch_size`` of them.
        What the learner notes is not kept: it runs through the episodes anew.
        """
        limit = spec.max_steps or 0
        room = max(config.buffer_size, 2 * limit * copies)
        first = math.ceil(config.batch_size / copies) * limit * copies
        whole = dataclasses.replace(spec, stack=1)  # episodes are read slot by slot
        slots = Replay(room, whole, len(seeds), copies, seeds, with_state=True)
        return cls(slots, config.batch_size, Schedule(max(config.warmup, first), config.update_every))

    def __len__(self) -> int:
        """Transitions held for each member."""
        return len(self.slots)

    @property
    def written(self) -> int:
        """Time slots ever written."""
        return self.slots.written

    @property
    def capacity(self) -> int:
        """Time slots held at most."""
        return self.slots.capacity

    def add(self, view: View, acted: Acted, step: Step) -> None:
        """Store one time slot, and note the episodes that end with it."""
        now = self.slots.written
        self.slots.add(view, acted, step)
        ended = step.done.any(1)
        if ended.any():
            whole = ended if step.lost is None else ended & ~step.lost.any(1)
            member, copy = whole.nonzero(as_tuple=True)
            first = self.begun[member, copy]
            self.ended.append(torch.stack([member, copy, first, now + 1 - first], dim=-1))
            self.begun[ended] = now + 1

    def interrupt(self) -> None:
        """Say that the environment started anew: the running episodes will never be whole."""
        self.slots.interrupt()
        self.begun.fill_(self.slots.written)

    def draw(self) -> EpisodeBatch:
        """``batch_size`` episodes for each member, uniformly with replacement; nothing is ``filled`` if it has none."""
        whole = self._held()
        members, count = self.slots.members, self.batch_size
        picked = torch.tensor([0, self.slots.oldest, 0]).repeat(members, count, 1)  # copy, first slot, steps
        for p, generator in enumerate(self.slots.sampler.generators):
            own = whole[whole[:, 0] == p, 1:]
            if len(own):
                picked[p] = own[torch.randint(len(own), (count,), generator=generator)]
        return self._read(*picked.unbind(-1))

    def _held(self) -> Tensor:
        """The index of whole episodes, less those of which the ring no longer holds the first slot."""
        whole = torch.cat([self.whole, *self.ended])
        self.whole = whole[whole[:, 2] >= self.slots.oldest]
        self.ended = []
        return self.whole

    def _read(self, copy: Tensor, first: Tensor, steps: Tensor) -> EpisodeBatch:
        """The episodes given by ``[P, B]`` numbers each."""
        slots, time = self.slots, torch.arange(self.length + 1)[:, None]
        final = time >= steps.unsqueeze(1)  # [P, T + 1, B]
        last = (steps - 1).clamp(min=0).unsqueeze(1)
        slot = (first.unsqueeze(1) + torch.minimum(time, last)) % slots.ring
        row = (slot * slots.members + torch.arange(slots.members).view(-1, 1, 1)) * slots.copies + copy.unsqueeze(1)
        seen = {name: take(ring, row) for name, ring in slots.seen.items()}
        number = take(slots.finals.at, row[:, -1]).long()
        for name, x in seen.items():
            end = slots.finals.get(name, number).unsqueeze(1)
            seen[name] = torch.where(final.view(*final.shape, *[1] * (x.dim() - 3)), end, x)
        moves = {name: take(ring, row[:, :-1]) for name, ring in slots.moves.items() if name != "left"}
        if slots.spec.discrete:
            moves["action"] = moves["action"].long()
        seen["obs"] = seen["obs"].float()
        found = {name: x if name == "state" else x.movedim(3, 1) for name, x in (seen | moves).items()}
        return EpisodeBatch(filled=~final[:, :-1], **found)

    def read(self, start: int, stop: int) -> dict[str, Tensor]:
        """See ``Journal``."""
        return self.slots.read(start, stop)

    def restore(self, chunks: Iterable[tuple[int, dict[str, Tensor]]]) -> None:
        """See ``Journal``."""
        self.slots.restore(chunks)

    def state_dict(self) -> State:
        """Everything but the time slots."""
        return {"slots": self.slots.state_dict(), "begun": self.begun.clone(), "whole": self._held().clone()}

    def load_state_dict(self, state: State) -> None:
        """To be called before ``restore``."""
        self.slots.load_state_dict(state["slots"])
        self.begun, self.whole, self.ended = state["begun"].clone(), state["whole"].clone(), []
