"""Engines: where workers live."""

from __future__ import annotations

from marl.engines.base import Call, Engine, Gone, Worker
from marl.engines.local import LocalEngine

__all__ = ["Call", "Engine", "Gone", "Worker", "make_engine"]


def make_engine(name: str, address: str | None = None) -> Engine:
    """TODO by helper A."""
    return LocalEngine()
