"""Options over policies (Yang et al. 2021, MAPTF): option o of agent i is "imitate agent o", or a frozen teacher.

What an option is worth to an agent is read off a successor representation: features of observations in which rewards
are linear, and the discounted sum of features that follow under the option. An option ends with a learnt probability.
Agents always act by their own policies: options only say whom to imitate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from marl.config import option
from marl.envs.base import EnvSpec
from marl.modules.optim import StackedAdam, step_together
from marl.modules.stacked import Stacked, StackedMLP
from marl.ops.discrete import mask_logits, pick
from marl.ops.losses import masked_mean
from marl.population import per_member
from marl.streams import Streams
from marl.types import State

HIDDEN, FEATURES = 64, 32
FEATURE_NETS = ("embed", "decode", "reward")
MOST_GREEDY = 0.95


@dataclass(frozen=True)
class OptionsConfig:
    """Settings of the option module; the defaults are those of the authors' code."""

    weight: float = option(0.005, "Weight c1 of the imitation in the actors' loss; the authors: .1 on tag.", sweep=True)
    staying: bool = option(False, "Weigh imitation by the probability 1 - beta that the option goes on, too.")
    fade: float = option(0.0005, "How fast imitation fades: .5 + .5 tanh(3 - fade e) after e episodes.", sweep=True)
    greedy: float = option(0.001, "Growth per episode of the probability of the best option, up to .95.", sweep=True)
    xi: float = option(0.005, "What an option may be worse than the best one without being ended.", sweep=True)
    reconstruction: float = option(0.1, "Weight of the observation's reconstruction from its features.", sweep=True)
    lr: float = option(1e-5, "Adam's learning rate of what options are worth and when they end.", sweep=True)
    feature_lr: float = option(3e-4, "Adam's learning rate of the features and of the reward in them.", sweep=True)
    batch: int = option(32, "Transitions per update of the option module.")
    target_interval: int = option(1_000, "Updates of the option module between copies of its target.")
    max_grad_norm: float | None = option(10.0, "Clip each of its networks' gradients to this Euclidean norm.")


class RewardHeads(Stacked):
    """``w_i . phi`` for P x N agents.

    Args:
        init: the members' random streams.
        agents: N.
    """

    def __init__(self, init: Streams, agents: int) -> None:
        super().__init__()
        self.weight = nn.Parameter((2 * init.uniform(agents, FEATURES) - 1) / math.sqrt(FEATURES))
        self.flatten()

    def forward(self, features: Tensor) -> Tensor:
        """``[P, N, ..., K]`` -> ``[P, N, ...]``."""
        between = [1] * (features.dim() - 3)
        return (features * self.weight.view(*self.weight.shape[:2], *between, -1)).sum(-1)


