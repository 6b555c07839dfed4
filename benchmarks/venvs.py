"""Virtual environments for rivals that cannot live beside this project's packages: ``python benchmarks/venvs.py``.

They lie under ``.venv-rivals/``, each with the torch that runs here: BenchMARL needs a TorchRL below 0.12, rlberry a
Gymnasium below 0.30, and stable-baselines3 beside Atari need not be what this project's environment holds.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.pair import Missing

HOME = Path(__file__).parent.parent / ".venv-rivals"
PACKAGES = {
    "torchrl": ["torchrl==0.14.1", "tensordict==0.14.3", "vmas==1.5.2"],
    "rlberry": ["rlberry==0.7.3", "rlberry-scool==0.7.3"],
    "sb3": ["stable-baselines3==2.9.2", "gymnasium==1.3.0", "ale-py==0.12.1"],
    "benchmarl": ["benchmarl==1.5.2", "torchrl==0.11.1", "tensordict==0.11.0", "vmas==1.5.2"],
}


def python(name: str) -> Path:
    """The interpreter of a rival's environment; raises ``Missing`` where it was not made, or was made otherwise."""
    stamp = HOME / name / "installed"
    if not stamp.exists() or stamp.read_text() != wanted(name):
        raise Missing(name)
    return HOME / name / "bin" / "python"


def make(name: str) -> None:
    """Install a rival, saying what is run; does nothing where it is installed."""
    try:
        python(name)
        return
    except Missing:
        print(f"installing {name} into {HOME / name} (some minutes)", flush=True)
    pip = [str(HOME / name / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(HOME / name)],
        [*pip, *wanted(name).split()[:1]],
        [*pip, *wanted(name).split()],
    ):
        print("+", *command, flush=True)
        subprocess.run(command, check=True)
    (HOME / name / "installed").write_text(wanted(name))


def wanted(name: str) -> str:
    """What is installed, as the stamp says; torch first, so that nothing else chooses it."""
    return " ".join([f"torch=={torch.__version__.split('+')[0]}", *PACKAGES[name]])


if __name__ == "__main__":
    for rival in PACKAGES:
        make(rival)
