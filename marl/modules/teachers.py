"""Frozen policies of other runs that a team may learn from: what they would do at what an agent sees now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from marl.envs.base import EnvSpec
from marl.modules.sizes import fitted
from marl.modules.stacked import StackedMLP
from marl.ops.discrete import MASKED, mask_logits
from marl.streams import Streams
from marl.types import State, UserError


class Teacher(NamedTuple):
    """What one frozen policy looks like; the weights are the members' own.

    Attributes:
        given: how it was named, ``RUN:agent``.
        sizes: widths from its observation to its actions.
        activation: between its layers.
        gives: ``logits``, or ``values`` of which the best one counts; ``tanh`` (an action before its tanh) or ``clip``
            (one before it is cut to [-1, 1]).
    """

    given: str
    sizes: Sequence[int]
    activation: Literal["relu", "tanh"]
    gives: Literal["logits", "values", "tanh", "clip"]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Teacher:
        """From what ``config.json`` says of it."""
        return cls(*(record[name] for name in cls._fields))


class Teachers:
    """K frozen policies for each of P members, shown to N agents. They take no gradient and never change.

    Shapes: B rows, D and A the agents' widest observation and action.

    Args:
        kinds: K of them; may be none.
        spec: of the environment in which the agents learn.
        members: P.

    Raises ``UserError`` for a teacher that answers with indices where agents need vectors, or the other way round.
    """

    def __init__(self, kinds: Sequence[Teacher], spec: EnvSpec, members: int) -> None:
        names = {True: "discrete actions (indices)", False: "continuous actions (vectors)"}
        for teacher in kinds:
            discrete = teacher.gives in ("logits", "values")
            if discrete != spec.discrete:
                raise UserError(
                    f"teachers: {teacher.given} has {names[discrete]}, {spec.id} has {names[spec.discrete]}; "
                    "choose a teacher with actions of the same kind"
                )
        self.kinds, self.spec = list(kinds), spec
        blank = Streams([0] * members, "teachers")
        self.nets = [StackedMLP(blank, 1, teacher.sizes, teacher.activation) for teacher in kinds]
        for net in self.nets:
            net.requires_grad_(False)

    def __len__(self) -> int:
        return len(self.nets)

    @torch.no_grad()
    def answers(self, obs: Tensor, avail: Tensor | None) -> tuple[Tensor, Tensor]:
        """What each teacher would do at each agent's observation, and which entries of that the agent may follow.

        A teacher reads the leading numbers of the observation, and zeros where it wants more of them; its leading
        actions are the agent's.

        Args:
            obs: ``[P, N, B, D]``.
            avail: ``[P, N, B, A]`` bool, or None.

        Returns:
            ``[P, N, K, B, A]``, K > 0: logits, out of reach where not to be followed; or actions in [-1, 1]. And bool
            of that shape: actions (or components) that both have and the agent may take.
        """
        members, agents, rows, _ = obs.shape
        width = self.spec.action_size
        own = self.spec.action_mask[:, None].expand(members, -1, rows, -1) if avail is None else avail
        said, common = [], []
        for teacher, net in zip(self.kinds, self.nets, strict=True):
            seen = fitted(obs, teacher.sizes[0]).flatten(1, 2).unsqueeze(1)
            output = fitted(net(seen).unflatten(2, (agents, rows)).squeeze(1), width)
            both = own & (torch.arange(width) < teacher.sizes[-1])
            if self.spec.discrete:
                output = mask_logits(output, both)
            if teacher.gives == "values":
                best = output.argmax(-1, keepdim=True)
                output = torch.full_like(output, MASKED).scatter(-1, best, 0.0)
            elif teacher.gives == "tanh":
                output = torch.tanh(output)
            elif teacher.gives == "clip":
                output = output.clamp(-1, 1)
            said.append(output)
            common.append(both)
        return torch.stack(said, 2), torch.stack(common, 2)

    def join(self, answers: Tensor, common: Tensor, obs: Tensor, avail: Tensor | None) -> tuple[Tensor, Tensor]:
        """The team mates' answers (see ``marl.modules.options.everybodys_answers``), followed by the teachers'."""
        if not self.nets:
            return answers, common
        more, followed = self.answers(obs, avail)
        return torch.cat([answers, more], 2), torch.cat([common, followed], 2)

    def state_dict(self) -> State:
        """One entry of a learner's state, ``teachers``; none without any."""
        return {"teachers": {str(k): net.state_dict() for k, net in enumerate(self.nets)}} if self.nets else {}

    def load_state_dict(self, state: State) -> None:
        for k, net in enumerate(self.nets):
            net.load_state_dict(state["teachers"][str(k)])
