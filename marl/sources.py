"""Other runs that a run takes something from, as they are named on the command line: ``RUN`` or ``RUN:agent``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marl import parts
from marl.checkpoint import Checkpoints
from marl.config import suggestion
from marl.recipe import Recipe
from marl.runfolder import read_training
from marl.types import UserError


def origin(text: str, members: Sequence[str], networks: Sequence[str] | None = None) -> dict[str, Any]:
    """Where the members of a new run start from, as JSON: what ``marl.transfer`` goes by, and ``config.json`` holds.

    A member starts from the source's member of the same name; without one, from that of the same number, counted round
    and round where the source has fewer.

    Args:
        text: ``RUN``, or ``RUN:agent`` (name or number) to start every agent from that one.
        members: the new run's, by name.
        networks: which to take; None: all.

    Returns:
        ``{"given", "networks", "agent", "members": {name: {"run", "member", "name"}}}``; ``run`` is the folder with
        that member's checkpoints, ``member`` its number there, ``agent`` a number or None.

    Raises:
        UserError: no run, agent or checkpoint there.
    """
    folder, agent = split(text)
    recipe = Recipe.from_json(read_training(folder))
    names = [member.name for member in recipe.members]
    found = {}
    for number, name in enumerate(members):
        source = names.index(name) if name in names else number % len(names)
        home, local = parts.home(folder, source)
        if Checkpoints(home / "checkpoints").newest() is None:
            raise UserError(f"{home} has no checkpoint to start from")
        found[name] = {"run": str(home.resolve()), "member": local, "name": names[source]}
    given = list(networks) if networks else None
    return {"given": text, "networks": given, "agent": _agent(agent, recipe), "members": found}


def split(text: str) -> tuple[Path, str | None]:
    """Folder and agent of ``RUN`` or ``RUN:agent``; a folder whose name has a colon is one."""
    run, colon, agent = text.rpartition(":")
    return (Path(text), None) if not colon or Path(text).exists() else (Path(run), agent)


def _agent(text: str | None, recipe: Recipe) -> int | None:
    if text is None:
        return None
    with contextlib.closing(recipe.make_env(copies=1)) as env:
        agents = env.spec.agents
    if text in agents:
        return agents.index(text)
    if text.isdigit() and int(text) < len(agents):
        return int(text)
    raise UserError(f"no agent {text!r} in the run to start from{suggestion(text, agents)}")
