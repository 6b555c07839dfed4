"""Where the workers of a run live: in this process, in processes of their own, or in a Ray cluster."""

from __future__ import annotations

from typing import get_args

from marl.config import EngineName, suggestion
from marl.engines.base import Call, Engine, Gone, Worker
from marl.types import UserError

__all__ = ["ENGINES", "Call", "Engine", "Gone", "Worker", "make_engine"]

ENGINES = get_args(EngineName)


def make_engine(name: str, address: str | None = None) -> Engine:
    """An engine, to be closed.

    Args:
        name: one of ``ENGINES``.
        address: HOST:PORT of a Ray cluster that this machine belongs to; None: what ``RAY_ADDRESS`` says, else a Ray
            instance of this process's own on this machine. Of no use to the other engines.

    Raises:
        UserError: no such engine, an address that is of no use or leads nowhere, or Ray is not installed.
    """
    if name not in ENGINES:
        raise UserError(f"no engine {name!r}{suggestion(name, ENGINES)}")
    if name == "ray":
        from marl.engines.ray import RayEngine

        return RayEngine(address)
    if address is not None:
        raise UserError(f"address {address}: only the engine 'ray' has one, got the engine {name!r}")
    if name == "processes":
        from marl.engines.processes import ProcessEngine

        return ProcessEngine()
    from marl.engines.local import LocalEngine

    return LocalEngine()
