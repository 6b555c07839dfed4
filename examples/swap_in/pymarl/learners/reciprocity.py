"""Reciprocity for the learners of PyMARL and EPyMARL: put this file beside them, in ``src/learners``.

``args.reciprocity`` holds the options of ``marl.reciprocity.Reciprocal``, such as ``{"kappa": 0.5, "graph": "ring"}``.
"""

from typing import Any

import torch as th
from torch import Tensor

from marl.reciprocity import Reciprocal


class ReciprocalTargets:
    """Blends each agent's target value with what its neighbours' networks say at adjacent states.

    Where a network is shared, neighbour j is that network told j's identity. Shapes: bs episodes, T steps, n agents.
    """

    def __init__(self, args: Any) -> None:
        options = getattr(args, "reciprocity", {"kappa": 0.0})
        self.args, self.peer = args, options.get("adjacency") == "peer"
        self.reciprocal = Reciprocal(args.n_agents, **options)
        listens = getattr(self.reciprocal.engine.graph, "listens", None)  # None: the graph changes from call to call
        ring = range(args.n_agents)
        self.offsets = [k for k in ring if listens is None or any(listens[j - k][j] for j in ring)]

    def utilities(self, own: Tensor, mac: Any, batch: Any, actions: Tensor) -> Tensor:
        """What enters the target mixer, ``[bs, T, n]``: neighbour j's network runs through agent i's episode, with each
        observation replaced by an adjacent one, and is asked for agent i's action.

        Args:
            own: ``[bs, T, n]``, the target network's values of ``actions`` ``[bs, T, n, 1]`` after the first moment.
            mac: the target controller.
            batch: episodes of T + 1 moments.
        """

        def ask() -> Tensor:
            near = self._near(batch["obs"], batch["filled"])
            copies = len(near)
            shown = _Shown(
                obs=self._turned(near).flatten(0, 2),
                actions_onehot=self._turned(batch["actions_onehot"], copies).flatten(0, 2),
                avail_actions=self._turned(batch["avail_actions"], copies).flatten(0, 2),
            )
            mac.init_hidden(shown.batch_size)
            values = th.stack([mac.forward(shown, t=t) for t in range(shown.max_seq_length)][1:], dim=1)
            asked = self._turned(actions, copies).flatten(0, 2)
            return self._heard(values.gather(3, asked).squeeze(3).unflatten(0, (len(self.offsets), copies, -1)))

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
                near = self._near(seen[:, :, :1], filled).expand(1, -1, -1, -1, seen.shape[2], -1)
            else:
                near = self._turned(self._near(seen, filled))
            shape = near.shape[:-1]
            rest = [names.expand(*shape, -1)]
            if last:
                rest.insert(0, self._turned(last_actions, shape[1]))
            shown = th.cat([near, *rest], dim=-1).flatten(0, 2)
            said = critic(shown, actions.expand(*shape, -1).flatten(0, 2)).view(shape)
            return said[0].movedim(-1, 1).flatten(2).unsqueeze(1) if joint else self._heard(said)

        return self._blended(own.squeeze(-1), ask).unsqueeze(-1)

    @th.no_grad()
    def _blended(self, own: Tensor, ask: Any) -> Tensor:
        """``[bs, T, n]`` with ``ask() -> [S, n, n, bs T]``, what j says of i, blended in."""
        values = own.movedim(2, 0).flatten(1)
        if self.reciprocal.off:
            heard = None
        elif self.peer:  # each at its own view of the moment, which is what it has just been asked
            heard = values[None, None]
        else:
            heard = ask()
        return self.reciprocal(values, heard).view(-1, *own.shape[:2]).movedim(0, 2).contiguous()

    def _heard(self, said: Tensor) -> Tensor:
        """What slot j says of agent j - k, ``[K, S, bs, T, n]`` -> ``[S, n, n, bs T]``; 0 where nobody listens."""
        said = said.movedim(-1, 2).flatten(3)
        j = th.arange(said.shape[2])
        heard = said.new_zeros(said.shape[1], len(j), *said.shape[2:])
        for k, answers in zip(self.offsets, said, strict=True):
            heard[:, j - k, j] = answers
        return heard

    def _near(self, seen: Tensor, filled: Tensor) -> Tensor:
        """States adjacent to ``[bs, T, n, D]``: ``[S, bs, T, n, D]``; none is made from what fills up the batch."""
        rows = filled.flatten().bool()
        near = self.reciprocal.adjacent(seen.flatten(0, 1)[rows].transpose(0, 1))
        whole = seen.flatten(0, 1).repeat(len(near), 1, 1, 1)
        whole[:, rows] = near.transpose(1, 2)
        return whole.unflatten(1, seen.shape[:2])

    def _turned(self, values: Tensor, copies: int = 0) -> Tensor:
        """``[S, bs, T, n, *]`` (or one of ``copies``) -> ``[K, S, bs, T, n, *]``: slot j holds agent j - k's."""
        if copies:
            values = values.expand(copies, *values.shape)
        return th.stack([values.roll(k, dims=3) for k in self.offsets])


class _Shown:
    """A batch in which agents see other things, for a controller's ``forward``."""

    def __init__(self, **data: Tensor) -> None:
        self.data = data
        self.batch_size, self.max_seq_length = data["obs"].shape[:2]
        self.device = data["obs"].device

    def __getitem__(self, key: str) -> Tensor:
        return self.data[key]