class OptionModule:
    """One option module for each of P teams of N agents. Shapes: K features, O options, one for each agent and teacher.

    Args:
        configs: one per member; they may differ in the settings marked ``sweep``.
        gamma: discount of each member, ``[P, 1, 1]``.
        seeds: one per member.
        obs_mask: ``[N, D]`` bool, True where an observation is no padding.
        teachers: frozen ones, whose options follow the agents'.

    Attributes:
        episodes: ``[P, N]`` int64, how many of each agent's began while options were chosen.
    """

    def __init__(
        self,
        configs: Sequence[OptionsConfig],
        gamma: Tensor,
        seeds: Sequence[int],
        obs_mask: Tensor,
        teachers: int = 0,
    ) -> None:
        each = partial(per_member, configs)
        self.config, self.gamma, self.obs_mask = configs[0], gamma, obs_mask
        self.weight, self.fade, self.greedy, self.xi = each("weight"), each("fade"), each("greedy"), each("xi")
        self.reconstruction = each("reconstruction")
        self.agents, obs_size = obs_mask.shape
        self.count = self.agents + teachers
        self.me = torch.arange(self.agents)[:, None]
        init = Streams(seeds, "options/init")
        self.nets: dict[str, Stacked] = {  # those with one network serve the whole team
            "embed": StackedMLP(init, 1, [obs_size, HIDDEN, FEATURES]),
            "decode": StackedMLP(init, 1, [FEATURES, HIDDEN, obs_size]),
            "reward": RewardHeads(init, self.agents),
            "successor": StackedMLP(init, 1, [FEATURES, HIDDEN]),
            "successor_heads": StackedMLP(init, self.agents, [HIDDEN, self.count * FEATURES]),
            "termination": StackedMLP(init, 1, [FEATURES, HIDDEN]),
            "termination_heads": StackedMLP(init, self.agents, [HIDDEN, self.count]),
        }
        self.targets = {name: self.nets[name].target_copy() for name in ("successor", "successor_heads")}
        self.optimizers = {
            name: StackedAdam(net, each("feature_lr" if name in FEATURE_NETS else "lr"), self.config.max_grad_norm)
            for name, net in self.nets.items()
        }
        self.chance = Streams(seeds, "options/choose")
        self.episodes = torch.zeros(len(seeds), self.agents, dtype=torch.int64)
        self.updates = 0

    def embed(self, obs: Tensor) -> Tensor:
        """phi: ``[P, N, B, D]`` -> ``[P, N, B, K]``."""
        return self.nets["embed"](obs)

    def successors(self, features: Tensor, nets: dict[str, Stacked]) -> Tensor:
        """m_i(phi, o): the discounted features that follow, ``[P, N, B, K]`` -> ``[P, N, B, O, K]``."""
        shared = torch.relu(nets["successor"](features))
        return nets["successor_heads"](shared).unflatten(-1, (self.count, FEATURES))

    def values(self, features: Tensor) -> Tensor:
        """w_i . m_i(phi, o), what each option is worth: ``[P, N, B, K]`` -> ``[P, N, B, O]``."""
        return self.nets["reward"](self.successors(features, self.nets))

    def beta(self, features: Tensor) -> Tensor:
        """Probability that each option ends: ``[P, N, B, K]`` -> ``[P, N, B, O]``."""
        return torch.sigmoid(self.nets["termination_heads"](torch.relu(self.nets["termination"](features))))

    def option(self, memory: Tensor) -> Tensor:
        """The options noted as ``choose`` does, ``[P, N, B, 1]`` -> ``[P, N, B]`` int64; one's own where none was."""
        held = memory.squeeze(-1).long()
        return torch.where(held > 0, held.clamp(max=self.count) - 1, self.me)

    @torch.no_grad()
    def choose(self, obs: Tensor, memory: Tensor) -> Tensor:
        """Keep each option, or with probability beta choose anew: the best one sometimes, else any.

        Args:
            obs: ``[P, N, E, D]``.
            memory: ``[P, N, E, 1]``, what was returned one step earlier; 0 where an episode begins.

        Returns:
            The options, counted from 1, of the memory's shape and type.
        """
        begins = memory.squeeze(-1) <= 0
        self.episodes += begins.sum(-1)
        features = self.embed(obs)
        option = self.option(memory)
        stop, keen, anything = self.chance.uniform(3, *option.shape[1:]).unbind(1)
        greedy = (self.greedy * self.episodes.unsqueeze(-1)).clamp(max=MOST_GREEDY)
        other = torch.where(keen < greedy, self.values(features).argmax(-1), (anything * self.count).long())
        ends = begins | (stop < pick(self.beta(features), option))
        return (torch.where(ends, other, option) + 1).to(memory).unsqueeze(-1)

    @torch.no_grad()
    def imitation_weight(self, obs: Tensor, option: Tensor) -> Tensor:
        """c1 f(e), with ``staying`` times 1 - beta(s, o); 0 for one's own option: ``[P, N, B]``."""
        fading = 0.5 + 0.5 * torch.tanh(3 - self.fade * self.episodes.unsqueeze(-1))
        weight = self.weight * fading * (option != self.me)
        return weight * (1 - pick(self.beta(self.embed(obs)), option)) if self.config.staying else weight

    def update(
        self,
        obs: Tensor,
        reward: Tensor,
        next_obs: Tensor,
        terminated: Tensor,
        option: Tensor,
        taken: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """One gradient step of all its networks; the metrics ``[P, N]`` by name.

        Args:
            obs, next_obs: ``[P, N, B, D]``; the true successor.
            reward: ``[P, N, B]``.
            terminated: ``[P, N, B]`` bool.
            option: ``[P, N, B]`` int64, in use at that step.
            taken: ``[P, N, B, O]`` bool, True for every option whose policy would have done the same; they learn as if
                they had been in use. None: none.
            valid: ``[P, N, B]`` bool, False where a row does not count. None: all do.
        """
        valid = torch.ones_like(terminated) if valid is None else valid
        features = self.embed(obs)
        missed = (obs - self.nets["decode"](features)).masked_fill(~self.obs_mask[:, None], 0.0).square().sum(-1)
        embedding_loss = (reward - self.nets["reward"](features)).square() + self.reconstruction * missed

        features = features.detach()  # no other gradient reaches phi
        with torch.no_grad():
            after = self.embed(next_obs)
            values = self.values(after)
        beta = self.beta(after)
        credited = one_hot(option, self.count).bool()
        credited = credited if taken is None else credited | taken
        target = self.compute_target(features, after, values, beta.detach(), terminated)
        error = (self.successors(features, self.nets) - target).square().sum(-1)
        successor_loss = (error * credited).sum(-1)

        advantage, ends = pick(values, option) - values.amax(-1), pick(beta, option)
        termination_loss = (ends * (advantage + self.xi)).masked_fill(terminated, 0.0)

        loss = masked_mean(embedding_loss + successor_loss + termination_loss, valid)
        step_together(loss.sum(), list(self.optimizers.values()))
        self.updates += 1
        if self.updates % self.config.target_interval == 0:
            for name, net in self.targets.items():
                net.flat.data.copy_(self.nets[name].flat.data)
        return {
            "loss/option": loss.detach(),
            "option/value": masked_mean(pick(values, option), valid),
            "option/beta": masked_mean(ends.detach(), valid),
            "option/own": masked_mean((option == self.me).float(), valid),
            **(
                {"option/teacher": masked_mean((option >= self.agents).float(), valid)}
                if self.count > self.agents
                else {}
            ),
        }

    @torch.no_grad()
    def compute_target(
        self, features: Tensor, after: Tensor, values: Tensor, beta: Tensor, terminated: Tensor
    ) -> Tensor:
        """``phi(s) + gamma (1 - d) [(1 - beta) m-(s', o) + beta m-(s', o*)]``, o* the best: ``[P, N, B, O, K]``.

        Args:
            features, after: phi of s and s', ``[P, N, B, K]``.
            values, beta: of each option at s', ``[P, N, B, O]``.
            terminated: ``[P, N, B]`` bool, d.
        """
        follows = self.successors(after, self.targets)
        best = values.argmax(-1)[..., None, None].expand(*values.shape[:3], 1, FEATURES)
        upon_arrival = torch.lerp(follows, follows.gather(-2, best), beta.unsqueeze(-1))
        ahead = upon_arrival.masked_fill(terminated[..., None, None], 0.0)
        return features.unsqueeze(-2) + self.gamma[..., None, None] * ahead

    def state_dict(self) -> State:
        return {
            "nets": {name: net.state_dict() for name, net in self.nets.items()},
            "targets": {name: net.state_dict() for name, net in self.targets.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "chance": self.chance.state_dict(),
            "episodes": self.episodes.clone(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: State) -> None:
        for name, net in self.nets.items():
            net.load_state_dict(state["nets"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])
        for name, target in self.targets.items():
            target.load_state_dict(state["targets"][name])
        self.chance.load_state_dict(state["chance"])
        self.episodes, self.updates = state["episodes"].clone(), state["updates"]


def whom(outputs: Tensor, option: Tensor) -> Tensor:
    """What the agent that is imitated answered: ``[P, N, O, B, A]`` -> ``[P, N, B, A]``."""
    index = option[:, :, None, :, None].expand(-1, -1, 1, -1, outputs.shape[-1])
    return outputs.gather(2, index).squeeze(2)


def common_actions(action_mask: Tensor, avail: Tensor | None) -> Tensor:
    """Which actions (or components) agent i may take and agent o has: ``[P or 1, N, O, B or 1, A]`` bool.

    Args:
        action_mask: ``[N, A]`` bool, what each agent has.
        avail: ``[P, N, B, A]`` bool; None: all that it has.
    """
    own = action_mask[:, None].unsqueeze(0) if avail is None else avail
    return own.unsqueeze(2) & action_mask[:, None]


def everybodys_answers(
    actor: Callable[[Tensor], Tensor], obs: Tensor, avail: Tensor | None, spec: EnvSpec
) -> tuple[Tensor, Tensor]:
    """Actor o's output at agent i's observation, and which of its entries agent i may follow.

    Args:
        actor: the team's actors, ``[P, O, B, D]`` -> ``[P, O, B, A]``.
        obs: ``[P, N, B, D]``.
        avail: ``[P, N, B, A]``, or None.
        spec: the environment's.

    Returns:
        ``[P, N, O, B, A]``; logits elsewhere are out of reach. Bool ``[P, N, O, B, A]``: actions (or components) that
        both agents have and i may take.
    """
    output = actor(everybodys_view(obs, spec.obs_mask)).unflatten(2, obs.shape[1:3]).transpose(1, 2)
    common = common_actions(spec.action_mask, avail).expand_as(output)
    return mask_logits(output, common) if spec.discrete else output, common


def everybodys_view(obs: Tensor, obs_mask: Tensor) -> Tensor:
    """Every agent's observation as agent o's network can read it: padding where o's own observation has no number.

    ``[P, N, B, D]`` -> ``[P, O, N B, D]``.
    """
    agents = obs.shape[1]
    seen = obs.unsqueeze(1).expand(-1, agents, -1, -1, -1).flatten(2, 3)
    return seen if obs_mask.all() else seen * obs_mask[:, None]
