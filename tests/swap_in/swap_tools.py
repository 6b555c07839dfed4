"""What a recipe of ``examples/swap_in`` changes in the user's script, and where the pages show it.

``python tests/swap_in/swap_tools.py sb3_single`` prints what the page of that folder must hold.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent
RECIPES = ROOT / "examples" / "swap_in"
PAGES = ROOT / "docs" / "swap-in"
CAPTIONED = re.compile(r"^`examples/swap_in/(\w+)`\n+```diff\n(.*?)^```$", re.DOTALL | re.MULTILINE)
"""A line with the folder's name alone, and the block of its diff."""


def recipes() -> list[str]:
    """The folders that hold a script without and one with reciprocity."""
    return sorted(path.parent.name for path in RECIPES.glob("*/plain.py") if path.with_name("reciprocal.py").exists())


def diff(recipe: str) -> list[str]:
    """The lines of the unified diff from the plain script to the other, two lines of context, without its header."""
    plain, reciprocal = ((RECIPES / recipe / name).read_text() for name in ("plain.py", "reciprocal.py"))
    lines = difflib.unified_diff(plain.splitlines(), reciprocal.splitlines(), n=2, lineterm="")
    return list(lines)[2:]


def changed(recipe: str) -> int:
    """How many lines a user adds or changes; empty ones count as well."""
    return sum(line.startswith("+") for line in diff(recipe))


def shown(text: str) -> list[tuple[str, list[str]]]:
    """``(folder, lines)`` of each captioned diff of a page."""
    return [(name, block.splitlines()) for name, block in CAPTIONED.findall(text)]


def script(recipe: str, name: str) -> ModuleType:
    """A recipe's script as a module of its own, which no other recipe's script of that name gets in the way of."""
    spec = importlib.util.spec_from_file_location(f"{recipe}_{name}", RECIPES / recipe / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print("\n".join([f"`examples/swap_in/{name}`", "", "```diff", *diff(name), "```"]))
