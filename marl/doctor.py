"""What is installed, what is missing and how to get it, and which known traps this machine holds."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from marl.runfolder import RUNS, free_space, size

DISTRIBUTION = "marl-reciprocity"

RECORDED = (
    *("torch", "numpy", "scipy", "numba", "gymnasium", "pettingzoo", "mpe2", "mujoco", "safetensors", "tensorboard"),
    *("gymnasium-robotics", "jax", "jaxlib", "jaxmarl", "ale-py", "minatar"),
)
"""Distributions whose versions every run records: its numbers may depend on them."""

MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "LD_PRELOAD")
"""Environment variables that decide whether large temporaries cost page faults at every step."""


def installed(name: str) -> str | None:
    """The version of a distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Versions of Python, of this project and of what its numbers depend on, for ``config.json``."""
    return {"python": platform.python_version(), "marl": installed(DISTRIBUTION)} | {n: installed(n) for n in RECORDED}


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def report(runs: Path = RUNS) -> dict[str, Any]:
    """Everything that ``marl doctor`` says, as JSON values.

    Returns:
        ``versions``: distribution -> version or None. ``machine``: system, cores, torch's threads, CUDA device.
        ``required``: needs of the core that are not met, as pip writes them. ``extras``: name -> ``{"missing": [...],
        "install": command}`` for each optional part. ``starcraft``: what ``smac/*`` still needs, in order, each as
        ``{"what": line, "commands": [...]}``. ``traps``: one line for each that was found. ``disk_free``: bytes where
        runs go. ``malloc``: the variables that are set. ``ok``: nothing required is missing, no trap was found.
    """
    from marl.envs import smac

    required, extras = _requirements()
    found = traps()
    if wrong := smac.wrong_package():
        found.append(f"{wrong.what}; {', then '.join(wrong.commands)}")
    return {
        "versions": versions(),
        "machine": _machine(),
        "required": required,
        "extras": extras,
        "starcraft": [{"what": need.what, "commands": list(need.commands)} for need in smac.missing()],
        "traps": found,
        "runs": str(runs),
        "disk_free": free_space(runs),
        "malloc": {name: os.environ[name] for name in MALLOC if name in os.environ},
        "ok": not required and not found,
    }


def print_report(report: dict[str, Any]) -> None:
    """The report for people."""
    machine = report["machine"]
    print("versions")
    for name, version in report["versions"].items():
        print(f"  {name:<20}{version or 'missing'}")
    print("machine")
    print(f"  {machine['system']}, {machine['cores']} cores, torch uses {machine['torch_threads']} threads")
    print(f"  CUDA: {machine['cuda'] or 'none'}")
    print(f"  {report['runs']}: {size(report['disk_free'])} free")
    settings = ", ".join(f"{name}={value}" for name, value in report["malloc"].items())
    print(f"  allocator: {settings or 'as glibc has it (a large MALLOC_MMAP_THRESHOLD_ saves page faults)'}")
    print("optional parts")
    for name, extra in report["extras"].items():
        missing = ", ".join(extra["missing"])
        print(f"  {name:<20}" + (f"missing {missing}; {extra['install']}" if missing else "ready"))
    print(f"  {'smac/*':<20}" + ("missing the following, in this order" if report["starcraft"] else "ready"))
    for need in report["starcraft"]:
        print(f"    {need['what']}")
        for command in need["commands"]:
            print(f"      {command}")
    for need in report["required"]:
        print(f"missing: {need}; pip install {need!r}")
    for trap in report["traps"]:
        print(f"trap: {trap}")
    print("all is well" if report["ok"] else "something needs your hand: see above")


def traps(version: Callable[[str], str | None] = installed) -> list[str]:
    """Combinations that install without complaint and then misbehave, one line each.

    Args:
        version: a distribution's name -> its version, or None.
    """
    mujoco = version("mujoco")
    found = []
    if mujoco == "4.0.0":
        found.append("mujoco 4.0.0 has a solver fault; pip uninstall mujoco, then pip install mujoco==3.4.0")
    if version("pygame") and version("pygame-ce"):
        found.append("pygame and pygame-ce overwrite each other; pip uninstall both, then pip install pygame-ce")
    if mujoco and not version("imageio"):
        found.append("gymnasium's MuJoCo environments fail without imageio; pip install imageio")
    return found


def _requirements() -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Unmet needs of the core, and of every extra that the distribution declares."""
    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return [DISTRIBUTION], {}
    needs = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or []]
    core = [_plain(need) for need in needs if _applies(need, "") and not _met(need)]
    extras = {}
    for extra in metadata.get_all("Provides-Extra") or []:
        own = [need for need in needs if f'extra == "{extra}"' in str(need.marker)]
        missing = [_plain(need) + _unfit(need, extra) for need in own if not _met(need)]
        extras[extra] = {"missing": missing, "install": f"pip install -c constraints.txt -e '.[{extra}]'"}
    return core, extras


def _applies(need: Requirement, extra: str) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": extra})


def _met(need: Requirement) -> bool:
    version = installed(need.name)
    return version is not None and need.specifier.contains(version, prereleases=True)


def _plain(need: Requirement) -> str:
    return f"{need.name}{need.specifier}"


def _unfit(need: Requirement, extra: str) -> str:
    """Said of what pip would not install here for that extra."""
    return "" if _applies(need, extra) else f" (not for Python {platform.python_version()})"


def _machine() -> dict[str, Any]:
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
