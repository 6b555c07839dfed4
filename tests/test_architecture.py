"""The house rules of the source tree, each with a planted violation that it catches.

A rule is a function from ``{module name: source text}`` to a list of complaints, so that the same function judges the
real tree and the planted one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("marl", "scripts", "benchmarks", "examples", "tests")
MAX_LINES = 400

ROOMS: tuple[tuple[str, ...], ...] = (
    ("marl.types",),
    ("marl.streams", "marl.config", "marl.pickling", "marl.finite", "marl.processes", "marl.surroundings"),
    ("marl.registry", "marl.population", "marl.envs.base"),
    ("marl.ops",),
    ("marl.modules",),
    ("marl.replay", "marl.reciprocity", "marl.testing", "marl.swap"),
    ("marl.swap",),
    ("marl.rollout", "marl.episodes"),
    ("marl.algos",),
    (
        "marl.envs",
        "marl.checkpoint",
        "marl.log",
        "marl.events",
        "marl.stats",
        "marl.plot",
        "marl.drawing",
        "marl.doctor",
        "marl.runfolder",
        "marl.summary",
        "marl.terminal",
    ),
    ("marl.engines",),
    ("marl.loop", "marl.evaluation"),
    ("marl.recipe", "marl.presets", "marl.networks", "marl.policies", "marl.exported"),
    ("marl.session", "marl.transfer", "marl.teaching"),
    ("marl.parts",),
    ("marl.sources",),
    ("marl", "marl.api", "marl.export"),
    ("marl.classic",),
    ("marl.lifelong",),
    ("marl.parser",),
    ("marl.cli", "marl.classic_cli", "marl.lifelong_cli", "marl.__main__"),
)
"""From the bottom to the top; the longest name that fits counts. A module may import its own floor and those below, so
an algorithm or a replay knows the environments' contract (``envs.base``) and no environment. ``marl`` itself is the
public face, ``marl.reciprocity`` the one for other people's code. Only ``marl.lifelong``, whose experiments run in its
frame, and the command line know ``marl.classic``, which has a rule of its own."""

BASE = ("marl.types", "marl.streams", "marl.config", "marl.registry", "marl.pickling", "marl.processes")
RECIPROCITY = "marl.modules.reciprocity"
RECIPROCITY_PUBLIC = {"Reciprocity", "ReciprocityConfig", "make_reciprocity"}
RECIPROCITY_PARTS = (
    *(f"marl.modules.{part}" for part in ("adjacency", "foreign", "graph", "hooks", "plain")),
    "marl.reciprocity",
)

CLASSIC_BASE = ("marl.types", "marl.config")
CLASSIC_FRAME = tuple(f"marl.classic.{name}" for name in ("runner", "results", "storage", "figure"))
CLASSIC_OUTSIDE = ("marl.stats", "marl.runfolder", "marl.events", "marl.terminal", "marl.drawing", "marl.processes")
"""What the frame of the experiments may know besides; algorithms know neither that nor the frame nor experiments."""
EXPERIMENTS = "marl.classic.experiments"
TORCH_FREE = ("marl.classic", "marl.cli", "marl.classic_cli")

Sources = Mapping[str, str]


def inside(module: str, *rooms: str) -> bool:
    return any(module == room or module.startswith(room + ".") for room in rooms)


def floor(module: str) -> int:
    """The index in ``ROOMS``; -1 for a module that no room holds. ``marl`` itself holds nothing but ``__init__``."""
    floors = {room: i for i, rooms in enumerate(ROOMS) for room in rooms}
    fitting = [room for room in floors if module == room or (room != "marl" and inside(module, room))]
    return floors[max(fitting, key=len)] if fitting else -1


def at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """What runs when the module is imported: neither function bodies nor ``if TYPE_CHECKING``."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo.extend(node.orelse)
            continue
        yield node
        todo.extend(ast.iter_child_nodes(node))


def imports(module: str, sources: Sources, only_at_import: bool = False) -> Iterator[tuple[str, str]]:
    """``(module, name)`` for each import; the name is empty for ``import x``.

    Imports inside functions count as well: to import late is still to depend.
    """
    tree = ast.parse(sources[module])
    for node in at_import(tree) if only_at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                is_package = any(other.startswith(module + ".") for other in sources)
                parts = module.split(".")
                parent = parts[: len(parts) - node.level + is_package]
                source = ".".join([*parent, *([source] if source else [])])
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                yield (whole, "") if whole in sources else (source, alias.name)


