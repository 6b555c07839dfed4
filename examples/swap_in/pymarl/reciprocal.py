"""QMIX and MADDPG with the learners of PyMARL and EPyMARL, on a game of three agents that cover three spots."""

# mypy: disable-error-code="import-not-found"
import argparse
import copy
import sys
from types import SimpleNamespace
from typing import Any

import torch as th
from learners.reciprocity import ReciprocalTargets
from small_pymarl import MADDPGMAC, BasicMAC, MADDPGCritic, QMixer, evaluated, gumbel_softmax, run_episodes
from torch.optim import Adam

DEFAULTS: dict[str, Any] = {"n_agents": 3, "n_actions": 3, "obs_shape": 6, "state_shape": 6, "hidden_dim": 64}
DEFAULTS |= {"mixing_embed_dim": 32, "hypernet_embed": 64, "double_q": True, "gamma": 0.99, "reg": 0.001, "lr": 5e-4}
DEFAULTS |= {"grad_norm_clip": 10, "target_update_interval_or_tau": 0.01, "batch_size": 32, "buffer_size": 5000}
DEFAULTS |= {"batch_size_run": 8, "obs_agent_id": True, "obs_last_action": False, "obs_individual_obs": False}


class QLearner:
    def __init__(self, mac: Any, args: SimpleNamespace) -> None:
        self.args, self.mac, self.target_mac = args, mac, copy.deepcopy(mac)
        self.mixer = QMixer(args)
        self.target_mixer = copy.deepcopy(self.mixer)
        self.params = [*mac.parameters(), *self.mixer.parameters()]
        self.optimiser = Adam(self.params, lr=args.lr)
        self.reciprocity = ReciprocalTargets(args)

    def train(self, batch: Any) -> None:
        actions, avail_actions = batch["actions"][:, :-1], batch["avail_actions"]
        mask = batch["filled"][:, :-1]

        mac_out = unrolled(self.mac, batch)
        chosen_action_qvals = mac_out[:, :-1].gather(3, actions).squeeze(3)

        target_mac_out, others = self.reciprocity.unrolled(self.target_mac, batch)
        target_mac_out[avail_actions[:, 1:] == 0] = -9999999
        if self.args.double_q:
            live = mac_out.detach()[:, 1:].masked_fill(avail_actions[:, 1:] == 0, -9999999)
            cur_max_actions = live.max(dim=3, keepdim=True)[1]
            target_max_qvals = target_mac_out.gather(3, cur_max_actions).squeeze(3)
        else:
            target_max_qvals = target_mac_out.max(dim=3)[0]
            cur_max_actions = target_mac_out.max(dim=3, keepdim=True)[1]
        target_max_qvals = self.reciprocity.utilities(target_max_qvals, others, cur_max_actions)

        chosen_action_qvals = self.mixer(chosen_action_qvals, batch["state"][:, :-1])
        target_max_qvals = self.target_mixer(target_max_qvals, batch["state"][:, 1:])
        self.targets = batch["reward"][:, :-1]
        self.targets = self.targets + self.args.gamma * (1 - batch["terminated"][:, :-1]) * target_max_qvals.detach()

        loss = ((chosen_action_qvals - self.targets) * mask).square().sum() / mask.sum()
        stepped(self.optimiser, loss, self.params, self.args)
        followed(self.target_mac, self.mac, self.args)
        followed(self.target_mixer, self.mixer, self.args)


