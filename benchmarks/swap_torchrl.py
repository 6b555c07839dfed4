"""Updates with TorchRL's losses, with and without this project's reciprocity in them."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from benchmarks.pair import Work
from examples.swap_in.torchrl_ddpg import plain as ddpg
from examples.swap_in.torchrl_ppo import plain as ppo
from examples.swap_in.torchrl_qmix import plain as qmix

ROWS = (ddpg.BATCH, ddpg.AGENTS)


def updates(loss: str = "ddpg", **reciprocity: Any) -> Work:
    """Updates of the three agents of a recipe, at its sizes; {}: without reciprocity.

    Args:
        loss: ``ddpg``, ``td3``, ``qmix``, or ``ppo``, whose update is all that follows one rollout.
    """
    from torchrl.objectives import SoftUpdate

    torch.manual_seed(0)
    module = {"qmix": qmix.make_loss, "ppo": ppo.make_loss}[loss]() if loss in ("qmix", "ppo") else ddpg.make_loss(loss)
    if reciprocity:
        from marl.reciprocity import Reciprocal
        from marl.swap.torchrl import blend_targets

        blend_targets(module, Reciprocal(ddpg.AGENTS, **reciprocity))
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
    if loss == "ppo":
        data = _rollout(module)

        def work() -> float:
            ppo.learn(module, optimiser, data)
            return 1.0

    else:
        targets, batch = SoftUpdate(module, tau=0.01), _team_batch() if loss == "qmix" else _batch()

        def work() -> float:
            losses = module(batch)
            optimiser.zero_grad()
            sum(value for key, value in losses.items() if key.startswith("loss")).backward()
            optimiser.step()
            targets.step()
            return 1.0

    for _ in range(3 if loss == "ppo" else 20):
        work()
    return work


def _batch() -> TensorDict:
    never = torch.zeros(*ROWS, 1, dtype=torch.bool)
    after = {"observation": _seen(), "reward": torch.randn(*ROWS, 1), "done": never, "terminated": never}
    now = {"observation": _seen(), "action": torch.rand(*ROWS, 1)}
    return TensorDict({"agents": now, "next": {"agents": after}}, ROWS[:1])


def _team_batch() -> TensorDict:
    never = torch.zeros(ROWS[0], 1, dtype=torch.bool)
    after = {"agents": {"observation": _seen()}, "reward": torch.randn(ROWS[0], 1), "done": never, "terminated": never}
    now = {"observation": _seen(), "action": torch.randint(3, ROWS)}
    return TensorDict({"agents": now, "next": after}, ROWS[:1])


def _rollout(loss: Any) -> TensorDict:
    never, steps = torch.zeros(ppo.COPIES, ppo.AGENTS, 1, dtype=torch.bool), []
    state = ppo.start(ppo.COPIES)
    for _ in range(ppo.ROLLOUT):
        now = ppo.act(loss, state)
        state, reward = ppo.swing(state, now["agents", "action"])
        after = {"observation": ppo.observe(state), "reward": reward, "done": never, "terminated": never}
        steps.append(now.set("next", TensorDict({"agents": after}, [ppo.COPIES])))
    return torch.stack(steps, 1)


def _seen() -> Tensor:
    return torch.randn(*ROWS, 3)
