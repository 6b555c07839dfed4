"""Experience replay: a ring of time slots in which everything that is seen is stored once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from marl.envs.base import EnvSpec, Step
from marl.streams import Streams
from marl.types import Acted, Batch, Schedule, State, View


class Replay:
    """The last ``capacity`` transitions of each member.

    Slot t holds what the P x E copies did at time t; the successor of what slot t saw is what slot t + 1 saw, except
    where an episode ended: what was seen last lies in a side table. Agents of one copy are sampled together.

    Memory per transition and agent: 4 D + 4 A + 5 bytes (discrete: 4 D + 6; A more where actions are masked, 4 H more
    where the learner notes something; D in place of 4 D where observations are bytes, which become float32 when they
    are drawn), and 4 bytes per copy and slot (4 S more with the global state), plus what is seen once more for every
    episode end.

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
        self.ring = self.capacity + 1  # the slot being written holds the newest successor
        self.members, self.copies, self.spec = members, copies, spec
        self.batch_size, self.n_step, self.schedule = batch_size, n_step, schedule or Schedule(0, 1)
        grid = (self.ring, members, copies)
        n = spec.n_agents
        self.seen = {"obs": torch.zeros(*grid, n, spec.obs_size, dtype=torch.uint8 if spec.bytes else torch.float32)}
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
        self.final_at = torch.full(grid, -1, dtype=torch.int32)  # which final moment, counted from the first
        self.finals = {
            name: torch.zeros(copies * members, *x.shape[3:], dtype=x.dtype) for name, x in self.seen.items()
        }
        self.finals_written = 0
        self.finals_freed = 0
        self.lost = torch.zeros(grid, dtype=torch.bool)
        self.any_lost = False
        self.written = 0
        self.sampler = Streams(seeds, "replay")

    @classmethod
    def of(cls, config: Any, spec: EnvSpec, copies: int, seeds: Sequence[int], memory_size: int) -> Replay:
        """As a learner's configuration asks for: ``buffer_size``, ``batch_size``, ``warmup``, ``update_every``, and
        ``n_step`` if it has that."""
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

    def add(self, view: View, acted: Acted, step: Step) -> None:
        """Store one time slot: what was seen, what was done about it, and what the environment answered."""
        now, following = self.written % self.ring, (self.written + 1) % self.ring
        self._free(following)
        for name, ring in self.seen.items():
            ring[now] = _by_copy(name, getattr(view, name))
            ring[following] = _by_copy(name, getattr(step, name))
        for name, ring in self.moves.items():
            ring[now] = getattr(acted if name in ("action", "memory") else step, name).transpose(1, 2)
        ended = step.done.any(1)
        if ended.any():
            last = {name: _by_copy(name, getattr(step, f"next_{name}"))[ended] for name in self.seen}
            self._add_finals(now, ended, last)
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

    def draw(self) -> Batch:
        """``batch_size`` transitions for each member."""
        return self.sample(self.batch_size)

    def sample(self, batch_size: int) -> Batch:
        """``batch_size`` transitions for each member, drawn uniformly with replacement."""
        size = len(self)
        pick = self.sampler.integers(size, batch_size)
        row = self._locate(pick)
        while self.any_lost and (bad := self.lost.view(-1)[row]).any():
            for p in bad.any(1).nonzero().flatten().tolist():  # only these members draw again
                again = torch.randint(size, (batch_size,), generator=self.sampler.generators[p])
                pick[p] = torch.where(bad[p], again, pick[p])
            row = self._locate(pick)
        last, window = (row, {}) if self.n_step == 1 else self._look_ahead(pick, row)
        found = {name: take(ring, last if name == "terminated" else row) for name, ring in self.moves.items()}
        found |= {name: take(ring, row) for name, ring in self.seen.items() if name != "state"}
        found |= {f"next_{name}": x for name, x in self.successors(last).items()} | window
        found["obs"], found["next_obs"] = found["obs"].float(), found["next_obs"].float()
        if self.spec.discrete:
            found["action"] = found["action"].long()
        return Batch(**{name: x.transpose(1, 2) for name, x in found.items()})

    def successors(self, row: Tensor) -> dict[str, Tensor]:
        """What was truly seen next, without the global state: by name ``[P, B, N, *]``."""
        following = self._following(row)
        final = take(self.final_at, row)
        ended = final >= 0
        result = {name: take(ring, following) for name, ring in self.seen.items() if name != "state"}
        if ended.any():
            for name, x in result.items():
                x[ended] = self.finals[name][final[ended] % len(self.finals[name])]
        return result

    def _look_ahead(self, pick: Tensor, row: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The row of the last step that counts in each n-step return, ``[P, B]``, and ``Batch``'s account of these.

        It ends with the episode of any agent, with the newest step, and before one that did not happen.
        """
        ahead = len(self) // self.copies - pick // self.copies  # slots from the row's own on
        last, steps, rewards = row, torch.ones_like(row), [take(self.moves["reward"], row)]
        for k in range(1, self.n_step):
            following = self._following(last)
            follows = (ahead > k) & (take(self.final_at, last) < 0)  # once it ends, it ends for the same reason again
            if self.any_lost:
                follows &= ~take(self.lost, following)
            rewards.append(take(self.moves["reward"], following).masked_fill_(~follows.unsqueeze(-1), 0.0))
            last = torch.where(follows, following, last)
            steps = steps + follows
        return last, {"rewards": torch.stack(rewards, -1), "steps": steps.unsqueeze(-1)}

    def _locate(self, pick: Tensor) -> Tensor:
        """The flat row (of ring x P x E) of transitions numbered from the oldest, ``[P, B]``."""
        oldest = max(self.written - self.capacity, 0)
        slot = (oldest + pick // self.copies) % self.ring
        member = torch.arange(self.members)[:, None]
        return (slot * self.members + member) * self.copies + pick % self.copies

    def _following(self, row: Tensor) -> Tensor:
        """The rows of the same copies, one time slot later."""
        stride = self.members * self.copies
        return (row + stride) % (self.ring * stride)

    def _add_finals(self, slot: int, ended: Tensor, finals: dict[str, Tensor]) -> None:
        count = len(finals["obs"])
        while self.finals_written + count - self.finals_freed > len(self.finals["obs"]):
            self._grow_finals()
        number = torch.arange(self.finals_written, self.finals_written + count)
        for name, table in self.finals.items():
            table[number % len(table)] = finals[name].to(table.dtype)
        self.final_at[slot][ended] = number.int()
        self.finals_written += count

    def _grow_finals(self) -> None:
        live = torch.arange(self.finals_freed, self.finals_written)
        for name, table in self.finals.items():
            larger = torch.zeros(len(table) * 3 // 2 + 1, *table.shape[1:], dtype=table.dtype)
            larger[live % len(larger)] = table[live % len(table)]
            self.finals[name] = larger

    def _free(self, slot: int) -> None:
        """Forget what the slot held; final moments are freed in the order in which they came."""
        self.finals_freed += int((self.final_at[slot] >= 0).sum())
        self.final_at[slot] = -1
        if self.any_lost:
            self.lost[slot] = False

    def read(self, start: int, stop: int) -> dict[str, Tensor]:
        """The time slots ``start .. stop - 1`` as tensors, for a checkpoint; they must still be held."""
        slots = torch.arange(start, stop) % self.ring
        final_at = self.final_at[slots]
        numbers = final_at[final_at >= 0].long()
        return {
            **{name: ring[slots] for name, ring in (self.seen | self.moves).items()},
            "lost": self.lost[slots],
            "ended": final_at >= 0,
            **{f"final_{name}": table[numbers % len(table)] for name, table in self.finals.items()},
        }

    def restore(self, chunks: Iterable[tuple[int, dict[str, Tensor]]]) -> None:
        """Put into a new buffer what ``read`` gave, oldest first: pairs of the first time slot and its tensors.

        Raises:
            ValueError: some time slots that the ring should hold are missing.
        """
        following = oldest = max(self.written - self.capacity, 0)
        for start, chunk in chunks:
            if start > following:
                break
            skip = max(oldest - start, 0)  # the first chunk may begin with slots that the ring no longer holds
            following = start + len(chunk["reward"])
            slots = torch.arange(start + skip, following) % self.ring
            for name, ring in (self.seen | self.moves | {"lost": self.lost}).items():
                ring[slots] = chunk[name][skip:]
            self.any_lost |= bool(chunk["lost"][skip:].any())
            taken = int(chunk["ended"][:skip].sum())
            for slot, ended in zip(slots.tolist(), chunk["ended"][skip:], strict=True):
                count = int(ended.sum())
                if count:
                    last = {name: chunk[f"final_{name}"][taken : taken + count] for name in self.finals}
                    self._add_finals(slot, ended, last)
                    taken += count
        if following != self.written:
            raise ValueError(f"its replay lacks the time slots from {following} to {self.written - 1}")

    def state_dict(self) -> State:
        """Everything but the time slots, which a checkpoint reads piece by piece."""
        return {
            "written": self.written,
            "head": {name: ring[self.written % self.ring].clone() for name, ring in self.seen.items()},
            "sampler": self.sampler.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """To be called before ``restore``."""
        self.written = state["written"]
        for name, ring in self.seen.items():
            ring[self.written % self.ring] = state["head"][name]
        self.sampler.load_state_dict(state["sampler"])


def take(ring: Tensor, row: Tensor) -> Tensor:
    """Rows ``[P, B]`` of a ring ``[T, P, E, ...]`` as ``[P, B, ...]``."""
    return ring.flatten(0, 2).index_select(0, row.flatten()).unflatten(0, row.shape)


def _by_copy(name: str, x: Tensor) -> Tensor:
    """What agents see, ``[P, N, E, *]``, as ``[P, E, N, *]``; the global state has no agents."""
    return x if name == "state" else x.transpose(1, 2)
