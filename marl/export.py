"""One agent's policy as a file that runs without this package: safetensors with JSON, ``torch.export``, or ONNX."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

from marl import exported, parts
from marl.doctor import DISTRIBUTION, installed
from marl.policies import Policy, policy_of
from marl.recipe import load_learner
from marl.runfolder import explain_disk_errors, write_atomically
from marl.session import read_recipe
from marl.sources import agent_number
from marl.surroundings import plain_torch
from marl.types import UserError

PYTHON = "policy.py"
DESCRIPTION = "policy.json"
OURS = {"format", "marl", "inputs", "output", "layers"}
"""What every ``policy.json`` that this library wrote has; ``sha256``, a checksum by file, came later."""


def _safetensors(policy: Policy, about: str) -> bytes:
    return safetensors.torch.save(policy.state_dict(), metadata={"policy": about})


def _torch_export(policy: Policy, about: str) -> bytes:
    file = io.BytesIO()
    torch.export.save(_program(policy), file, extra_files={DESCRIPTION: about})
    return file.getvalue()


def _onnx(policy: Policy, about: str) -> bytes:
    outputs = ["action", "next_memory"] if "memory" in policy.inputs else ["action"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecations within torch.onnx
        logging.disable(logging.WARNING)  # that torchvision is not installed
        try:
            program = torch.onnx.export(_program(policy), dynamo=True, verbose=False, output_names=outputs)
        finally:
            logging.disable(logging.NOTSET)
    assert program is not None
    proto = program.model_proto
    proto.metadata_props.add(key="policy", value=about)
    return proto.SerializeToString()


def _program(policy: Policy) -> torch.export.ExportedProgram:
    """For any number of rows."""
    rows = torch.export.Dim("rows")
    first, *others = policy.example(3).items()
    shapes = {name: {0: rows} for name in policy.inputs}
    return torch.export.export(policy, (first[1],), dict(others), dynamic_shapes=shapes)


class Format(NamedTuple):
    """A file format: the file's name, how it is made, what has to be installed for that, and whose arrays it takes."""

    file: str
    write: Callable[[Policy, str], bytes]
    needs: tuple[str, ...]
    arrays: str


FORMATS = {
    "safetensors": Format("policy.safetensors", _safetensors, (), "numpy"),
    "torch-export": Format("policy.pt2", _torch_export, (), "torch"),
    "onnx": Format("policy.onnx", _onnx, ("onnx", "onnxscript"), "numpy"),
}


class Exported(NamedTuple):
    """What was written: the folder, its files, and a script that runs the policy from there."""

    folder: Path
    files: list[str]
    script: str


@plain_torch()
def export(
    run: Path, agent: str | None = None, member: int = 0, out: Path | str | None = None, form: str = "safetensors"
) -> Exported:
    """Write one agent's newest policy as a file that runs without this package.

    Args:
        run: the run's folder.
        agent: its name or number; None: the only one.
        member: which of the population.
        out: where to; None: ``RUN/export/<member>-<agent>``. Files of an earlier export there are replaced, and removed
            where this one has none of their names.
        form: one of ``FORMATS``.

    Raises:
        UserError: no run, member or agent of that name; a package is missing; the folder cannot be written to, or has
            a file of such a name that is no earlier export's.
    """
    kind = FORMATS[form]
    if out == "":
        raise UserError("--out: expected a folder, got ''")
    if missing := [name for name in kind.needs if importlib.util.find_spec(name) is None]:
        raise UserError(f"--format {form} needs {', '.join(missing)}: pip install -c constraints.txt -e '.[export]'")
    home, local = parts.home(run, member)
    recipe = read_recipe(home)
    spec = recipe.spec()
    if agent is None and spec.n_agents > 1:
        raise UserError(f"--agent: expected one of {', '.join(spec.agents)}, or a number")
    i = 0 if agent is None else agent_number(agent, spec, f"--agent {agent}: no such agent")
    step, learner = load_learner(home, recipe, spec)
    policy = policy_of(learner, spec, local, i)
    name = recipe.members[local].name
    folder = run / "export" / f"{name}-{spec.agents[i]}" if out is None else Path(out)
    names = [kind.file, DESCRIPTION, PYTHON]
    _spare_others(folder, names)
    origin = {"run": str(run), "step": step, "algorithm": recipe.algorithm, "environment": recipe.environment}
    about = describe(policy, origin | {"member": name, "agent": spec.agents[i]})
    data = kind.write(policy, json.dumps(about, indent=2))
    sums = {"sha256": {kind.file: hashlib.sha256(data).hexdigest()}}
    contents = [data, f"{json.dumps(about | sums, indent=2)}\n".encode(), inspect.getsource(exported).encode()]
    _write(folder, dict(zip(names, contents, strict=True)))
    return Exported(folder, names, script(policy, kind))


