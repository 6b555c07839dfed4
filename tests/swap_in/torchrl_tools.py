"""What the tests of the TorchRL recipes share: losses, batches, and a host for the contract."""

from __future__ import annotations

import importlib

import pytest
import torch

pytest.importorskip("torchrl")
from tensordict import TensorDict
from torchrl.objectives import (
    ClipPPOLoss,
    DDPGLoss,
    QMixerLoss,
    SoftUpdate,
    TD3Loss,
)

from marl.reciprocity import Reciprocal
from marl.swap.torchrl import blend_targets

LOSSES = ["ddpg", "td3", "qmix", "ppo"]
FOLDERS = {"ddpg": "torchrl_ddpg", "td3": "torchrl_ddpg", "qmix": "torchrl_qmix", "ppo": "torchrl_ppo"}
STEPS = {"ddpg": 72, "td3": 72, "qmix": 72, "ppo": 50}  # 64 before learning starts; one rollout
N, ROWS = 3, 6


def recipe(loss: str, name: str):
    return importlib.import_module(f"examples.swap_in.{FOLDERS[loss]}.{name}")


def made(loss: str, seed: int = 0):
    """The recipe's loss of this kind, with targets that differ from the critics."""
    torch.manual_seed(seed)
    module = recipe(loss, "plain").make_loss(*([loss] if loss in ("ddpg", "td3") else []))
    if loss != "ppo":
        SoftUpdate(module, tau=0.01)  # without it TorchRL warns that nobody moves the targets
    return module


def batch(loss: str, terminated: bool = False):
    """``[6]``, or six rollouts of four steps for PPO."""
    lead = (ROWS, 4) if loss == "ppo" else (ROWS,)
    agents = () if loss == "qmix" else (N,)
    end = torch.full((*lead, *agents, 1), terminated)
    earned = {"reward": torch.randn(*lead, *agents, 1), "done": end, "terminated": end.clone()}
    now, after = {"observation": torch.randn(*lead, N, 3)}, {"observation": torch.randn(*lead, N, 3)}
    now["action"] = torch.randint(3, (*lead, N)) if loss == "qmix" else torch.rand(*lead, N, 1)
    following = {"agents": after, **earned} if loss == "qmix" else {"agents": {**after, **earned}}
    return TensorDict({"agents": now, "next": following}, lead)


def targets(module, data, target_params=None):
    """The targets as they enter the loss: ``[N, B]``, of a team ``[1, B]``."""
    if isinstance(module, ClipPPOLoss):
        module.value_estimator(data, params=module.critic_network_params, target_params=target_params)
        return data["value_target"].flatten(0, 1).squeeze(-1).T
    seen, estimator = [], module.value_estimator
    estimate = estimator.value_estimate
    estimator.value_estimate = lambda *args, **kwargs: seen.append(estimate(*args, **kwargs)) or seen[-1]
    try:
        module(data)
    finally:
        estimator.value_estimate = estimate
    return seen[0].squeeze(-1).reshape(ROWS, -1).T


def target_critics(module):
    """The parameters that targets are made with."""
    names = {DDPGLoss: "value", TD3Loss: "qvalue", QMixerLoss: "local_value"}
    return getattr(module, f"target_{names[type(module)]}_network_params")


def answering(params, values):
    """The stacked critics with these parameters answer values[j], or twins values[k][j], whatever they are asked."""
    leaves = sorted(params.items(True, True), key=lambda item: str(item[0]))
    for _, leaf in leaves:
        leaf.data.zero_()
    leaves[-2][1].data.copy_(torch.tensor(values).unsqueeze(-1))  # the last layer's bias, before its weight


class Host:
    """For ``check_reciprocity``: any of the four losses; PPO with targets that are not the critics themselves."""

    loss = "ddpg"

    def __init__(self, kappa, seed):
        self.module = made(self.loss, seed)
        self.params = self.module.critic_network_params.data.clone() if self.loss == "ppo" else None
        if kappa is not None:
            blend_targets(self.module, Reciprocal(N, kappa))

    def targets(self, terminated):
        return targets(self.module, batch(self.loss, terminated), self.params)

    def answer(self, values):
        answering(target_critics(self.module) if self.params is None else self.params, values)
