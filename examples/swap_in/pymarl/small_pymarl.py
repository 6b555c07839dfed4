"""What stands around a learner in PyMARL and EPyMARL, as small as it can be: batch, agents, mixer, critic, game.

Names and shapes are theirs, the code is not. A batch holds whole episodes: ``batch[key]`` is
``[bs, T + 1, n_agents, ...]``, and ``[bs, T + 1, ...]`` for what is the team's (state, reward, terminated, filled).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch as th
import torch.nn.functional as F
from torch import Tensor, nn

ACTIONS, LIMIT, REACH = 3, 15, 0.06


class EpisodeBatch:
    """Episodes side by side; also the replay, which draws some of its own."""

    def __init__(self, data: dict[str, Tensor]) -> None:
        self.data = data
        self.batch_size, self.max_seq_length = data["filled"].shape[:2]
        self.device = data["filled"].device

    def __getitem__(self, key: str) -> Tensor:
        return self.data[key]

    def sample(self, size: int) -> EpisodeBatch:
        rows = th.randperm(self.batch_size)[:size]
        return EpisodeBatch({key: value[rows].clone() for key, value in self.data.items()})

    def extended(self, other: EpisodeBatch, most: int) -> EpisodeBatch:
        return EpisodeBatch({key: th.cat([value, other[key]])[-most:] for key, value in self.data.items()})


class Cover:
    """Agents on a line cover as many spots: -mean over spots of the distance to the nearest agent, until all are
    covered within ``REACH`` or ``LIMIT`` moves are over. Actions: left, stay, right."""

    def __init__(self, copies: int, agents: int) -> None:
        self.x, self.spots = th.rand(copies, agents), th.rand(copies, agents)
        self.over = th.zeros(copies, dtype=th.bool)

    def look(self) -> dict[str, Tensor]:
        everything = th.cat([self.x, self.spots], -1)
        others = th.stack([self.x.roll(-k, 1) for k in range(1, self.x.shape[1])], -1)
        seen = th.cat([others, self.spots.unsqueeze(1).expand(-1, self.x.shape[1], -1)], -1)
        own = self.x.unsqueeze(-1)
        avail = th.ones(*self.x.shape, ACTIONS, dtype=th.long)
        return {"obs": th.cat([own, seen - own], -1), "state": everything, "avail_actions": avail}

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        self.x = (self.x + 0.1 * (actions - 1)).clamp(0, 1)
        gaps = (self.x.unsqueeze(1) - self.spots.unsqueeze(2)).abs().amin(-1)
        return -gaps.mean(-1), gaps.amax(-1) < REACH


class RNNAgent(nn.Module):
    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        super().__init__()
        self.args = args
        self.fc1 = nn.Linear(input_shape, args.hidden_dim)
        self.rnn = nn.GRUCell(args.hidden_dim, args.hidden_dim)
        self.fc2 = nn.Linear(args.hidden_dim, args.n_actions)

    def forward(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.rnn(F.relu(self.fc1(inputs)), hidden)
        return self.fc2(hidden), hidden


class BasicMAC:
    """One network for all agents, told whose it is."""

    def __init__(self, args: SimpleNamespace) -> None:
        self.args, self.n_agents = args, args.n_agents
        self.agent = RNNAgent(args.obs_shape + args.n_actions + args.n_agents, args)
        self.hidden_states = th.empty(0)

    def init_hidden(self, batch_size: int) -> None:
        self.hidden_states = th.zeros(batch_size * self.n_agents, self.args.hidden_dim)

    def forward(self, ep_batch: Any, t: int) -> Tensor:
        """``[bs, n_agents, n_actions]`` at moment t of a batch; moments are asked in turn."""
        last = ep_batch["actions_onehot"][:, t - 1] if t else th.zeros_like(ep_batch["actions_onehot"][:, 0])
        who = th.eye(self.n_agents).expand(ep_batch.batch_size, -1, -1)
        inputs = th.cat([ep_batch["obs"][:, t], last, who], -1).flatten(0, 1)
        out, self.hidden_states = self.agent(inputs, self.hidden_states)
        return out.view(ep_batch.batch_size, self.n_agents, -1)

    def select_actions(self, ep_batch: Any, t: int, explore: float) -> Tensor:
        greedy = self.forward(ep_batch, t).argmax(-1)
        if not explore:
            return greedy
        return th.where(th.rand(greedy.shape) < explore, th.randint(ACTIONS, greedy.shape), greedy)

    def parameters(self) -> Any:
        return self.agent.parameters()

    def load_state(self, other: BasicMAC) -> None:
        self.agent.load_state_dict(other.agent.state_dict())


class MADDPGMAC(BasicMAC):
    """The same network's outputs as logits of a policy."""

    def select_actions(self, ep_batch: Any, t: int, explore: float) -> Tensor:
        logits = self.forward(ep_batch, t)
        return (gumbel_softmax(logits) if explore else logits).argmax(-1)

    def target_actions(self, ep_batch: Any, t: int) -> Tensor:
        return F.one_hot(self.forward(ep_batch, t).argmax(-1), ACTIONS).float()


