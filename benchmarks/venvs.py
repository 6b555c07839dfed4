"""Virtual environments for what cannot live beside this project's packages: ``python benchmarks/venvs.py [NAME ...]``.

They lie under ``.venv-rivals/``, each with the torch that runs here: BenchMARL needs a TorchRL below 0.12, rlberry a
Gymnasium below 0.30, and stable-baselines3 beside Atari need not be what this project's environment holds. BenchMARL's
is no copy but borrows torch and whatever else it lacks, this project included, from the environment that makes it:
seconds instead of minutes, for ``make test`` runs in it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.pair import Missing

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".venv-rivals"
PACKAGES = {
    "torchrl": ["torchrl==0.14.1", "tensordict==0.14.3", "vmas==1.5.2"],
    "rlberry": ["rlberry==0.7.3", "rlberry-scool==0.7.3"],
    "sb3": ["stable-baselines3==2.9.2", "gymnasium==1.3.0", "ale-py==0.12.1"],
}
BORROWERS = {
    "benchmarl": [
        "benchmarl==1.5.2",
        "torchrl==0.11.1",
        "tensordict==0.11.0",
        "vmas==1.5.2",
        "hydra-core==1.3.8",
        "omegaconf==2.3.1",
        "antlr4-python3-runtime==4.9.3",
        "PyYAML==6.0.3",
        "cloudpickle==3.1.2",
        "orjson==3.13.0",
        "pyvers==0.2.3",
        "importlib_metadata==9.0.1",
        "zipp==4.1.2",
        "gym==0.26.2",
        "gym-notices==0.0.8",
        "six==1.17.0",
    ],
}


def python(name: str) -> Path:
    """The interpreter of an environment; raises ``Missing`` where it was not made, or was made otherwise."""
    stamp = HOME / name / "installed"
    if not stamp.exists() or stamp.read_text() != wanted(name):
        raise Missing(name)
    return HOME / name / "bin" / "python"


def make(name: str) -> None:
    """Install an environment, saying what is run; does nothing where it is installed."""
    try:
        python(name)
        return
    except Missing:
        print(f"installing {name} into {HOME / name} (some minutes)", flush=True)
    pip = [str(HOME / name / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    commands = [[sys.executable, "-m", "venv", "--clear", str(HOME / name)]]
    if name in BORROWERS:
        commands.append([*pip, "--no-deps", *BORROWERS[name]])
    else:
        commands += [[*pip, *wanted(name).split()[:1]], [*pip, *wanted(name).split()]]
    for command in commands:
        print("+", *command, flush=True)
        subprocess.run(command, check=True)
    if name in BORROWERS:
        (packages,) = (HOME / name).glob("lib/python*/site-packages")
        (packages / "borrowed.pth").write_text(f"{lender()}\n{ROOT}\n")  # searched after its own packages
    (HOME / name / "installed").write_text(wanted(name))


def wanted(name: str) -> str:
    """What is installed, as the stamp says; torch first, so that nothing else chooses it."""
    if name in BORROWERS:
        return " ".join([f"borrowed from {lender()}", *BORROWERS[name]])
    return " ".join([f"torch=={torch.__version__.split('+')[0]}", *PACKAGES[name]])


def lender() -> Path:
    """The folder of the packages that run here."""
    return Path(torch.__file__).parent.parent


if __name__ == "__main__":
    for each in sys.argv[1:] or [*PACKAGES, *BORROWERS]:
        make(each)
