"""Other runs that a run takes something from, as they are named on the command line: ``RUN`` or ``RUN:agent``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from marl import parts, registry, teaching
from marl.checkpoint import Checkpoints
from marl.config import suggestion
from marl.envs.base import EnvSpec
from marl.recipe import Recipe, recipe_of
from marl.types import UserError


def origin(
    text: str, members: Sequence[str], networks: Sequence[str] | None = None, only: int | None = None
) -> dict[str, Any]:
    """Where the members of a new run start from, as JSON: what ``marl.transfer`` goes by, and ``config.json`` holds.

    A member starts from the source's member of the same name; without one, from the first. So it depends on no other
    member of the new run.

    Args:
        text: ``RUN``, or ``RUN:agent`` (name or number) to start every agent from that one.
        members: the new run's, by name.
        networks: which to take; None: all.
        only: the number of the source's member from which all start. None: as above.

    Returns:
        ``{"given", "networks", "agent", "members": {name: {"run", "member", "name"}}}``; ``run`` is the folder with
        that member's checkpoints, ``member`` its number there, ``agent`` a number or None.

    Raises:
        UserError: no run, agent or checkpoint there.
    """
    folder, agent = split(text)
    recipe = recipe_of(folder)
    found = {name: _entry(folder, recipe, _number(name, recipe) if only is None else only) for name in members}
    given = list(networks) if networks else None
    numbered = None if agent is None else agent_number(agent, recipe.spec(), f"no agent {agent!r} in {folder}")
    return {"given": text, "networks": given, "agent": numbered, "members": found}


def at_step(members: Mapping[str, dict[str, Any]], step: int | None = None) -> None:
    """Note of the members of an ``origin`` which checkpoint is meant; None: the newest that can be used now."""
    runs = {entry["run"] for entry in members.values()} if step is None else set()
    newest = {run: Checkpoints.of(Path(run)).load(replay=False).step for run in runs}
    for entry in members.values():
        entry["step"] = newest.get(entry["run"], step)


def teachers(texts: Sequence[str], members: Sequence[str], algorithm: str) -> list[dict[str, Any]]:
    """Frozen policies as JSON: what ``marl.teaching`` and ``marl.modules.teachers`` go by, and ``config.json`` holds.

    A member is taught by the source's member of the same name; without one, by the first.

    Args:
        texts: ``RUN:agent`` (name or number), or ``RUN`` of a run with one agent.
        members: the new run's, by name.
        algorithm: the new run's.

    Returns:
        For each ``{"given", "agent", "name", "algorithm", "environment", "members", "sizes", "activation", "gives"}``;
        ``members`` as in ``origin``, and the ``step`` of each one's checkpoint.

    Raises:
        UserError: the algorithm takes no teachers; no run, agent or checkpoint there; a policy that cannot be one.
    """
    if not _takes_teachers(algorithm):
        takers = [name for name in registry.ALGORITHMS if _takes_teachers(name)]
        raise UserError(f"teachers: {algorithm} takes none; choose {', '.join(takers[:-1])} or {takers[-1]}")
    records = []
    for text in texts:
        folder, named = split(text)
        recipe = recipe_of(folder)
        found = {name: _entry(folder, recipe, _number(name, recipe)) for name in members}
        at_step(found)
        spec = recipe.spec()
        if named is None and spec.n_agents > 1:
            raise UserError(
                f"teachers: {text} has {spec.n_agents} agents, expected RUN:agent, one of {', '.join(spec.agents)}"
            )
        agent = 0 if named is None else agent_number(named, spec, f"no agent {named!r} in {folder}")
        learner = dataclasses.replace(recipe, members=recipe.members[:1]).make_learner(spec)
        names = {"algorithm": recipe.algorithm, "environment": recipe.environment, "name": spec.agents[agent]}
        looks = teaching.shape(text, learner, spec, agent)
        records.append({"given": text, "agent": agent, **names, "members": found, **looks})
    return records


def split(text: str) -> tuple[Path, str | None]:
    """Folder and agent of ``RUN`` or ``RUN:agent``; a folder whose name has a colon is one.

    Raises ``UserError`` for no name at all.
    """
    if not text:
        raise UserError("expected a run to take something from, RUN or RUN:agent, got ''")
    run, colon, agent = text.rpartition(":")
    return (Path(text), None) if not colon or Path(text).exists() else (Path(run), agent)


def _takes_teachers(algorithm: str) -> bool:
    return getattr(registry.algorithm(algorithm), "takes_teachers", False)


def _number(name: str, recipe: Recipe) -> int:
    """That of the member of that name; without one, of the first."""
    names = [member.name for member in recipe.members]
    return names.index(name) if name in names else 0


def _entry(folder: Path, recipe: Recipe, member: int) -> dict[str, Any]:
    """Where a member's checkpoints are; raises ``UserError`` where there are none."""
    home, local = parts.home(folder, member)
    if Checkpoints.of(home).newest() is None:
        raise UserError(f"{home} has no checkpoint")
    return {"run": str(home.resolve()), "member": local, "name": recipe.members[member].name}


def agent_number(text: str, spec: EnvSpec, refusal: str) -> int:
    """The number of the agent of that name or number; raises ``UserError`` with these words where there is none."""
    if text in spec.agents:
        return spec.agents.index(text)
    if text.isdecimal() and int(text) < spec.n_agents:
        return int(text)
    raise UserError(f"{refusal}{suggestion(text, spec.agents)}")