class MADDPGLearner:
    def __init__(self, mac: Any, args: SimpleNamespace) -> None:
        self.args, self.mac, self.target_mac = args, mac, copy.deepcopy(mac)
        self.critic = MADDPGCritic(args)
        self.target_critic = copy.deepcopy(self.critic)
        self.agent_params, self.critic_params = list(mac.parameters()), list(self.critic.parameters())
        self.agent_optimiser = Adam(self.agent_params, lr=args.lr)
        self.critic_optimiser = Adam(self.critic_params, lr=args.lr)
        self.reciprocity = ReciprocalTargets(args)

    def train(self, batch: Any) -> None:
        mask, n_agents = batch["filled"][:, :-1].unsqueeze(2), self.args.n_agents
        inputs = self._build_inputs(batch)
        actions = batch["actions_onehot"].flatten(2).unsqueeze(2).expand(-1, -1, n_agents, -1)
        q_taken = self.critic(inputs[:, :-1], actions[:, :-1])

        self.target_mac.init_hidden(batch.batch_size)
        chosen = [self.target_mac.target_actions(batch, t) for t in range(batch.max_seq_length)]
        target_actions = th.stack(chosen[1:], dim=1).flatten(2).unsqueeze(2).expand(-1, -1, n_agents, -1)
        target_vals = self.target_critic(inputs[:, 1:], target_actions.detach())
        target_vals = self.reciprocity.critics(
            target_vals, self.target_critic, inputs[:, 1:], target_actions, batch["filled"][:, 1:]
        )
        self.targets = batch["reward"][:, :-1].unsqueeze(2)
        on = 1 - batch["terminated"][:, :-1].unsqueeze(2)
        self.targets = self.targets + self.args.gamma * on * target_vals.detach()

        loss = ((q_taken - self.targets) * mask).square().mean()
        stepped(self.critic_optimiser, loss, self.critic_params, self.args)

        # each agent's own action from its policy, with the gradient; the others' without
        pis = unrolled(self.mac, batch)[:, :-1]
        drawn = gumbel_softmax(pis)
        own = th.eye(n_agents, dtype=th.bool)[:, :, None]
        new_actions = th.where(own, drawn.unsqueeze(2), drawn.detach().unsqueeze(2)).flatten(3)
        pg_loss = -(self.critic(inputs[:, :-1], new_actions) * mask).mean() + self.args.reg * pis.square().mean()
        stepped(self.agent_optimiser, pg_loss, self.agent_params, self.args)
        followed(self.target_mac, self.mac, self.args)
        followed(self.target_critic, self.critic, self.args)

    def _build_inputs(self, batch: Any) -> th.Tensor:
        who = th.eye(self.args.n_agents).expand(*batch["filled"].shape[:2], -1, -1)
        return th.cat([batch["state"].unsqueeze(2).expand(-1, -1, self.args.n_agents, -1), who], dim=-1)


def unrolled(mac: Any, batch: Any) -> th.Tensor:
    mac.init_hidden(batch.batch_size)
    return th.stack([mac.forward(batch, t=t) for t in range(batch.max_seq_length)], dim=1)


def stepped(optimiser: Any, loss: th.Tensor, params: Any, args: SimpleNamespace) -> None:
    optimiser.zero_grad()
    loss.backward()
    th.nn.utils.clip_grad_norm_(params, args.grad_norm_clip)
    optimiser.step()


@th.no_grad()
def followed(target: Any, online: Any, args: SimpleNamespace) -> None:
    for slow, p in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(p, args.target_update_interval_or_tau)


def train(steps: int, seed: int, learner: str = "qmix", **settings: Any) -> Any:
    """The learner after so many steps of the game, all copies counted."""
    th.set_num_threads(1)
    th.manual_seed(seed)
    args = SimpleNamespace(**(DEFAULTS | settings))
    made: Any = QLearner(BasicMAC(args), args) if learner == "qmix" else MADDPGLearner(MADDPGMAC(args), args)
    buffer, t_env = None, 0
    while t_env < steps:
        explore = max(0.05, 1 - 2 * t_env / steps)
        episodes = run_episodes(made.mac, args.batch_size_run, explore)
        buffer = episodes if buffer is None else buffer.extended(episodes, args.buffer_size)
        t_env += int(episodes["filled"][:, :-1].sum())
        if buffer.batch_size >= args.batch_size:
            made.train(buffer.sample(args.batch_size))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learner", choices=("qmix", "maddpg"), default="qmix")
    parser.add_argument("--kappa", type=float, default=0.5)
    given = parser.parse_args()
    learner = train(given.steps, given.seed, given.learner, reciprocity={"kappa": given.kappa})
    print("parameters of the agents:", sum(p.numel() for p in learner.mac.parameters()), file=sys.stderr)
    print("return", evaluated(learner.mac))


if __name__ == "__main__":
    main()
