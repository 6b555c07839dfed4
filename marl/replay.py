"""Experience replay: a ring of time slots in which everything that is seen is stored once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from marl.envs.base import EnvSpec, Step
from marl.streams import Streams
from marl.types import Acted, Batch, Schedule, State, UserError, View


class Replay:
    """The last ``capacity`` transitions of each member.

    Slot t holds what the P x E copies did at time t; the successor of what slot t saw is what slot t + 1 saw, except
    where an episode ended: what was seen last lies in a side table. Agents of one copy are sampled together.

    Of stacked frames (``spec.stack``) a slot keeps the newest one. What is drawn is put together from the slots before
    and, near an episode's beginning, from the older frames of its first stack, which lie in a side table too. The ring
    has as many slots more as the oldest stack needs.

    Memory per transition and agent: 4 D + 4 A + 6 bytes (discrete: 4 D + 7; 1 less of an agent alone; A more where
    actions are masked, 4 H more where the learner notes something; D in place of 4 D where observations are bytes,
    float32 when drawn; one frame in place of D where they are stacked), and 4 bytes per copy and slot (4 S more with
    the global state, 4 more with stacks), plus what is seen once more for every episode end and beginning of a stack.

    Args:
        capacity: transitions per member; rounded down to whole time slots of E.
        spec: the environment's.
        members: P.
        copies: E.
        seeds: one per member, for sampling.
        memory_size: H, what the learner notes beside its action; 0: nothing.
        with_state: store the global state too, where the environment has one.
        batch_size: transitions of a ``draw``.
        n_step: with more than 1, a batch tells the rewards of so many steps (``Batch.rewards``), read from the ring.
        schedule: when the loop draws; None: at every step.
    """

    def __init__(
        self,
        capacity: int,
        spec: EnvSpec,
        members: int,
        copies: int,
        seeds: Sequence[int],
        *,
        memory_size: int = 0,
        with_state: bool = False,
        batch_size: int = 256,
        n_step: int = 1,
        schedule: Schedule | None = None,
    ) -> None:
        self.capacity = max(capacity // copies, 1)
        self.ring = self.capacity + spec.stack  # the slot being written holds the newest successor
        self.members, self.copies, self.spec = members, copies, spec
        self.batch_size, self.n_step, self.schedule = batch_size, n_step, schedule or Schedule(0, 1)
        grid = (self.ring, members, copies)
        n, self.frame = spec.n_agents, spec.obs_size // spec.stack
        self.seen = {"obs": torch.zeros(*grid, n, self.frame, dtype=torch.uint8 if spec.bytes else torch.float32)}
        if spec.masked:
            self.seen["avail"] = torch.zeros(*grid, n, spec.action_size, dtype=torch.bool)
        if with_state and spec.state_size:
            self.seen["state"] = torch.zeros(*grid, spec.state_size)
        index_dtype = torch.uint8 if spec.action_size <= 256 else torch.int32
        action_dtype = index_dtype if spec.discrete else torch.float32
        self.moves = {
            "action": torch.zeros(*grid, n, *([] if spec.discrete else [spec.action_size]), dtype=action_dtype),
            "reward": torch.zeros(*grid, n),
            "terminated": torch.zeros(*grid, n, dtype=torch.bool),
        }
        if memory_size:
            self.moves["memory"] = torch.zeros(*grid, n, memory_size)
        if n > 1:  # one alone cannot leave an episode that goes on
            self.moves["left"] = torch.zeros(*grid, n, dtype=torch.bool)
        self.left = torch.zeros(members, n, copies, dtype=torch.bool)  # who is gone from the running episodes
        self.finals = Rare(grid, {name: x[0, 0, 0] for name, x in self.seen.items()})
        self.older: Rare | None = None
        if spec.stack > 1:
            self.older = Rare(grid, {"frames": self.seen["obs"][0, 0, 0].expand(spec.stack - 1, n, self.frame)})
            self.begins = torch.ones(members, copies, dtype=torch.bool)  # whose next slot does not go on from its last
        self.lost = torch.zeros(grid, dtype=torch.bool)
        self.any_lost = False
        self.written = 0
        self.sampler = Streams(seeds, "replay")

    @classmethod
    def of(cls, config: Any, spec: EnvSpec, copies: int, seeds: Sequence[int], memory_size: int) -> Replay:
        """As a configuration asks: ``buffer_size``, ``batch_size``, ``warmup``, ``update_every``, ``n_step`` if any."""
        return cls(
            config.buffer_size,
            spec,
            len(seeds),
            copies,
            seeds,
            memory_size=memory_size,
            batch_size=config.batch_size,
            n_step=getattr(config, "n_step", 1),
            schedule=Schedule(config.warmup, config.update_every),
        )

    def __len__(self) -> int:
        """Transitions that each member can sample."""
        return min(self.written, self.capacity) * self.copies

    @property
    def oldest(self) -> int:
        """The first time slot that is still held."""
        return max(self.written - self.capacity, 0)

    def add(self, view: View, acted: Acted, step: Step) -> None:
        """Store one time slot: what was seen, what was done about it, and what the environment answered."""
        now, following = self.written % self.ring, (self.written + 1) % self.ring
        self._free(following)
        for name, ring in self.seen.items():
            ring[now] = self._kept(name, getattr(view, name))
            ring[following] = self._kept(name, getattr(step, name))
        earned = step.reward.masked_fill(self.left, 0.0)  # nothing by who is gone
        told = {**step._asdict(), **acted._asdict(), "left": self.left, "reward": earned}
        for name, ring in self.moves.items():
            ring[now] = told[name].transpose(1, 2)
        self.left = (self.left | step.terminated) & ~step.done
        if (ended := step.done.any(1)).any():
            last = {name: self._kept(name, getattr(step, f"next_{name}"))[ended] for name in self.seen}
            self.finals.put(now, ended, last)
        if self.older is not None:
            if self.begins.any():
                first = view.obs.transpose(1, 2)[self.begins].unflatten(-1, (-1, self.frame))  # [*, N, stack, frame]
                self.older.put(now, self.begins, {"frames": first[:, :, :-1].transpose(1, 2)})
            self.begins = ended
        if step.lost is not None:
            self.lost[now] = step.lost.any(1)
            self.any_lost = True
        self.written += 1

    def interrupt(self) -> None:
        """Say that the next ``add`` will not go on from what was seen last, since the environment started anew.

        That moment gets a time slot of its own, as the successor of the slot before, and is never sampled.
        """
        if self.written:
            self._free((self.written + 1) % self.ring)
            self.lost[self.written % self.ring] = True
            self.any_lost = True
            self.written += 1
        self.left.zero_()
        if self.older is not None:
            self.begins = torch.ones_like(self.begins)

    def draw(self) -> Batch:
        """``batch_size`` transitions for each member."""
        return self.sample(self.batch_size)

    def sample(self, batch_size: int) -> Batch:
        """``batch_size`` transitions for each member, drawn uniformly with replacement.

        Raises ``UserError`` if of some member none is left that was not lost.
        """
        size = len(self)
        pick = self.sampler.integers(size, batch_size)
        row = self._locate(pick)
        while self.any_lost and (bad := self.lost.view(-1)[row]).any():
            if bad.all(1).any():
                self._require_some()
            for p in bad.any(1).nonzero().flatten().tolist():  # only these members draw again
                again = torch.randint(size, (batch_size,), generator=self.sampler.generators[p])
                pick[p] = torch.where(bad[p], again, pick[p])
            row = self._locate(pick)
        last, window = (row, {}) if self.n_step == 1 else self._look_ahead(pick, row)
        found = {name: take(ring, last if name == "terminated" else row) for name, ring in self.moves.items()}
        found |= {name: take(ring, row) for name, ring in self.seen.items() if name != "state"}
        found |= {f"next_{name}": x for name, x in self._successors(last).items()} | window
        if self.older is not None:
            found["obs"] = self._stacked(row)
            before = found["obs"] if last is row else self._stacked(last)
            found["next_obs"] = torch.cat([before[..., self.frame :], found["next_obs"]], -1)
        found["obs"], found["next_obs"] = found["obs"].float(), found["next_obs"].float()
        if self.spec.discrete:
            found["action"] = found["action"].long()
        if (left := found.pop("left", None)) is not None and left.any():
            found["valid"] = ~left
        return Batch(**{name: x.transpose(1, 2) for name, x in found.items()})

    def _require_some(self) -> None:
        size = len(self)
        every = self._locate(torch.arange(size).expand(self.members, size))
        if self.lost.view(-1)[every].all(1).any():
            raise UserError(
                f"buffer_size {self.capacity * self.copies}: all {size} transitions in the replay were lost; "
                "expected a size that outlasts a worker's death"
            )

    def _successors(self, row: Tensor) -> dict[str, Tensor]:
        """What was truly seen next, without the global state: by name ``[P, B, N, *]``; of a stack the newest frame."""
        following = self._following(row)
        final = take(self.finals.at, row)
        ended = final >= 0
        result = {name: take(ring, following) for name, ring in self.seen.items() if name != "state"}
        if ended.any():
            for name, x in result.items():
                x[ended] = self.finals.get(name, final[ended])
        return result

    def _stacked(self, row: Tensor) -> Tensor:
        """What was seen, ``[P, B, N, D]``."""
        return self._frames(row).transpose(2, 3).flatten(3)

    def _frames(self, row: Tensor) -> Tensor:
        """What was seen as single frames, the oldest first: ``[P, B, stack, N, D / stack]``."""
        assert self.older is not None
        stack, stride = self.spec.stack, self.members * self.copies
        rows, first, age = [row], take(self.older.at, row), torch.zeros_like(row)
        for _ in range(stack - 1):  # back in time, but not beyond the episode's beginning
            goes_on = first < 0
            rows.append(torch.where(goes_on, (rows[-1] - stride) % (self.ring * stride), rows[-1]))
            age += goes_on
            first = take(self.older.at, rows[-1])
        frames = take(self.seen["obs"], torch.stack(rows[::-1], -1))
        place = torch.arange(stack)
        older = place < stack - 1 - age.unsqueeze(-1)  # seen before the episode began
        if older.any():
            table, number = self.older.rows["frames"], first.unsqueeze(-1).expand_as(older)[older]
            frames[older] = table[number % self.older.room, (place + age.unsqueeze(-1))[older]]
        return frames

    def _look_ahead(self, pick: Tensor, row: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The row of the last step that counts in each n-step return, ``[P, B]``, and ``Batch``'s account of these.

        It ends with the episode of any agent, with the newest step, and before one that did not happen.
        """
        ahead = len(self) // self.copies - pick // self.copies  # slots from the row's own on
        last, steps, rewards = row, torch.ones_like(row), [take(self.moves["reward"], row)]
        for k in range(1, self.n_step):
            following = self._following(last)
            follows = (ahead > k) & (take(self.finals.at, last) < 0)  # once it ends, it ends for the same reason again
            if self.any_lost:
                follows &= ~take(self.lost, following)
            rewards.append(take(self.moves["reward"], following).masked_fill_(~follows.unsqueeze(-1), 0.0))
            last = torch.where(follows, following, last)
            steps = steps + follows
        return last, {"rewards": torch.stack(rewards, -1), "steps": steps.unsqueeze(-1)}

    def _locate(self, pick: Tensor) -> Tensor:
        """The flat row (of ring x P x E) of transitions numbered from the oldest, ``[P, B]``."""
        slot = (self.oldest + pick // self.copies) % self.ring
        member = torch.arange(self.members)[:, None]
        return (slot * self.members + member) * self.copies + pick % self.copies

    def _following(self, row: Tensor) -> Tensor:
        """The rows of the same copies, one time slot later."""
        stride = self.members * self.copies
        return (row + stride) % (self.ring * stride)

    def _kept(self, name: str, x: Tensor) -> Tensor:
        """What is stored of what agents see, ``[P, N, E, *]``, as ``[P, E, N, *]``; the global state has no agents."""
        if name == "state":
            return x
        return (x if self.older is None or name != "obs" else x[..., -self.frame :]).transpose(1, 2)

    def _free(self, slot: int) -> None:
        """Forget what the slot held."""
        self.finals.free(slot)
        if self.older is not None:
            self.older.free(slot)
        if self.any_lost:
            self.lost[slot] = False

    def read(self, start: int, stop: int) -> dict[str, Tensor]:
        """The time slots ``start .. stop - 1`` as tensors, for a checkpoint; they must still be held.

        The first one of a chunk counts as the beginning of every stack, so that nothing before it is needed.
        """
        slots = torch.arange(start, stop) % self.ring
        ended, finals = self.finals.read(slots)
        result = {
            **{name: ring[slots] for name, ring in (self.seen | self.moves).items()},
            "lost": self.lost[slots],
            "ended": ended,
            **{f"final_{name}": x for name, x in finals.items()},
        }
        if self.older is None:
            return result
        begun = self.older.at[slots] >= 0
        begun[:1] = True
        slot, member, copy = begun.nonzero(as_tuple=True)
        row = (slots[slot] * self.members + member) * self.copies + copy
        return result | {"begun": begun, "older_frames": self._frames(row.unsqueeze(0))[0, :, :-1]}

    def restore(self, chunks: Iterable[tuple[int, dict[str, Tensor]]]) -> None:
        """Put into a new buffer what ``read`` gave, oldest first: pairs of the first time slot and its tensors.

        Raises:
            ValueError: some time slots that the ring should hold are missing.
        """
        following = oldest = self.oldest
        for start, chunk in chunks:
            if start > following:
                break
            skip = max(oldest + 1 - self.spec.stack - start, 0)  # the first chunk may hold more than the ring does
            following = start + len(chunk["reward"])
            slots = torch.arange(start + skip, following) % self.ring
            for name, ring in (self.seen | self.moves | {"lost": self.lost}).items():
                ring[slots] = chunk[name][skip:]
            self.any_lost |= bool(chunk["lost"][skip:].any())
            finals = {name: chunk[f"final_{name}"] for name in self.finals.rows}
            self.finals.restore(slots, skip, chunk["ended"], finals)
            if self.older is not None:
                self.older.restore(slots, skip, chunk["begun"], {"frames": chunk["older_frames"]})
        if following != self.written:
            raise ValueError(f"its replay lacks the time slots from {following} to {self.written - 1}")

    def state_dict(self) -> State:
        """Everything but the time slots, which a checkpoint reads piece by piece."""
        state: State = {
            "written": self.written,
            "head": {name: ring[self.written % self.ring].clone() for name, ring in self.seen.items()},
            "sampler": self.sampler.state_dict(),
            "left": self.left.clone(),
        }
        return state if self.older is None else state | {"begins": self.begins.clone()}

    def load_state_dict(self, state: State) -> None:
        """To be called before ``restore``."""
        self.written = state["written"]
        for name, ring in self.seen.items():
            ring[self.written % self.ring] = state["head"][name]
        self.sampler.load_state_dict(state["sampler"])
        self.left = state["left"].clone()
        if self.older is not None:
            self.begins = state["begins"].clone()


class Rare:
    """What only some slots of a ring hold: rows for some of their copies, freed in the order in which they came.

    Args:
        grid: (slots, P, E).
        like: by name, a tensor of the shape and the type of one row.

    Attributes:
        at: ``[slots, P, E]`` int32, which row, counted from the first ever; -1: none.
        rows: by name ``[room, ...]``; row k is in place k modulo the room.
    """

    def __init__(self, grid: tuple[int, int, int], like: Mapping[str, Tensor]) -> None:
        self.at = torch.full(grid, -1, dtype=torch.int32)
        self.rows = {name: torch.zeros(grid[1] * grid[2], *x.shape, dtype=x.dtype) for name, x in like.items()}
        self.room = grid[1] * grid[2]
        self.written = self.freed = 0

    def put(self, slot: int, where: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Rows for the copies ``where [P, E]`` of a slot that has none."""
        count = int(where.sum())
        while self.written + count - self.freed > self.room:
            self._grow()
        number = torch.arange(self.written, self.written + count)
        for name, table in self.rows.items():
            table[number % self.room] = rows[name].to(table.dtype)
        self.at[slot][where] = number.int()
        self.written += count

    def get(self, name: str, number: Tensor) -> Tensor:
        return self.rows[name][number % self.room]

    def free(self, slot: int) -> None:
        """Forget the rows of the oldest slot that has any."""
        self.freed += int((self.at[slot] >= 0).sum())
        self.at[slot] = -1

    def read(self, slots: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Which copies of the slots have rows, ``[T, P, E]``, and these in order."""
        at = self.at[slots]
        numbers = at[at >= 0].long()
        return at >= 0, {name: self.get(name, numbers) for name in self.rows}

    def restore(self, slots: Tensor, skip: int, where: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Put what ``read`` gave into ``slots``, without the first ``skip`` of those that it was asked for."""
        taken = int(where[:skip].sum())
        for slot, there in zip(slots.tolist(), where[skip:], strict=True):
            if count := int(there.sum()):
                self.put(slot, there, {name: x[taken : taken + count] for name, x in rows.items()})
                taken += count

    def _grow(self) -> None:
        live = torch.arange(self.freed, self.written)
        room = self.room * 3 // 2 + 1
        for name, table in self.rows.items():
            larger = torch.zeros(room, *table.shape[1:], dtype=table.dtype)
            larger[live % room] = table[live % self.room]
            self.rows[name] = larger
        self.room = room


def take(ring: Tensor, row: Tensor) -> Tensor:
    """Rows ``[P, B]`` of a ring ``[T, P, E, ...]`` as ``[P, B, ...]``."""
    return ring.flatten(0, 2).index_select(0, row.flatten()).view(*row.shape, *ring.shape[3:])
