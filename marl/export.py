"""One agent's policy as a file that runs without this package: safetensors with JSON, ``torch.export``, or ONNX."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import json
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from marl import exported, parts
from marl.algos.common import Learner
from marl.config import suggestion
from marl.doctor import DISTRIBUTION, installed
from marl.envs.base import EnvSpec
from marl.modules.q_values import QNetwork
from marl.modules.recurrent import StackedRNN
from marl.networks import acting, networks, structure
from marl.ops.discrete import MASKED
from marl.recipe import load_learner
from marl.runfolder import explain_disk_errors, write_atomically
from marl.session import read_recipe
from marl.types import UserError

PYTHON = "policy.py"
DESCRIPTION = "policy.json"

LayerT = TypeVar("LayerT", nn.Linear, nn.GRUCell, nn.Conv2d)


class Layer(NamedTuple):
    """One layer of a policy and what follows it: ``relu``, ``tanh``, ``clip`` (to [-1, 1]) or nothing.

    ``pixels`` (channels, height, width): the numbers that come in are to be seen as such a picture.
    """

    module: nn.Linear | nn.GRUCell | nn.Conv2d
    then: str = ""
    pixels: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        kind = {nn.Linear: "linear", nn.GRUCell: "gru", nn.Conv2d: "conv"}[type(self.module)]
        stride = {"stride": self.module.stride[0]} if isinstance(self.module, nn.Conv2d) else {}
        return {"kind": kind, "then": self.then, **stride} | ({"pixels": list(self.pixels)} if self.pixels else {})


THEN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "clip": lambda x: x.clamp(-1, 1),
}


class Policy(nn.Module):
    """One agent's policy without exploration, in plain layers of torch.

    Args:
        plan: the layers.
        obs_size: D, as wide as the agent's own observation.
        discrete: its action is the index of the largest output.
        masked: not every one of these may be taken at every moment.
    """

    def __init__(self, plan: list[Layer], obs_size: int, discrete: bool, masked: bool) -> None:
        super().__init__()
        self.plan, self.discrete = plan, discrete
        self.layers = nn.ModuleList(layer.module for layer in plan)
        last = plan[-1].module
        assert isinstance(last, nn.Linear)
        self.actions = last.out_features
        memory = sum(module.hidden_size for module in self.layers if isinstance(module, nn.GRUCell))
        self.inputs = {"obs": obs_size} | ({"avail": self.actions} if masked else {})
        self.inputs |= {"memory": memory} if memory else {}
        self.requires_grad_(False)

    def forward(
        self, obs: Tensor, avail: Tensor | None = None, memory: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Actions ``[B]`` int64 or ``[B, A]`` in [-1, 1], and the memory for the next step if there is one.

        Args:
            obs: ``[B, D]`` float32.
            avail: ``[B, A]`` bool, where the environment says which actions may be taken.
            memory: ``[B, H]`` float32, where the policy has one: zeros as an episode begins.
        """
        x = obs
        for layer, module in zip(self.plan, self.layers, strict=True):
            if isinstance(module, nn.GRUCell):
                x = memory = module(x, memory)
            else:
                x = x.unflatten(1, layer.pixels) if layer.pixels else x
                x = module(x.flatten(1) if isinstance(module, nn.Linear) else x)
            if layer.then:
                x = THEN[layer.then](x)
        if self.discrete:
            x = (x if avail is None else x.masked_fill(~avail, MASKED)).argmax(-1)
        return x if memory is None else (x, memory)

    def example(self, rows: int) -> dict[str, Tensor]:
        """Inputs of the right shapes and types."""
        kinds = {"avail": torch.bool}
        return {name: torch.ones(rows, size, dtype=kinds.get(name)) for name, size in self.inputs.items()}


def policy_of(learner: Learner, spec: EnvSpec, member: int, agent: int) -> Policy:
    """One agent's part of its member's stacked networks.

    What is the same at every step goes into the weights: inputs and actions that are padding are left out, a shared
    network's knowledge of whose turn it is joins the first bias, and bytes are divided by 255 in the first weights.

    Raises ``UserError`` for a learner that is none of this package's.
    """
    nets = networks(learner, spec)
    if not nets:
        raise UserError(f"export does not know where {type(learner).__name__} keeps its policies")
    net = acting(nets)
    parameters = {name: x.detach()[member, net.place(agent)] for name, x in net.module.named_parameters()}
    obs, said = net.reads(agent)[0], net.says(agent)
    end = {"tanh": "tanh", "mean": "clip"}.get(said[-1].kind, "")
    recurrent = isinstance(net.module, StackedRNN)
    names = [
        name.removesuffix(".weight") for name in parameters if re.fullmatch(r"(layers\.\d+|enter|leave)\.weight", name)
    ]
    layers = [(parameters[f"{name}.weight"], parameters[f"{name}.bias"][0]) for name in names]
    plan = _convolutions(net.module, parameters)
    if not plan:  # the first layer reads the observation itself
        weight, bias = layers[0]
        if len(net.reads(agent)) > 1:
            bias = bias + weight[obs.width + agent]
        layers[0] = weight[: obs.own], bias
    weight, bias = layers[-1]
    start = sum(block.width for block in said[:-1])  # the value of a duelling network, the same for all actions
    layers[-1] = weight[:, start : start + said[-1].own], bias[start : start + said[-1].own]

    then = str(structure(net.module).get("activation", "relu"))
    plan += [Layer(_linear(*layer), then) for layer in layers[:-1]]
    if recurrent:
        plan.append(Layer(_gru({name.removeprefix("gru."): x for name, x in parameters.items()})))
    plan.append(Layer(_linear(*layers[-1]), end))
    if spec.bytes:
        plan[0].module.get_parameter("weight").data.div_(255)
    return Policy(plan, obs.own, spec.discrete, spec.masked)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """From weights ``[in, out]``."""
    return _filled(nn.Linear(*weight.shape), weight=weight.T, bias=bias)


