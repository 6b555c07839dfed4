"""Which networks each learner has, and what each of their inputs and outputs stands for.

Whoever takes networks out of a run (``marl.export``) or puts them into another (``marl.transfer``) reads them by this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor

from marl.algos.common import Learner
from marl.algos.ddpg import DDPG
from marl.algos.dqn import DQN
from marl.algos.dvm import DVM
from marl.algos.maddpg import MADDPG
from marl.algos.mappo import MAPPO
from marl.algos.maptf import MAPTF
from marl.algos.maptf_mappo import MAPTFMAPPO
from marl.algos.qmix import QMIX
from marl.algos.td3 import TD3
from marl.envs.base import EnvSpec
from marl.modules.critics import swaps
from marl.modules.mixers import QMixer
from marl.modules.normal import RunningNorm
from marl.modules.q_values import QNetwork
from marl.modules.recurrent import StackedRNN
from marl.modules.stacked import Stacked, StackedMLP


class Block(NamedTuple):
    """Neighbouring inputs or outputs of a network.

    Attributes:
        kind: of inputs ``obs``, ``action``, ``choice`` (a discrete action, one-hot), ``state``, ``id`` (1 for the agent
            whose turn it is); of outputs ``logits``, ``tanh`` (an action before its tanh), ``mean`` (of an action),
            ``q`` and ``advantage`` (one for each action), ``return`` (of state and action), ``v`` (of a state),
            ``team`` (of all agents together).
        agent: whose; -1: nobody's in particular.
        own: how many of them the agent has.
        width: how many there are; beyond ``own`` is padding.
    """

    kind: str
    agent: int
    own: int
    width: int


Blocks: TypeAlias = Callable[[int], Sequence[Block]]


class Net(NamedTuple):
    """Stacked networks of a learner, ``[P, G, ...]``.

    Attributes:
        module: the networks.
        reads, says: inputs and outputs of the network that speaks for an agent.
        shared: G = 1, one network for all agents of a member; else agent i's are ``heads * i`` and those after it.
        heads: networks of an agent, 2 for twins.
        target: follows ``module``, if anything does.
        norm: of the outputs, if they are normalised.
        log_std: ``[P, G, 1, 1, A]``, a parameter of each output that is in no layer (MAPPO's standard deviations).
    """

    module: Stacked
    reads: Blocks
    says: Blocks
    shared: bool = False
    heads: int = 1
    target: Stacked | None = None
    norm: RunningNorm | None = None
    log_std: Tensor | None = None

    def place(self, agent: int) -> int:
        """The first of the networks that speak for an agent."""
        return 0 if self.shared else agent * self.heads


def acting(nets: dict[str, Net]) -> Net:
    """Those of ``networks`` that choose the actions."""
    return next(nets[name] for name in ("actor", "utilities", "critic") if name in nets)


def networks(learner: Learner, spec: EnvSpec) -> dict[str, Net]:
    """A learner's networks by name, but for those that exist only to teach the others (``plain_networks``).

    Empty for a learner that is none of this package's.
    """
    agents = range(spec.n_agents)
    logits, taken = ("logits", "choice") if spec.discrete else ("tanh", "action")
    if isinstance(learner, MAPTF | DVM | MAPTFMAPPO):
        return networks(learner.base, spec)
    if isinstance(learner, DDPG | TD3):
        return {
            "actor": Net(learner.actor, lambda i: [_obs(spec, i)], _actions(spec, logits), target=learner.target_actor),
            "critic": Net(
                learner.critic,
                lambda i: [_obs(spec, i), _action(spec, i, taken)],
                _one("return"),
                heads=learner.critic.heads,
                target=learner.target_critic,
            ),
        }
    if isinstance(learner, MADDPG):
        shared = learner.config.shared
        actor = Net(learner.actor, lambda i: [_obs(spec, i)], _actions(spec, logits), shared)

        def everybody(i: int) -> list[Block]:
            order = swaps(spec.n_agents)[0, i].tolist() if shared else agents
            return [_obs(spec, j) for j in order] + [_action(spec, j, taken) for j in order]

        critic = Net(learner.critic, everybody, _one("return"), shared)
        return {
            "actor": actor._replace(target=learner.target_actor),
            "critic": critic._replace(target=learner.target_critic),
        }
    if isinstance(learner, MAPPO):
        shared, judge = learner.shared, learner.judge
        logits = "logits" if spec.discrete else "mean"
        values = _each(agents, "v") if judge.heads else _one("v")
        sees = _state_or_all(spec) if judge.central else _named(spec, shared)
        return {
            "actor": Net(
                learner.actor.net,
                _named(spec, shared),
                _actions(spec, logits),
                shared,
                log_std=None if spec.discrete else learner.actor.log_std,
            ),
            "critic": Net(learner.critic, sees, values, shared, norm=learner.norm),
        }
    if isinstance(learner, QMIX):
        utilities, shared = learner.utilities, learner.config.shared
        found = {
            "utilities": Net(
                utilities.network,
                _named(spec, shared and spec.n_agents > 1),
                _actions(spec, "q"),
                shared,
                target=learner.target_utilities.network,
            )
        }
        if isinstance(learner.mixer, QMixer) and isinstance(learner.target_mixer, QMixer):
            found["mixer"] = Net(learner.mixer, _state_or_all(spec), _one("team"), True, target=learner.target_mixer)
        return found
    if isinstance(learner, DQN):
        says = _actions(spec, "advantage" if learner.config.duelling else "q")
        duelling = _one("v") if learner.config.duelling else lambda i: []
        return {
            "critic": Net(
                learner.critic,
                lambda i: [_obs(spec, i)],
                lambda i: [*duelling(i), *says(i)],
                target=learner.target_critic,
            )
        }
    return {}


def plain_networks(learner: Learner) -> dict[str, tuple[Stacked, Stacked | None]]:
    """The networks of a method that teaches others, and what follows each: options (MAPTF), distilled ones (DVM)."""
    if isinstance(learner, DVM):
        return {name: (getattr(learner, name), None) for name in ("distilled_actor", "distilled_critic")}
    if isinstance(learner, MAPTF | MAPTFMAPPO):
        nets, targets = learner.options.nets, learner.options.targets
        return {f"options/{name}": (net, targets.get(name)) for name, net in nets.items()}
    return {}


def structure(module: Stacked) -> dict[str, object]:
    """What two networks must have in common for the one's layers to make sense in the other."""
    if isinstance(module, QMixer):
        return {"kind": "mixer", "utilities": module.w1.bias.shape[-1] // module.widths[-1], "widths": module.widths}
    if isinstance(module, StackedRNN):
        return {"kind": "recurrent", "hidden": [module.enter.bias.shape[-1]]}
    assert isinstance(module, StackedMLP)
    pictures = module.pictures if isinstance(module, QNetwork) else None
    return {
        "kind": "feedforward",
        "activation": module.activation.__name__.strip("_"),
        "hidden": [layer.get_parameter("bias").shape[-1] for layer in list(module.layers)[:-1]],
        "bytes": isinstance(module, QNetwork) and module.bytes,
        "pictures": None if pictures is None else list(pictures.pixels),
        "convolutions": [] if pictures is None else [list(p.shape[2:]) for p in pictures.parameters() if p.dim() > 3],
    }


def _obs(spec: EnvSpec, agent: int) -> Block:
    return Block("obs", agent, spec.obs_sizes[agent], spec.obs_size)


def _action(spec: EnvSpec, agent: int, kind: str) -> Block:
    return Block(kind, agent, spec.action_sizes[agent], spec.action_size)


def _actions(spec: EnvSpec, kind: str) -> Blocks:
    return lambda agent: [_action(spec, agent, kind)]


def _one(kind: str) -> Blocks:
    return lambda agent: [Block(kind, agent, 1, 1)]


def _each(agents: Sequence[int], kind: str) -> Blocks:
    return lambda _: [Block(kind, j, 1, 1) for j in agents]


def _named(spec: EnvSpec, named: bool) -> Blocks:
    """An agent's observation and, where its network is not its own, whose it is."""
    names = _each(range(spec.n_agents), "id")(0) if named else []
    return lambda agent: [_obs(spec, agent), *names]


def _state_or_all(spec: EnvSpec) -> Blocks:
    if spec.state_size:
        return lambda _: [Block("state", -1, spec.state_size, spec.state_size)]
    return lambda _: [_obs(spec, j) for j in range(spec.n_agents)]
