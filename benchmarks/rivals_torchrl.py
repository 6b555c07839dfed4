"""TorchRL's multi-agent PPO on VMAS, built as in its own tutorial; lives in ``venvs.PACKAGES["torchrl"]``."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.pair import Work
from benchmarks.terms import MAPPOTerms


def mappo_steps(**settings: Any) -> Work:
    """Environment steps of MAPPO on VMAS's simple_spread, learning included; one call gathers a rollout and learns.

    Given all that makes it fast: the vectorised environment, one collector call a rollout, no checks of specs, no
    logging, no statistics of losses. VMAS has nine discrete actions where MPE has five, and no empty messages in its
    observations: 14 numbers where MPE has 18.
    """
    from tensordict.nn import TensorDictModule
    from torch.distributions import Categorical
    from torchrl.collectors import Collector
    from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
    from torchrl.envs.libs.vmas import VmasEnv
    from torchrl.modules import MultiAgentMLP, ProbabilisticActor
    from torchrl.objectives import ClipPPOLoss, ValueEstimators

    terms = MAPPOTerms(**settings)
    frames = terms.copies * terms.steps
    env = VmasEnv(
        "simple_spread", num_envs=terms.copies, continuous_actions=False, max_steps=terms.steps, seed=0, n_agents=3
    )
    obs_size = env.observation_spec["agents", "observation"].shape[-1]
    actions = env.full_action_spec_unbatched[env.action_key].space.n

    def network(outputs: int, centralised: bool) -> torch.nn.Module:
        return MultiAgentMLP(
            n_agent_inputs=obs_size,
            n_agent_outputs=outputs,
            n_agents=3,
            centralized=centralised,
            share_params=True,
            depth=len(terms.hidden),
            num_cells=list(terms.hidden),
            activation_class=torch.nn.Tanh,
        )

    policy = ProbabilisticActor(
        TensorDictModule(network(actions, False), [("agents", "observation")], [("agents", "logits")]),
        spec=env.action_spec_unbatched,
        in_keys=[("agents", "logits")],
        out_keys=[env.action_key],
        distribution_class=Categorical,
        return_log_prob=True,
        log_prob_key=("agents", "action_log_prob"),
    )
    critic = TensorDictModule(network(1, True), [("agents", "observation")], [("agents", "state_value")])
    collector = Collector(env, policy, frames_per_batch=frames, total_frames=-1, track_traj_ids=False)
    loss = ClipPPOLoss(
        policy,
        critic,
        clip_epsilon=terms.clip,
        entropy_coeff=terms.entropy,
        normalize_advantage=True,
        loss_critic_type="l2",
        clip_value=True,
    )
    loss.set_keys(
        reward=env.reward_key,
        action=env.action_key,
        sample_log_prob=("agents", "action_log_prob"),
        value=("agents", "state_value"),
        done=("agents", "done"),
        terminated=("agents", "terminated"),
    )
    loss.make_value_estimator(ValueEstimators.GAE, gamma=terms.gamma, lmbda=terms.lam)
    rows = frames // terms.minibatches
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(frames), sampler=SamplerWithoutReplacement(), batch_size=rows
    )
    optimiser = torch.optim.Adam(loss.parameters(), terms.lr)
    rollouts = iter(collector)

    def work() -> float:
        data = next(rollouts)
        reward = data["next", "agents", "reward"]
        for flag in ("done", "terminated"):  # the team's flag, once for each agent
            data["next", "agents", flag] = data["next", flag].unsqueeze(-1).expand(reward.shape)
        with torch.no_grad():
            loss.value_estimator(
                data, params=loss.critic_network_params, target_params=loss.target_critic_network_params
            )
        buffer.extend(data.reshape(-1))
        for _ in range(terms.epochs * terms.minibatches):
            values = loss(buffer.sample())
            (values["loss_objective"] + values["loss_critic"] + values["loss_entropy"]).backward()
            torch.nn.utils.clip_grad_norm_(loss.parameters(), terms.max_grad_norm)
            optimiser.step()
            optimiser.zero_grad()
        collector.update_policy_weights_()
        return float(frames)

    return work