def _gru(p: dict[str, Tensor]) -> nn.GRUCell:
    """From those of ``StackedGRU``."""
    cell = nn.GRUCell(p["weight_x"].shape[0], p["weight_h"].shape[0])
    ih, hh = {"weight_ih": p["weight_x"].T, "bias_ih": p["bias_x"][0]}, {"weight_hh": p["weight_h"].T}
    return _filled(cell, **ih, **hh, bias_hh=p["bias_h"][0])


def _convolutions(module: nn.Module, parameters: dict[str, Tensor]) -> list[Layer]:
    """Those that a network looks at pictures with, if it does; the first one is told their shape."""
    plan: list[Layer] = []
    if isinstance(module, QNetwork) and module.pictures is not None:
        for i, layer in enumerate(module.pictures.layers):
            weight, bias = (parameters[f"pictures.layers.{i}.{name}"] for name in ("weight", "bias"))
            out, n_in, size, _ = weight.shape
            conv = nn.Conv2d(n_in, out, size, stride=layer.stride)  # type: ignore[arg-type]
            plan.append(Layer(_filled(conv, weight=weight, bias=bias), "relu", () if plan else module.pictures.pixels))
    return plan


def _filled(module: LayerT, **values: Tensor) -> LayerT:
    for name, value in values.items():
        module.get_parameter(name).data = value.clone(memory_format=torch.contiguous_format)
    return module


# ---- files --------------------------------------------------------------------------------------------------------


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
    """A file format: the file's name, how it is made, what has to be installed for that, and a script that runs it."""

    file: str
    write: Callable[[Policy, str], bytes]
    needs: tuple[str, ...]
    script: str


FORMATS = {
    "safetensors": Format(
        "policy.safetensors",
        _safetensors,
        (),
        'import numpy, policy\nact = policy.Policy("policy.safetensors")\nprint(act({obs}{more}))\n',
    ),
    "torch-export": Format(
        "policy.pt2",
        _torch_export,
        (),
        'import torch\nact = torch.export.load("policy.pt2").module()\nprint(act({obs}{more}))\n',
    ),
    "onnx": Format(
        "policy.onnx",
        _onnx,
        ("onnx", "onnxscript"),
        'import numpy, onnxruntime\nact = onnxruntime.InferenceSession("policy.onnx")\nprint(act.run(None, {feed}))\n',
    ),
}


class Exported(NamedTuple):
    """What was written: the folder, its files, and a script that runs the policy from there."""

    folder: Path
    files: list[str]
    script: str


def export(
    run: Path, agent: str | None = None, member: int = 0, out: Path | None = None, form: str = "safetensors"
) -> Exported:
    """Write one agent's newest policy as a file that runs without this package.

    Args:
        run: the run's folder.
        agent: its name or number; None: the only one.
        member: which of the population.
        out: where to; None: ``RUN/export/<member>-<agent>``. Files of an earlier export there are replaced.
        form: one of ``FORMATS``.

    Raises:
        UserError: no run, member or agent of that name; a package is missing; the folder cannot be written to.
    """
    kind = FORMATS[form]
    if missing := [name for name in kind.needs if importlib.util.find_spec(name) is None]:
        raise UserError(f"--format {form} needs {', '.join(missing)}: pip install '{DISTRIBUTION}[export]'")
    home, local = parts.home(run, member)
    recipe = read_recipe(home)
    with contextlib.closing(recipe.make_env(copies=1)) as env:
        spec = env.spec
    i = _agent(agent, spec)
    step, learner = load_learner(home, recipe, spec)
    policy = policy_of(learner, spec, local, i)
    name = recipe.members[local].name
    origin = {"run": str(run), "step": step, "algorithm": recipe.algorithm, "environment": recipe.environment}
    about = json.dumps(describe(policy, origin | {"member": name, "agent": spec.agents[i]}), indent=2)
    files = {kind.file: kind.write(policy, about), DESCRIPTION: f"{about}\n".encode()}
    if form == "safetensors":
        files[PYTHON] = inspect.getsource(exported).encode()
    folder = out or run / "export" / f"{name}-{spec.agents[i]}"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file, expected a folder")
    with explain_disk_errors(folder, "nothing was exported"):
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            write_atomically(folder / file, data)
    return Exported(folder, list(files), script(policy, kind))


def _agent(text: str | None, spec: EnvSpec) -> int:
    if text is None and spec.n_agents == 1:
        return 0
    if text is None:
        raise UserError(f"--agent: expected one of {', '.join(spec.agents)}, or a number")
    if text in spec.agents:
        return spec.agents.index(text)
    if text.isdigit() and int(text) < spec.n_agents:
        return int(text)
    raise UserError(f"--agent {text}: no such agent{suggestion(text, spec.agents)}")


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
    zeros, ones = EXAMPLES["numpy" if "numpy" in kind.script else "torch"]
    values = {name: (ones if name == "avail" else zeros).format(size) for name, size in policy.inputs.items()}
    feed = "{" + ", ".join(f'"{name}": {value}' for name, value in values.items()) + "}"
    obs = values.pop("obs")
    more = "".join(f", {name}={value}" for name, value in values.items())
    return kind.script.format(obs=obs, more=more, feed=feed)