def edges(sources: Sources) -> dict[str, set[str]]:
    """Module -> the project's modules that it imports."""
    return {m: {t for t, _ in imports(m, sources) if inside(t, "marl")} for m in sources}


def homeless(sources: Sources) -> list[str]:
    return [f"{m} is in no room: add it to ROOMS" for m in sources if floor(m) < 0]


def upward_imports(sources: Sources) -> list[str]:
    found = []
    for module, targets in edges(sources).items():
        for target in sorted(targets):
            if inside(module, "marl.envs") and module != "marl.envs.base":
                allowed = inside(target, *BASE, "marl.envs")
            elif inside(module, "marl.classic"):
                allowed = classic_may_import(module, target)
            else:
                allowed = floor(target) <= floor(module)
            if not allowed:
                found.append(f"{module} may not import {target}")
    return found


def classic_may_import(module: str, target: str) -> bool:
    if inside(module, *CLASSIC_FRAME):
        return inside(target, *CLASSIC_BASE, *CLASSIC_OUTSIDE, "marl.classic")
    own = inside(target, "marl.classic") and not inside(target, *CLASSIC_FRAME)
    known = inside(module, EXPERIMENTS) or not inside(target, EXPERIMENTS)
    return inside(target, *CLASSIC_BASE) or (own and known)


def cycles(sources: Sources) -> list[str]:
    graph = edges(sources)
    done: set[str] = set()
    found = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())
    return found


def reciprocity_intrusions(sources: Sources) -> list[str]:
    found = []
    for module in sources:
        if not inside(module, "marl.algos"):
            continue
        for target, name in imports(module, sources):
            opened = inside(target, *RECIPROCITY_PARTS, RECIPROCITY)
            if opened and not (target == RECIPROCITY and name in RECIPROCITY_PUBLIC):
                found.append(f"{module} reaches into {target} for {name or 'the whole module'}")
    return found


def torch_in_classic(sources: Sources) -> list[str]:
    """Follows imports from what needs no torch through the project, the packages' ``__init__`` included."""
    todo = [(m, m) for m in sources if inside(m, *TORCH_FREE)]
    seen: set[str] = set()
    found = []
    while todo:
        module, origin = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        if inside(module, "torch"):
            found.append(f"{origin} loads torch")
        if module in sources:
            todo += [(target, module) for target, _ in imports(module, sources, only_at_import=True)]
            todo += [(module.rpartition(".")[0], module)] if "." in module else []
    return found


def long_files(lines: Mapping[str, int]) -> list[str]:
    return [f"{name} has {count} lines, {MAX_LINES} at most" for name, count in lines.items() if count > MAX_LINES]


RULES = [homeless, upward_imports, cycles, reciprocity_intrusions, torch_in_classic]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="module")
def tree() -> dict[str, str]:
    return {module_name(path): path.read_text() for path in sorted((ROOT / "marl").rglob("*.py"))}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_the_rule(rule, tree):
    assert len(tree) > 10, "the tree was not found"
    assert rule(tree) == []


def test_every_file_is_at_most_400_lines_long():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert long_files({str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}) == []


def test_a_file_of_401_lines_is_caught_and_one_of_400_is_not():
    assert long_files({"a.py": 401, "b.py": 400}) == ["a.py has 401 lines, 400 at most"]


