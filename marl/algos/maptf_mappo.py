"""MAPTF on MAPPO: the actors' loss is the clipped surrogate and the cross-entropy of their policies to those of the
teammates, or frozen teachers, that their option modules say to imitate (Yang et al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from marl.algos.common import Metrics, as_read, readable
from marl.algos.mappo import MAPPO, MAPPOConfig, Sequences, choosing
from marl.config import option
from marl.envs.base import EnvSpec, Step
from marl.modules.options import OptionModule, OptionsConfig, everybodys_answers, whom
from marl.modules.teachers import Teacher, Teachers
from marl.ops.losses import masked_mean
from marl.population import per_member
from marl.rollout import Rollout
from marl.streams import Streams
from marl.types import Acted, State, Trajectory, UserError, View


@dataclass(frozen=True)
class MAPTFMAPPOConfig(MAPPOConfig):
    """MAPPO's settings and the option module's."""

    shared: bool = option(False, "One network for all agents: not possible here, there would be nobody to imitate.")
    options: OptionsConfig = option(OptionsConfig(), "Whom to imitate, and how much.")


class OptionRollout(Rollout):
    """A rollout whose ``memory`` is the option in use *at* each step."""

    def add(self, view: View, acted: Acted, step: Step) -> None:
        super().add(view._replace(memory=acted.memory), acted, step)


class MAPTFMAPPO:
    """The learner. Shapes: P members, N agents, B = T E rows, O = N + K options, D and A the widest observation
    and action.

    Args:
        spec: the environment's.
        configs: one per member; they may differ in the settings marked ``sweep``.
        seeds: one per member.
        teachers: K frozen policies, whose weights come with ``load_state_dict`` or from ``marl.teaching``.

    Raises ``UserError`` for teachers whose actions are of another kind, for networks that agents share (there would be
    nobody to imitate), and for networks with a memory (it would have to be of what another agent saw).
    """

    Config = MAPTFMAPPOConfig
    Buffer = OptionRollout
    memory_size = 1
    """The option in use, counted from 1; 0 where an episode begins."""

    takes_teachers = True

    def __init__(
        self, spec: EnvSpec, configs: Sequence[MAPTFMAPPOConfig], seeds: Sequence[int], teachers: Sequence[Teacher] = ()
    ) -> None:
        self.config = config = configs[0]
        for name in ("shared", "recurrent"):
            if getattr(config, name):
                raise UserError(f"maptf-mappo cannot imitate with {name}=true; choose {name}=false")
        self.base = MAPPO(spec, configs, seeds)
        self.teachers = Teachers(teachers, spec, len(seeds))
        options, gamma = [c.options for c in configs], per_member(configs, "gamma")
        self.options = OptionModule(options, gamma, seeds, spec.obs_mask, len(teachers))
        self.spec, self.discrete = spec, spec.discrete
        self.rows = Streams(seeds, "options/rows")

    def act(self, view: View, explore: bool) -> Acted:
        """Each agent's own policy acts; with ``explore`` its option goes on or another one is chosen."""
        action = self.base.act(view._replace(memory=None), explore).action
        if view.memory is None or not explore:
            return Acted(action, view.memory)
        return Acted(action, self.options.choose(as_read(view.obs, self.spec), view.memory))

    def update(self, batch: Trajectory) -> Metrics:
        """One update of MAPPO, imitation included, and as many gradient steps of the option module as there are steps
        in the rollout, each on ``options.batch`` of its rows."""
        assert batch.memory is not None
        option = self.options.option(batch.memory.flatten(2, 3))
        obs, avail = batch.obs.flatten(2, 3), None if batch.avail is None else batch.avail.flatten(2, 3)
        answers, common = self.everybodys_answers(obs, avail)
        taken = None
        if self.discrete:
            taken = (answers.argmax(-1) == batch.action.flatten(2, 3).unsqueeze(2)).transpose(2, 3)
        weight = self.options.imitation_weight(as_read(obs, self.spec), option)
        note = self.lesson(whom(answers, option), weight.unsqueeze(-1) * whom(common, option), option)
        note = note.unflatten(2, batch.reward.shape[2:])
        heard: list[Tensor] = []

        def imitate(output: Tensor, part: Sequences) -> Tensor:
            assert part.note is not None
            loss = self.imitation(output, part.note)
            heard.append(masked_mean(loss.detach(), choosing(part.valid, part.avail)))
            return loss

        metrics = self.base.update(batch._replace(memory=None), note, imitate)
        learnt = self.learn_options(readable(batch, self.spec), option, taken)
        return {**metrics, "loss/imitation": torch.stack(heard).mean(0), **learnt}

    @torch.no_grad()
    def everybodys_answers(self, obs: Tensor, avail: Tensor | None) -> tuple[Tensor, Tensor]:
        """Agent or teacher o's logits or mean at agent i's observation, ``[P, N, O, B, A]``, and which entries agent i
        may follow: see ``marl.modules.options.everybodys_answers``."""

        def actor(seen: Tensor) -> Tensor:
            output: Tensor = self.base.actor(seen.unsqueeze(2))[0]
            return output.squeeze(2)

        return self.teachers.join(*everybodys_answers(actor, as_read(obs, self.spec), avail, self.spec), obs, avail)

    @torch.no_grad()
    def lesson(self, teacher: Tensor, weight: Tensor, option: Tensor) -> Tensor:
        """What is to be imitated, as numbers that do not move while the policies do.

        Args:
            teacher: logits or means of who is imitated, ``[P, N, B, A]``.
            weight: of each action or component, ``[P, N, B, A]``.
            option: ``[P, N, B]``.

        Returns:
            Discrete: weighted probabilities ``[P, N, B, A]``. Continuous: weights, means and variances side by side; a
            frozen teacher's variance counts as the agent's own, so that only its mean is imitated.
        """
        if self.discrete:
            return weight * softmax(teacher, -1)
        variance = (2 * self.base.actor.log_std.flatten(2)).exp()  # [P, N, A]
        index = torch.where(option < self.spec.n_agents, option, self.options.me)
        index = index.flatten(1).unsqueeze(-1).expand(-1, -1, teacher.shape[-1])
        return torch.cat([weight, teacher, variance.gather(1, index).view_as(teacher)], dim=-1)

    def imitation(self, output: Tensor, note: Tensor) -> Tensor:
        """Weighted cross-entropy of the imitated policy relative to one's own (continuous: before clipping, without its
        constant), with a gradient into one's own alone: ``[P, N, L, S]``.

        Args:
            output: logits or means, ``[P, N, L, S, A]``.
            note: what ``lesson`` returned, ``[P, N, L, S, *]``.
        """
        if self.discrete:
            return -(note * log_softmax(output, -1)).sum(-1)
        weight, mean, variance = note.chunk(3, dim=-1)
        log_std = self.base.actor.log_std
        return (weight * (log_std + (variance + (mean - output).square()) / (2 * (2 * log_std).exp()))).sum(-1)

    def learn_options(self, batch: Trajectory, option: Tensor, taken: Tensor | None) -> Metrics:
        """Gradient steps of the option module on rows drawn at random; the last one's metrics."""
        steps, copies = batch.reward.shape[2:]
        names = ("obs", "reward", "next_obs", "terminated", "valid")
        rows = {name: getattr(batch, name).flatten(2, 3) for name in names} | {"option": option}
        if taken is not None:
            rows["taken"] = taken
        metrics: Metrics = {}
        for index in self.rows.integers(steps * copies, steps, self.config.options.batch).unbind(1):  # [P, batch]
            metrics = self.options.update(**{name: take(x, index) for name, x in rows.items()})
        return metrics

    def state_dict(self) -> State:
        own = {"options": self.options.state_dict(), "rows": self.rows.state_dict()}
        return {**self.base.state_dict(), **own, **self.teachers.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.base.load_state_dict(state)
        self.options.load_state_dict(state["options"])
        self.rows.load_state_dict(state["rows"])
        self.teachers.load_state_dict(state)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Each member's rows ``index`` ``[P, R]`` of ``[P, N, B, ...]``: ``[P, N, R, ...]``."""
    return torch.stack([each.index_select(1, i) for each, i in zip(x, index, strict=True)])
