"""Frozen policies of other runs as teachers of a new one: which can be one, their weights, and what they are shown.

``marl.modules.teachers`` has what they do in a learner, ``docs/howto/transfer.md`` the rules.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from marl.algos.common import Learner
from marl.envs.base import EnvSpec
from marl.modules.stacked import StackedMLP
from marl.modules.teachers import Teacher, Teachers
from marl.networks import acting, networks
from marl.policies import Policy, policy_of
from marl.recipe import Recipe
from marl.transfer import Row, load_source
from marl.types import UserError

TABLE = "teachers.csv"


def shape(given: str, learner: Learner, spec: EnvSpec, agent: int) -> dict[str, Any]:
    """``sizes``, ``activation`` and ``gives`` of one agent's policy, as ``marl.modules.teachers.Teacher`` has them.

    Raises ``UserError`` for a policy that has a memory or looks at pictures, and for a learner that is not ours.
    """
    policy = policy_of(learner, spec, 0, agent)
    for kind, what in ((nn.GRUCell, "has a memory"), (nn.Conv2d, "looks at pictures")):
        if any(isinstance(module, kind) for module in policy.layers):
            raise UserError(f"teachers: {given} {what}, expected a policy of linear layers that sees one vector")
    linear = _linear(policy)
    said = acting(networks(learner, spec)).says(agent)[-1].kind
    return {
        "sizes": [linear[0].in_features, *(layer.out_features for layer in linear)],
        "activation": policy.plan[0].then if len(linear) > 1 else "relu",
        "gives": {"logits": "logits", "tanh": "tanh", "mean": "clip"}.get(said, "values"),
    }


def start(recipe: Recipe, learner: Learner, spec: EnvSpec) -> list[Row]:
    """Give a fresh learner its teachers' weights, and say what each reads and answers; [] without teachers.

    Raises:
        UserError: a teacher's run cannot be read any more, or has gone on since it was named.
    """
    rows = []
    for k, record in enumerate(recipe.teachers):
        teachers, name = learner.teachers, f"teacher {k + 1}"  # type: ignore[attr-defined]
        origins = [record["members"][member.name] for member in recipe.members]
        sources = {o["run"]: load_source(Path(o["run"]), o["step"]) for o in origins}
        for p, (member, origin) in enumerate(zip(recipe.members, origins, strict=True)):
            source = sources[origin["run"]]
            fill(teachers, k, p, policy_of(source.learner, source.spec, origin["member"], record["agent"]))
            rows.append(Row(name, member.name, origin["name"], "frozen", f"{record['given']}, step {source.step}"))
        rows += [described(name, teachers.kinds[k], spec, record["name"], i) for i in range(spec.n_agents)]
    return rows


def fill(teachers: Teachers, k: int, p: int, policy: Policy) -> None:
    """The weights of member ``p``'s teacher ``k``."""
    net: StackedMLP = teachers.nets[k]
    for layer, linear in zip(net.layers, _linear(policy), strict=True):
        layer.get_parameter("weight").data[p, 0] = linear.weight.T
        layer.get_parameter("bias").data[p, 0, 0] = linear.bias


def described(name: str, teacher: Teacher, spec: EnvSpec, source: str, i: int) -> Row:
    """What of agent ``i`` a teacher sees, and what it can say: ``kept`` is all."""
    seen, reads = spec.obs_sizes[i], teacher.sizes[0]
    has, says = spec.action_sizes[i], teacher.sizes[-1]
    told = [
        (reads - seen, "padded", f"of its {reads} inputs are 0"),
        (seen - reads, "cut", f"of {seen} observations are not shown to it"),
        (says - has, "cut", f"of its {says} actions are left out"),
        (has - says, "partial", f"of {has} actions are not taught"),
    ]
    what = ", ".join(dict.fromkeys(word for count, word, _ in told if count > 0))
    details = "; ".join(f"{count} {text}" for count, _, text in told if count > 0)
    return Row(name, spec.agents[i], source, what or "kept", details)


def _linear(policy: Policy) -> list[nn.Linear]:
    return [module for module in policy.layers if isinstance(module, nn.Linear)]