@pytest.mark.parametrize(
    "module, line, complaint",
    [
        ("marl.types", "import marl.config", "marl.types may not import marl.config"),
        ("marl.ops.x", "from marl.modules.y import z", "marl.ops.x may not import marl.modules.y"),
        ("marl.modules.x", "from marl import replay", "marl.modules.x may not import marl.replay"),
        ("marl.algos.x", "def f():\n    from marl.loop import train", "marl.algos.x may not import marl.loop"),
        ("marl.log", "from .loop import train", "marl.log may not import marl.loop"),
        ("marl.loop", "from marl import train", "marl.loop may not import marl"),
        ("marl.envs.x", "from marl.ops.y import z", "marl.envs.x may not import marl.ops.y"),
        ("marl.replay", "from marl.envs import make_env", "marl.replay may not import marl.envs"),
        ("marl.algos.x", "import marl.envs.mpe", "marl.algos.x may not import marl.envs.mpe"),
        ("marl.envs.base", "from marl.envs.mpe import y", "marl.envs.base may not import marl.envs.mpe"),
        ("marl.classic.x", "from marl.ops.y import z", "marl.classic.x may not import marl.ops.y"),
        ("marl.classic.x", "from marl.stats import t_interval", "marl.classic.x may not import marl.stats"),
        ("marl.classic.runner", "import marl.loop", "marl.classic.runner may not import marl.loop"),
        ("marl.classic.x", "import marl.classic.runner", "marl.classic.x may not import marl.classic.runner"),
        (f"{EXPERIMENTS}.x", "import marl.classic.figure", f"{EXPERIMENTS}.x may not import marl.classic.figure"),
        ("marl.classic.x", f"import {EXPERIMENTS}.y", f"marl.classic.x may not import {EXPERIMENTS}.y"),
        ("marl.algos.x", "from marl.classic.mdp import y", "marl.algos.x may not import marl.classic.mdp"),
    ],
)
def test_an_upward_import_is_caught(module, line, complaint):
    known = {
        "marl.replay": "",
        "marl.envs": "",
        "marl.envs.mpe": "",
        "marl.loop": "",
        "marl.ops.y": "",
        "marl.modules.y": "",
    }
    assert upward_imports({**known, module: line}) == [complaint]


def test_a_downward_import_is_not_a_complaint():
    sources = {"marl.algos.x": "from marl import config\nfrom marl.ops.y import z", "marl.config": "", "marl.ops.y": ""}
    assert upward_imports(sources) == []
    frame = {"marl.classic.runner": f"import marl.stats, {EXPERIMENTS}.base", "marl.cli": "import marl.classic.runner"}
    assert upward_imports(frame | {f"{EXPERIMENTS}.x": "import marl.classic.mdp, marl.config"}) == []


def test_a_cycle_within_a_floor_is_caught():
    sources = {
        "marl.ops.a": "from marl.ops.b import f",
        "marl.ops.b": "def f():\n    from marl.ops import c",
        "marl.ops.c": "import marl.ops.a",
    }
    assert cycles(sources) == ["marl.ops.a -> marl.ops.b -> marl.ops.c -> marl.ops.a"]


def test_a_module_without_a_room_is_caught():
    assert homeless({"marl.utils": ""}) == ["marl.utils is in no room: add it to ROOMS"]


@pytest.mark.parametrize(
    "line",
    [
        "from marl.modules.adjacency import Resample",
        "from marl.modules import graph",
        "from marl.modules.reciprocity import blend",
        "import marl.modules.reciprocity",
        "from marl.modules import reciprocity",
    ],
)
def test_an_algorithm_that_opens_the_reciprocity_package_is_caught(line):
    known = {"marl.modules.adjacency": "", "marl.modules.graph": "", "marl.modules.reciprocity": ""}
    assert len(reciprocity_intrusions({**known, "marl.algos.x": line})) == 1
    assert reciprocity_intrusions({**known, "marl.modules.x": line}) == []


def test_an_algorithm_may_import_the_public_names_of_reciprocity():
    line = "from marl.modules.reciprocity import Reciprocity, ReciprocityConfig, make_reciprocity"
    assert reciprocity_intrusions({"marl.algos.x": line, RECIPROCITY: ""}) == []


@pytest.mark.parametrize("sources", [
    {"marl.classic.x": "import torch"},
    {"marl.classic.x": "from torch.nn import Linear"},
    {"marl.classic.x": "from marl.classic.y import f", "marl.classic.y": "import torch"},
    {"marl.classic.x": "", "marl.classic": "", "marl": "import torch"},
    {"marl.classic_cli": "from marl.log import METRICS", "marl.log": "import torch"},
])  # fmt: skip
def test_torch_in_classic_is_caught_also_through_another_module(sources):
    assert len(torch_in_classic(sources)) == 1


def test_a_late_or_typing_import_of_torch_does_not_load_it_with_classic():
    late = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import torch"
    assert torch_in_classic({"marl.classic.x": late}) == []
