"""The final networks of a team of lifelong agents, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from marl.algos.dqn import DQN, DQNConfig
from marl.envs.base import EnvSpec
from marl.runfolder import explain_disk_errors, write_atomically
from marl.types import UserError

FILE = "agents.safetensors"


def team_folder(seed: Path, team: str) -> Path:
    """Where a team keeps its files, in the folder of its seed."""
    return seed / team.replace(", ", "-").replace(" ", "-").lower()


def save_agents(folder: Path, parts: Sequence[Mapping[str, Tensor]]) -> None:
    """Write ``agents.safetensors`` whole or not at all.

    Args:
        folder: the team's, which need not exist yet.
        parts: ``critic.state_dict()`` of the stacks in which the agents live, in the agents' order.

    Raises:
        UserError: the disk is full or cannot be written to.
    """
    whole = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
    with explain_disk_errors(folder, f"{FILE} was not written"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE, safetensors.torch.save(whole))


def load_agents(folder: Path, spec: EnvSpec, config: DQNConfig) -> DQN:
    """The agents of ``save_agents`` as the members of one DQN, to play: ``act(view, explore=False)``.

    Args:
        folder: the team's.
        spec: that the tasks have in common.
        config: the learner's.

    Raises:
        UserError: there is no such file, it is damaged, or its networks are not those of ``spec`` and ``config``.
    """
    path = folder / FILE
    try:
        saved = safetensors.torch.load(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is not there: the run is not finished, or older than these files") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    agents = len(next(iter(saved.values()))) if saved else 0
    learner = DQN(spec, [config] * agents, range(agents)) if agents else None
    wanted = {} if learner is None else dict(learner.critic.named_parameters())
    if learner is None or {n: p.shape for n, p in wanted.items()} != {n: t.shape for n, t in saved.items()}:
        raise UserError(f"{path} holds other networks than the run's config.json says")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(saved[name])
    return learner
