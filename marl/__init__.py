"""Teams of agents that learn from each other.

``marl.train``, ``marl.resume``, ``marl.evaluate`` and ``marl.load`` are the whole public face for one's own scripts;
``marl.reciprocity`` is the module for one's own code base. Each is imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marl.api import evaluate, load, resume, train
    from marl.types import UserError

__version__ = "0.1.0"
__all__ = ["UserError", "evaluate", "load", "resume", "train"]

_WHERE = {name: "marl.api" for name in ("evaluate", "load", "resume", "train")} | {"UserError": "marl.types"}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'marl' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