def gumbel_softmax(logits: Tensor) -> Tensor:
    """A one-hot sample with the gradient of the softmax."""
    return F.gumbel_softmax(logits, hard=True)


class QMixer(nn.Module):
    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__()
        self.n_agents, self.embed_dim = args.n_agents, args.mixing_embed_dim
        hyper = args.hypernet_embed

        def made(out: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(args.state_shape, hyper), nn.ReLU(), nn.Linear(hyper, out))

        self.hyper_w_1, self.hyper_w_final = made(self.n_agents * self.embed_dim), made(self.embed_dim)
        self.hyper_b_1, self.V = nn.Linear(args.state_shape, self.embed_dim), made(1)

    def forward(self, agent_qs: Tensor, states: Tensor) -> Tensor:
        """``[bs, T, n_agents]`` and ``[bs, T, state]`` -> ``[bs, T, 1]``, rising in each agent's value."""
        w1 = self.hyper_w_1(states).abs().unflatten(-1, (self.n_agents, self.embed_dim))
        hidden = F.elu((agent_qs.unsqueeze(-2) @ w1).squeeze(-2) + self.hyper_b_1(states))
        return (hidden * self.hyper_w_final(states).abs()).sum(-1, keepdim=True) + self.V(states)


class MADDPGCritic(nn.Module):
    """One critic for all agents, told whose it is: inputs and joint actions -> ``[..., 1]``."""

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__()
        self.fc1 = nn.Linear(args.state_shape + args.n_agents + args.n_agents * args.n_actions, args.hidden_dim)
        self.fc2, self.fc3 = nn.Linear(args.hidden_dim, args.hidden_dim), nn.Linear(args.hidden_dim, 1)

    def forward(self, inputs: Tensor, actions: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(th.cat([inputs, actions], -1))))))


@th.no_grad()
def run_episodes(mac: BasicMAC, copies: int, explore: float) -> EpisodeBatch:
    """``copies`` episodes of the game, padded with zeros after their ends."""
    n, game, width = mac.n_agents, Cover(copies, mac.n_agents), (copies, LIMIT + 1)
    data = {
        "obs": th.zeros(*width, n, mac.args.obs_shape),
        "state": th.zeros(*width, mac.args.state_shape),
        "avail_actions": th.zeros(*width, n, ACTIONS, dtype=th.long),
        "actions": th.zeros(*width, n, 1, dtype=th.long),
        "actions_onehot": th.zeros(*width, n, ACTIONS),
        "reward": th.zeros(*width, 1),
        "terminated": th.zeros(*width, 1),
        "filled": th.zeros(*width, 1),
    }
    batch = EpisodeBatch(data)
    mac.init_hidden(copies)
    for t in range(LIMIT + 1):
        going = ~game.over
        data["filled"][going, t] = 1.0
        for key, value in game.look().items():
            data[key][going, t] = value[going]
        actions = mac.select_actions(batch, t, explore)
        data["actions"][going, t] = actions[going].unsqueeze(-1)
        data["actions_onehot"][going, t] = F.one_hot(actions[going], ACTIONS).float()
        if t < LIMIT:
            reward, covered = game.step(actions)
            data["reward"][going, t, 0] = reward[going]
            data["terminated"][going, t, 0] = covered[going].float()
            game.over = game.over | covered
    return batch


def evaluated(mac: BasicMAC, episodes: int = 256, seed: int = 12345) -> float:
    """Mean return of greedy episodes from the same starts each time; the random stream is left where it was."""
    state = th.get_rng_state()
    th.manual_seed(seed)
    batch = run_episodes(mac, episodes, explore=0.0)
    th.set_rng_state(state)
    return float(batch["reward"].sum(1).mean())