def _spare_others(folder: Path, files: list[str]) -> None:
    """Raise ``UserError`` where to write ``files`` would overwrite anything but an earlier export, or cannot work."""
    with _explained(folder):
        if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
            what = "a file" if folder.exists() else "a link that leads nowhere"
            raise UserError(f"--out {folder} is {what}, expected a folder")
        earlier = _earlier(folder)
        for path in (folder / file for file in files):
            if path.is_dir():
                raise UserError(f"{path} is a folder, expected none: nothing was exported")
            if path.name not in earlier and (path.exists() or path.is_symlink()):
                raise UserError(f"{path} exists and is no earlier export's; choose another folder with --out")


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write all files, the weights first among them, or none; then remove what only an earlier export had."""
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stale = _earlier(folder) - files.keys()
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as made:
            for file, data in files.items():
                write_atomically(Path(made) / file, data)
            for file in reversed(files):  # weights last: if killed before, the description tells the earlier as ours
                (Path(made) / file).replace(folder / file)
        for path in (folder / file for file in stale):
            if path.is_file():
                path.unlink()


def _earlier(folder: Path) -> set[str]:
    """Names of an earlier export's files; none where no ``policy.json`` of this library's lies."""
    try:
        about = json.loads((folder / DESCRIPTION).read_bytes())
    except (OSError, ValueError):
        return set()
    if not isinstance(about, dict) or not about.keys() >= OURS:
        return set()
    weights, sums = {form.file for form in FORMATS.values()}, about.get("sha256")
    return {DESCRIPTION, PYTHON} | (weights & sums.keys() if isinstance(sums, dict) else weights)


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn every error of the disk into a ``UserError`` of one line."""
    try:
        with explain_disk_errors(folder, "nothing was exported"):
            yield
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}: nothing was exported") from error


INPUTS = {
    "obs": ("float32", "the agent's observation, as the environment gives it"),
    "avail": ("bool", "which of its actions the agent may take now"),
    "memory": ("float32", "what the policy gave as memory one step earlier; zeros as an episode begins"),
}


def describe(policy: Policy, origin: dict[str, Any]) -> dict[str, Any]:
    """What an exported file says of itself; ``origin``: where it comes from."""
    size = policy.actions
    index = {"index": size, "type": "int64", "meaning": f"which of its {size} actions the agent takes, from 0 on"}
    vector = {"size": size, "type": "float32", "meaning": "each from -1 to 1, the ends of the range of the action"}
    return {
        "format": exported.FORMAT,
        "marl": installed(DISTRIBUTION),
        "torch": torch.__version__,
        **origin,
        "inputs": {
            name: {"size": width, "type": INPUTS[name][0], "meaning": INPUTS[name][1]}
            for name, width in policy.inputs.items()
        },
        "output": index if policy.discrete else vector,
        "layers": [layer.to_json() for layer in policy.plan],
    }


EXAMPLES = {
    "numpy": ('numpy.zeros((1, {}), "float32")', "numpy.ones((1, {}), bool)"),
    "torch": ("torch.zeros(1, {})", "torch.ones(1, {}, dtype=torch.bool)"),
}


def script(policy: Policy, kind: Format) -> str:
    """Three lines that run the policy once, on zeros; to be started in the file's folder."""
    zeros, ones = EXAMPLES[kind.arrays]
    values = {name: (ones if name == "avail" else zeros).format(size) for name, size in policy.inputs.items()}
    obs = values.pop("obs")
    more = "".join(f", {name}={value}" for name, value in values.items())
    return f'import {kind.arrays}, policy\nact = policy.Policy("{kind.file}")\nprint(act({obs}{more}))\n'
