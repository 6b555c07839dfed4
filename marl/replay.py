"""Experience replay: a ring of time slots in which every observation is stored once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from marl.envs.base import EnvSpec, Step
from marl.streams import Streams
from marl.types import Batch, State


class Replay:
    """The last ``capacity`` transitions of each member.

    Slot t holds what the P x E copies did at time t; the successor of slot t's observation is slot t + 1's, except
    where an episode ended: those last observations lie in a side table. Agents of one copy are sampled together.

    Memory per transition and agent: 4 D + 4 A + 5 bytes (discrete: 4 D + 6), and 4 bytes per copy and slot, plus 4 D
    bytes for every episode end.

    Args:
        capacity: transitions per member; rounded down to whole time slots of E.
        spec: the environment's.
        members: P.
        copies: E.
        seeds: one per member, for sampling.
    """

    def __init__(self, capacity: int, spec: EnvSpec, members: int, copies: int, seeds: Sequence[int]) -> None:
        self.capacity = max(capacity // copies, 1)
        self.ring = self.capacity + 1  # the slot being written holds the newest successor
        self.members, self.copies, self.spec = members, copies, spec
        grid = (self.ring, members, copies)
        n = spec.n_agents
        self.obs = torch.zeros(*grid, n, spec.obs_size)
        index_dtype = torch.uint8 if spec.action_size <= 256 else torch.int32
        action_dtype = index_dtype if spec.discrete else torch.float32
        self.action = torch.zeros(*grid, n, *([] if spec.discrete else [spec.action_size]), dtype=action_dtype)
        self.reward = torch.zeros(*grid, n)
        self.terminated = torch.zeros(*grid, n, dtype=torch.bool)
        self.final_at = torch.full(grid, -1, dtype=torch.int32)  # which final observation, counted from the first
        self.finals = torch.zeros(copies * members, n, spec.obs_size)
        self.finals_written = 0
        self.finals_freed = 0
        self.lost = torch.zeros(grid, dtype=torch.bool)
        self.any_lost = False
        self.written = 0
        self.sampler = Streams(seeds, "replay")

    def __len__(self) -> int:
        """Transitions that each member can sample."""
        return min(self.written, self.capacity) * self.copies

    def add(self, obs: Tensor, action: Tensor, step: Step) -> None:
        """Store one time slot.

        Args:
            obs: ``[P, N, E, D]``, what was acted on: the ``obs`` of the step before.
            action: ``[P, N, E, A]`` or ``[P, N, E]``.
            step: what the environment answered.
        """
        now, following = self.written % self.ring, (self.written + 1) % self.ring
        self._free(following)
        self.obs[now] = obs.transpose(1, 2)
        self.obs[following] = step.obs.transpose(1, 2)
        self.action[now] = action.transpose(1, 2)
        self.reward[now] = step.reward.transpose(1, 2)
        self.terminated[now] = step.terminated.transpose(1, 2)
        ended = step.done.any(1)
        if ended.any():
            self._add_finals(now, ended, step.next_obs.transpose(1, 2)[ended])
        if step.lost is not None:
            self.lost[now] = step.lost.any(1)
            self.any_lost = True
        self.written += 1

    def interrupt(self) -> None:
        """Say that the next ``add`` will not go on from the newest observation, since the environment started anew.

        That observation gets a time slot of its own, as the successor of the slot before, and is never sampled.
        """
        if self.written:
            self._free((self.written + 1) % self.ring)
            self.lost[self.written % self.ring] = True
            self.any_lost = True
            self.written += 1

    def sample(self, batch_size: int) -> Batch:
        """``batch_size`` transitions for each member, drawn uniformly with replacement."""
        size = len(self)
        pick = self.sampler.integers(size, batch_size)
        slot, row = self._locate(pick)
        while self.any_lost and (bad := self.lost.view(-1)[row]).any():
            for p in bad.any(1).nonzero().flatten().tolist():  # only these members draw again
                again = torch.randint(size, (batch_size,), generator=self.sampler.generators[p])
                pick[p] = torch.where(bad[p], again, pick[p])
            slot, row = self._locate(pick)
        stride = self.members * self.copies
        wrapped = slot == self.ring - 1
        successor = row + torch.where(wrapped, stride - self.ring * stride, stride)
        next_obs = _take(self.obs, successor)
        final = _take(self.final_at, row)
        ended = final >= 0
        if ended.any():
            next_obs[ended] = self.finals[final[ended] % len(self.finals)]
        action = _take(self.action, row).transpose(1, 2)
        return Batch(
            obs=_take(self.obs, row).transpose(1, 2),
            action=action.long() if self.spec.discrete else action,
            reward=_take(self.reward, row).transpose(1, 2),
            next_obs=next_obs.transpose(1, 2),
            terminated=_take(self.terminated, row).transpose(1, 2),
        )

    def _locate(self, pick: Tensor) -> tuple[Tensor, Tensor]:
        """Ring slot and flat row (of ring x P x E) of transitions numbered from the oldest, both ``[P, B]``."""
        oldest = max(self.written - self.capacity, 0)
        slot = (oldest + pick // self.copies) % self.ring
        member = torch.arange(self.members)[:, None]
        return slot, (slot * self.members + member) * self.copies + pick % self.copies

    def _add_finals(self, slot: int, ended: Tensor, finals: Tensor) -> None:
        count = len(finals)
        while self.finals_written + count - self.finals_freed > len(self.finals):
            self._grow_finals()
        number = torch.arange(self.finals_written, self.finals_written + count)
        self.finals[number % len(self.finals)] = finals
        self.final_at[slot][ended] = number.int()
        self.finals_written += count

    def _grow_finals(self) -> None:
        live = torch.arange(self.finals_freed, self.finals_written)
        larger = torch.zeros(len(self.finals) * 3 // 2 + 1, *self.finals.shape[1:])
        larger[live % len(larger)] = self.finals[live % len(self.finals)]
        self.finals = larger

    def _free(self, slot: int) -> None:
        """Forget what the slot held; final observations are freed in the order in which they came."""
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
            "obs": self.obs[slots],
            "action": self.action[slots],
            "reward": self.reward[slots],
            "terminated": self.terminated[slots],
            "lost": self.lost[slots],
            "ended": final_at >= 0,
            "finals": self.finals[numbers % len(self.finals)],
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
            for name in ("obs", "action", "reward", "terminated", "lost"):
                getattr(self, name)[slots] = chunk[name][skip:]
            self.any_lost |= bool(chunk["lost"][skip:].any())
            taken = int(chunk["ended"][:skip].sum())
            for slot, ended in zip(slots.tolist(), chunk["ended"][skip:], strict=True):
                count = int(ended.sum())
                if count:
                    self._add_finals(slot, ended, chunk["finals"][taken : taken + count])
                    taken += count
        if following != self.written:
            raise ValueError(f"its replay lacks the time slots from {following} to {self.written - 1}")

    def state_dict(self) -> State:
        """Everything but the time slots, which a checkpoint reads piece by piece."""
        return {
            "written": self.written,
            "head": self.obs[self.written % self.ring].clone(),
            "sampler": self.sampler.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """To be called before ``restore``."""
        self.written = state["written"]
        self.obs[self.written % self.ring] = state["head"]
        self.sampler.load_state_dict(state["sampler"])


def _take(ring: Tensor, row: Tensor) -> Tensor:
    """Rows ``[P, B]`` of a ring ``[T, P, E, ...]`` as ``[P, B, ...]``."""
    return ring.flatten(0, 2).index_select(0, row.flatten()).unflatten(0, row.shape)
