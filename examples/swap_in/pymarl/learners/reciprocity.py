"""Reciprocity for the learners of PyMARL and EPyMARL: put this file beside them, in ``src/learners``.

``args.reciprocity`` holds the options of ``marl.reciprocity.Reciprocal``, such as ``{"kappa": 0.5, "graph": "ring"}``.
"""

from collections.abc import Callable
from typing import Any

import torch as th
from torch import Tensor

from marl.reciprocity import Reciprocal


class ReciprocalTargets:
    """Blends each agent's target value with what its neighbours' networks say at adjacent states.

    Where a network is shared, neighbour j is that network told j's identity. Shapes: bs episodes, T steps, n agents; S
    adjacent states and K offsets, between which agents hear each other.
    """

    def __init__(self, args: Any) -> None:
        options = getattr(args, "reciprocity", {"kappa": 0.0})
        self.args, self.peer = args, options.get("adjacency") == "peer"
        self.reciprocal = Reciprocal(args.n_agents, **options)
        listens = getattr(self.reciprocal.engine.graph, "listens", None)  # None: the graph changes from call to call
        ring = range(args.n_agents)
        self.offsets = [k for k in ring if listens is None or any(listens[j - k][j] for j in ring)]
        # where in [n, n], row by row, stands what agent j's place says of agent j - k
        self.pairs = th.tensor([(j - k) % args.n_agents * args.n_agents + j for k in self.offsets for j in ring])

    @th.no_grad()
    def unrolled(self, mac: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """What the target controller says after the first moment: of the episodes, ``[bs, T, n, A]``, and of adjacent
        ones, ``[K S bs, T, n, A]``, in one pass. K is 0 where nobody need be asked: kappa is 0, or for ``peer``.

        Args:
            mac: the target controller.
            batch: episodes of T + 1 moments.
        """
        shown = batch if self.reciprocal.off or self.peer else _Beside(self, batch)
        mac.init_hidden(shown.batch_size)
        values = th.stack([mac.forward(shown, t=t) for t in range(batch.max_seq_length)][1:], dim=1)
        return values[: batch.batch_size], values[batch.batch_size :]

    def utilities(self, own: Tensor, others: Tensor, actions: Tensor) -> Tensor:
        """What enters the target mixer, ``[bs, T, n]``: neighbour j's network runs through agent i's episode, with each
        observation replaced by an adjacent one, and is asked for agent i's action.

        Args:
            own: ``[bs, T, n]``, the target network's values of ``actions`` ``[bs, T, n, 1]``.
            others: ``[K S bs, T, n, A]``, of ``unrolled``.
        """

        def ask() -> Tensor:
            levels = len(others) // (len(actions) * len(self.offsets))
            asked = th.cat(self.turned([actions] * levels))
            return self._heard(others.gather(3, asked).squeeze(3), levels)

        return self._blended(own, ask)

    def critics(self, own: Tensor, critic: Any, inputs: Tensor, actions: Tensor, filled: Tensor) -> Tensor:
        """Critic j at agent i's adjacent inputs, for the target ``[bs, T, n, 1]``.

        Args:
            own: ``[bs, T, n, 1]``, the target critic's values of the joint ``actions`` ``[bs, T, n, *]``.
            inputs: ``[bs, T, n, D]``: state, observation, last action and identity, as far as the settings have them.
            filled: ``[bs, T, 1]``.
        """

        def ask() -> Tensor:
            size = self.args.n_agents if self.args.obs_agent_id else 0
            last = self.args.n_actions if self.args.obs_last_action else 0
            seen, last_actions, names = inputs.split([inputs.shape[-1] - last - size, last, size], dim=-1)
            if joint := not (self.args.obs_individual_obs or last):  # all critics read one state
                near = self.near(seen[:, :, :1], filled)
                parts = [th.cat(near).expand(-1, -1, inputs.shape[2], -1)]
            else:
                near = self.near(seen, filled)
                parts = [th.cat(self.turned(near)), th.cat(self.turned([last_actions] * len(near)))]
            copies = len(parts[0]) // len(inputs)
            names, asked = (v.expand(copies, *v.shape).flatten(0, 1) for v in (names, actions))
            said = critic(th.cat([*parts, names], dim=-1), asked).squeeze(-1)
            return said.unflatten(0, (copies, 1, -1)).movedim(-1, 2) if joint else self._heard(said, len(near))

        return self._blended(own.squeeze(-1), ask).unsqueeze(-1)

    @th.no_grad()
    def near(self, seen: Tensor, filled: Tensor) -> list[Tensor]:
        """S tensors adjacent to ``[bs, T, n, D]``, of the same shape; none is made from what fills up the batch."""
        rows, flat = filled.flatten().nonzero().squeeze(1), seen.flatten(0, 1)
        near = self.reciprocal.adjacent(flat.index_select(0, rows).transpose(0, 1))
        return [flat.index_copy(0, rows, states.transpose(0, 1)).view_as(seen) for states in near]

    def turned(self, values: list[Tensor]) -> list[Tensor]:
        """S tensors ``[bs, T, n, *]`` -> K S of them: place j holds agent j - k's."""
        return [value.roll(k, 2) for k in self.offsets for value in values]

    def _heard(self, said: Tensor, levels: int) -> Tensor:
        """What place j says of agent j - k, ``[K S bs, T, n]`` -> ``[S, n, n, bs, T]``; 0 where nobody listens."""
        n = self.args.n_agents
        said = said.unflatten(0, (len(self.offsets), levels, -1)).permute(1, 0, 4, 2, 3).flatten(1, 2)
        heard = said.new_zeros(levels, n * n, *said.shape[2:]).index_copy_(1, self.pairs.to(said.device), said)
        return heard.unflatten(1, (n, n))

    @th.no_grad()
    def _blended(self, own: Tensor, ask: Callable[[], Tensor]) -> Tensor:
        """``[bs, T, n]`` with ``ask() -> [S, n or 1, n, bs, T]``, what j says of i, blended in."""
        values = own.movedim(2, 0)
        if self.reciprocal.off:
            heard = None
        elif self.peer:  # each at its own view of the moment, which is what it has just been asked
            heard = values[None, None]
        else:
            heard = ask()
        return self.reciprocal(values, heard).movedim(0, 2).contiguous()


class _Beside:
    """A batch for a controller's ``forward``: the episodes, and below them, for each offset k and adjacent state, the
    same again, where agent j's place holds agent j - k's and each observation is replaced by an adjacent one."""

    def __init__(self, targets: ReciprocalTargets, batch: Any) -> None:
        self.device, self.max_seq_length = batch.device, batch.max_seq_length
        near = targets.near(batch["obs"], batch["filled"])
        self.data = {"obs": th.cat([batch["obs"], *targets.turned(near)])}
        for key in ("actions_onehot", "avail_actions"):
            self.data[key] = th.cat([batch[key], *targets.turned([batch[key]] * len(near))])
        self.batch_size = len(self.data["obs"])

    def __getitem__(self, key: str) -> Tensor:
        return self.data[key]
