"""What the README and the pages tell a reader to type exists: commands, options, make targets, files, code."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from marl import api, classic_cli, cli, lifelong_cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEVER_RUN = ("...", "ALGO", "FOLDER")  # words that stand for something else


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path, program: str) -> list[list[str]]:
    """The command lines of shell blocks that start that program, comments cut off and continued lines joined.

    ``taskset -c CPUS`` before it only says where it runs.
    """
    lines = [line for block in blocks(page, "(?:bash|sh|console)") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    words = [line[3:] if line[:2] == ["taskset", "-c"] else line for line in words]
    found = [line[1:] for line in words if line and line[0] == program]
    return [line for line in found if not any(word in line for word in NEVER_RUN)]


def everywhere(program: str) -> list[object]:
    return [
        pytest.param(line, id=f"{page.name}: {' '.join(line)}") for page in PAGES for line in commands(page, program)
    ]


@pytest.fixture
def hollow(monkeypatch):
    """The command line without what its commands do: arguments are read and checked, nothing runs."""
    for name in ("train", "resume"):
        monkeypatch.setattr(api, name, lambda *_, **__: Path("runs/x"))
    monkeypatch.setattr(api, "evaluate", lambda *_, **__: {"members": []})
    monkeypatch.setattr("marl.export.export", lambda *_: SimpleNamespace(folder=Path("runs/x"), files=[], script=""))
    monkeypatch.setattr("marl.plot.plot", lambda *_, **__: SimpleNamespace(table=[], path=""))
    monkeypatch.setattr(cli, "_finish", lambda *_: None)
    monkeypatch.setattr(api, "member_number", lambda *_: 0)
    monkeypatch.setattr(cli, "_is_experiment", lambda folder: "classic" in str(folder))
    monkeypatch.setattr(lifelong_cli, "is_lifelong", lambda folder: "lifelong" in str(folder))
    for name in ("evaluate", "plot"):
        monkeypatch.setattr(lifelong_cli, name, lambda *_: None)
    monkeypatch.setattr(classic_cli, "_make", lambda *_: Path("runs/x"))
    monkeypatch.setattr(classic_cli, "resume", lambda *_: None)


@pytest.mark.parametrize("line", everywhere("marl"))
def test_the_command_line_takes_the_command(hollow, capsys, line):
    try:
        code = cli.main(line)
    except SystemExit as end:  # --help
        code = end.code
    assert code == 0, capsys.readouterr().err


def test_a_command_with_a_wrong_option_is_caught(hollow):
    assert cli.main(["train", "maddpg", "mpe/simple_spread_v3", "--reciprocity.kapa", "0.5"]) == 2
    assert cli.main(["classic", "--list", "--jsn"]) == cli.main(["classic", "coop-lvsi"]) == 2


@pytest.mark.parametrize("line", everywhere("make"))
def test_the_makefile_has_the_target(line):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(word for word in line if "=" not in word) <= set(targets)


@pytest.mark.parametrize("line", everywhere("python"))
def test_the_script_exists(line):
    assert line[0].startswith("-") or (ROOT / line[0]).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_code_is_python(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert target.startswith("http") or (page.parent / target).exists(), f"{target} does not exist"
    for block in blocks(page, "python"):
        ast.parse(block)


@pytest.mark.parametrize("block", blocks(PAGES[0], "python"))
def test_the_code_in_the_readme_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
