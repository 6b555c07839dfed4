"""MAPTF on MADDPG: each agent learns from its own critic and from the teammate, or the frozen teacher, that its option
module says to imitate (Yang et al. 2021).

MADDPG does what it does alone; a term is added to its actors' loss, and the options are kept beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from marl.algos.common import Metrics, as_read, readable
from marl.algos.maddpg import MADDPG, MADDPGConfig
from marl.config import option
from marl.envs.base import EnvSpec
from marl.modules.options import OptionModule, OptionsConfig, everybodys_answers, whom
from marl.modules.teachers import Teacher, Teachers
from marl.ops.losses import row_mean
from marl.population import per_member
from marl.replay import Replay
from marl.types import Acted, Batch, State, UserError, View


@dataclass(frozen=True)
class MAPTFConfig(MADDPGConfig):
    """MADDPG's settings and the option module's."""

    options: OptionsConfig = option(OptionsConfig(), "Whom to imitate, and how much.")


class MAPTF:
    """The learner. Shapes: P members, N agents, B rows, O = N + K options, D and A the widest observation and
    action.

    Args:
        spec: the environment's.
        configs: one per member; they may differ in the settings marked ``sweep``.
        seeds: one per member.
        teachers: K frozen policies, whose weights come with ``load_state_dict`` or from ``marl.teaching``.

    Raises ``UserError`` where all agents share one network: there is nobody to imitate; and for teachers whose actions
    are of another kind.
    """

    Config = MAPTFConfig
    Buffer = Replay
    memory_size = 1
    """The option in use, counted from 1; 0 where none has been chosen yet."""

    takes_teachers = True

    def __init__(
        self, spec: EnvSpec, configs: Sequence[MAPTFConfig], seeds: Sequence[int], teachers: Sequence[Teacher] = ()
    ) -> None:
        self.config = config = configs[0]
        if config.shared:
            raise UserError("maptf needs networks of each agent's own, got shared=true; choose shared=false")
        self.base = MADDPG(spec, configs, seeds)
        self.teachers = Teachers(teachers, spec, len(seeds))
        options, gamma = [c.options for c in configs], per_member(configs, "gamma")
        self.options = OptionModule(options, gamma, seeds, spec.obs_mask, len(teachers))
        self.spec, self.discrete = spec, spec.discrete

    def act(self, view: View, explore: bool) -> Acted:
        """Each agent's own policy acts; with ``explore`` its option goes on or another one is chosen."""
        action = self.base.act(view, explore).action
        if view.memory is None or not explore:
            return Acted(action, view.memory)
        return Acted(action, self.options.choose(as_read(view.obs, self.spec), view.memory))

    def update(self, batch: Batch) -> Metrics:
        """One gradient step of MADDPG, imitation included, and one of the option module on the batch's first rows."""
        assert batch.memory is not None
        option = self.options.option(batch.memory)
        answers, common = self.everybodys_answers(batch.obs, batch.avail)
        teacher, both = whom(answers, option), whom(common, option)
        seen = readable(batch, self.spec)
        weight = self.options.imitation_weight(seen.obs, option)
        imitation: list[Tensor] = []

        def imitate(output: Tensor) -> Tensor:
            imitation.append(weight * self.mismatch(output, teacher, both))
            return imitation[0]

        metrics = self.base.update(batch, imitate)
        taken = None
        if self.discrete:  # two deterministic policies never choose exactly the same vector
            taken = (answers.argmax(-1) == batch.action.unsqueeze(2)).transpose(2, 3)
        count = self.config.options.batch
        learnt = self.options.update(
            seen.obs[:, :, :count],
            batch.reward[:, :, :count],
            seen.next_obs[:, :, :count],
            batch.terminated[:, :, :count],
            option[:, :, :count],
            None if taken is None else taken[:, :, :count],
            None if batch.valid is None else batch.valid[:, :, :count],
        )
        return {**metrics, "loss/imitation": row_mean(imitation[0], batch.valid), **learnt}

    @torch.no_grad()
    def everybodys_answers(self, obs: Tensor, avail: Tensor | None) -> tuple[Tensor, Tensor]:
        """What agent or teacher o would do at agent i's observation, logits or actions ``[P, N, O, B, A]``; and which
        entries agent i may follow: see ``marl.modules.options.everybodys_answers``."""
        output, common = everybodys_answers(self.base.actor, as_read(obs, self.spec), avail, self.spec)
        return self.teachers.join(output if self.discrete else torch.tanh(output), common, obs, avail)

    def mismatch(self, output: Tensor, teacher: Tensor, common: Tensor) -> Tensor:
        """How far agents are from those they imitate: ``[P, N, B]``, with a gradient into ``output`` alone.

        Cross-entropy of the discrete policies, or the mean squared difference of the actions; over the actions (or
        components) that both have, and 0 where there are none.

        Args:
            output: logits, or actions before the tanh, ``[P, N, B, A]``.
            teacher: logits, or actions.
            common: ``[P, N, B, A]`` bool.
        """
        if self.discrete:
            return -(softmax(teacher, -1) * log_softmax(output, -1)).masked_fill(~common, 0.0).sum(-1)
        square = (torch.tanh(output) - teacher).square()
        return square.masked_fill(~common, 0.0).sum(-1) / common.sum(-1)

    def state_dict(self) -> State:
        return {**self.base.state_dict(), "options": self.options.state_dict(), **self.teachers.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.base.load_state_dict(state)
        self.options.load_state_dict(state["options"])
        self.teachers.load_state_dict(state)
