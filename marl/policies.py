"""One agent's policy of a trained team as plain layers of torch: what is exported, and what frozen teachers are."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from marl.algos.common import Learner
from marl.envs.base import EnvSpec
from marl.modules.q_values import QNetwork
from marl.modules.recurrent import StackedRNN
from marl.networks import acting, networks, structure
from marl.ops.discrete import MASKED
from marl.types import UserError

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
    network's knowledge of whose turn it is joins the first bias, and a network that reads bytes, divided by 255, has
    its first weights divided instead.

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

    looks = structure(net.module)
    then = str(looks.get("activation", "relu"))
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
