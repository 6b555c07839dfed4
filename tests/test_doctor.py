"""The doctor names what is missing, how to get it, and the traps; it makes nothing up."""

import importlib.metadata
import json
import platform
import subprocess
import sys

import pytest

from marl import doctor


def test_the_recorded_versions_are_those_installed():
    import numpy
    import torch

    found = doctor.versions()
    release = torch.__version__.partition("+")[0]  # without the name of a build, such as cu130
    assert found["torch"].partition("+")[0] == release and found["numpy"] == numpy.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert json.loads(json.dumps(found)) == found


def test_the_report_is_json_and_every_part_is_printed(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "268435456")
    report = doctor.report(tmp_path / "not" / "there" / "yet")
    assert json.loads(json.dumps(report)) == report
    assert report["disk_free"] > 0
    doctor.print_report(report)
    text = capsys.readouterr().out
    for word in ("torch", "cores", "free", "MALLOC_TRIM_THRESHOLD_=268435456", *report["extras"]):
        assert word in text


def test_what_is_missing_or_too_old_comes_with_the_command_that_mends_it(monkeypatch, capsys):
    needs = ["numpy >=2.0", "nothing-like-it >=3", "pytest >=8; extra == 'test'", "nowhere; extra == 'test'"]
    needs += ["later; extra == 'test' and python_version >= '9'"]
    needs += ["torch >=999", "winonly; sys_platform == 'win32'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needs)
    report = doctor.report()
    assert report["required"] == ["nothing-like-it>=3", "torch>=999"] and not report["ok"]
    install = "pip install -c constraints.txt -e '.[test]'"
    here = f"(not for Python {platform.python_version()})"
    assert report["extras"]["test"] == {"missing": ["nowhere", f"later {here}"], "install": install}
    doctor.print_report(report)
    text = capsys.readouterr().out
    assert "missing: torch>=999; pip install 'torch>=999'" in text
    assert f"later {here}; pip install -c constraints.txt -e '.[test]'" in text


@pytest.mark.parametrize(
    "installed, word",
    [
        ({"mujoco": "4.0.0", "imageio": "2"}, "solver fault"),
        ({"pygame": "2.6", "pygame-ce": "2.5"}, "overwrite each other"),
        ({"mujoco": "3.4.0"}, "imageio"),
    ],
)
def test_a_known_trap_is_found(installed, word):
    (line,) = doctor.traps(installed.get)
    assert word in line and "pip " in line


def test_the_doctor_leads_from_the_optimiser_called_smac_to_a_game_that_is_ready(monkeypatch, tmp_path, capsys):
    """The wrong package, no game, no maps; then each is mended, in the order in which the doctor names them."""

    def said():
        report = doctor.report()
        doctor.print_report(report)
        assert json.loads(json.dumps(report)) == report
        return report, capsys.readouterr().out

    (tmp_path / "smac" / "facade").mkdir(parents=True)
    (tmp_path / "smac" / "__init__.py").write_text("raise RuntimeError('only looked for, never imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SC2PATH", str(tmp_path / "SC2"))
    report, text = said()
    assert [need["what"].partition(" ")[0] for need in report["starcraft"]] == ["the", "StarCraft", "the"]
    (trap,) = [trap for trap in report["traps"] if "smac" in trap]
    assert "hyper-parameter optimiser" in trap and "pip uninstall smac" in trap and not report["ok"]
    for word in ("git+https://github.com/oxwhirl/smac.git", "SC2.4.10.zip", "export SC2PATH=", "SMAC_Maps.zip"):
        assert word in text
    (tmp_path / "smac" / "env" / "starcraft2").mkdir(parents=True)
    report, text = said()
    assert len(report["starcraft"]) == 2 and not any("smac" in trap for trap in report["traps"])
    (tmp_path / "SC2" / "Versions" / "Base75689").mkdir(parents=True)
    report, text = said()
    assert len(report["starcraft"]) == 1 and "SC2.4.10.zip" not in text and "SMAC_Maps.zip" in text
    (tmp_path / "SC2" / "Maps" / "SMAC_Maps").mkdir(parents=True)
    report, text = said()
    assert report["starcraft"] == [] and "smac/*              ready" in text


def test_an_optimiser_that_is_installed_is_called_by_its_version(monkeypatch, tmp_path):
    from marl.envs import smac

    (tmp_path / "smac").mkdir()
    (tmp_path / "smac" / "__init__.py").touch()
    (tmp_path / "smac-2.3.1.dist-info").mkdir()
    (tmp_path / "smac-2.3.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: smac\nVersion: 2.3.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    wrong = smac.wrong_package()
    assert wrong is not None and wrong.what.startswith("smac 2.3.1 here is not StarCraft's")


def test_a_sound_installation_has_no_trap():
    assert doctor.traps({"mujoco": "3.4.0", "pygame-ce": "2.5", "imageio": "2"}.get) == []


def test_the_doctor_imports_nothing_heavy_but_torch():
    code = """
import sys
from marl import doctor
doctor.report()
heavy = "gymnasium", "pettingzoo", "mpe2", "mujoco", "tensorboard", "matplotlib"
print([module for module in heavy if module in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr
