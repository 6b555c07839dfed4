"""Policy reciprocity in TorchRL's losses: ``blend_targets(loss, reciprocal)``.

For critics of N agents in one network, as TorchRL's multi-agent networks are: observations ``[*B, N, D]`` in, values
``[*B, N, 1]`` out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.objectives import DDPGLoss, LossModule, PPOLoss, QMixerLoss, TD3Loss
from torchrl.objectives.value import GAE, TD0Estimator, TD1Estimator, TDLambdaEstimator, ValueEstimatorBase

from marl.modules.graph import listeners, sole
from marl.modules.onednn import is_large, onednn
from marl.reciprocity import Reciprocal
from marl.swap.hearers import Hearers, hearers
from marl.types import UserError

__all__ = ["blend_targets"]

Key = str | tuple[str, ...]


def blend_targets(loss: LossModule | ValueEstimatorBase, reciprocal: Reciprocal) -> None:
    """From now on this loss bootstraps from Z* instead of Z; while kappa is 0 it runs its own code alone.

    ``reciprocal`` becomes a part of the loss, ``loss.reciprocal``, and of its ``state_dict``.

    Args:
        loss: a ``DDPGLoss``, ``TD3Loss``, ``QMixerLoss`` or ``PPOLoss`` (clipped, KL, of one or several agents); or one
            of PPO's value estimators, where it stands alone: TD(0), TD(1), TD(lambda), GAE.
        reciprocal: of as many agents as the critic's network has.

    Raises ``UserError`` for another loss or estimator, one that blends already or whose estimator does, a TD3 without
    target networks, and a ``reciprocal`` that is none; the loss does so later for a critic that reads or writes
    anything else than one row for each agent.
    """
    if not isinstance(reciprocal, Reciprocal):
        raise UserError(f"reciprocal: expected a marl.reciprocity.Reciprocal, got {type(reciprocal).__name__}")
    if hasattr(loss, "reciprocal"):
        raise UserError(f"{type(loss).__name__}: expected one that does not blend its targets yet, this one does")
    if isinstance(loss, ValueEstimatorBase):
        _wire_values(loss, reciprocal)
    elif isinstance(loss, PPOLoss):
        _wire_estimator(loss, lambda estimator: _wire_values(estimator, reciprocal))
    elif isinstance(loss, TD3Loss):
        _wire_twins(loss, reciprocal)
    elif isinstance(loss, DDPGLoss):
        arguments = frozenset(loss.actor_network.out_keys)
        team = Team(loss.value_network, lambda: loss.tensor_keys.state_action_value, arguments)
        _wire_estimator(loss, lambda estimator: _wire_estimate(estimator, team, reciprocal))
    elif isinstance(loss, QMixerLoss):
        local = Team(
            loss.local_value_network,
            lambda: loss.tensor_keys.local_value,
            heard=lambda: loss.tensor_keys.action_value,
            pick=_best_by_own(loss),
            read=frozenset(map(unravel_key, loss.mixer_network.in_keys)),
        )
        _wire_estimator(loss, lambda estimator: _wire_estimate(estimator, local, reciprocal))
    else:
        raise UserError(
            f"loss: expected a DDPGLoss, TD3Loss, QMixerLoss, PPOLoss or a value estimator, got {type(loss).__name__}"
        )
    loss.reciprocal = reciprocal


Call = Callable[[TensorDictBase], TensorDictBase]

PROBED = 8
"""Rows that tell whether critics are joint."""


@dataclass
class Team:
    """The critics of N agents, which one network holds.

    Attributes:
        critic: the network, which says what it reads and writes.
        value: gives the key of its values, ``[R, N, C]``, which ``set_keys`` may change.
        arguments: what it reads that is no part of a state: critic j at agent i's state reads agent i's entry as it is.
        heard: gives the key of what is heard of the critics at adjacent states. None: their values.
        pick: ``(heard, answers, arranged)``: that of what is heard, ``[S, L, N_j, R, A]`` or ``[S, N_i, R, A]``, which
            counts, by what the hearing agents answer at the R true states; ``arranged`` brings such ``[R, N, *]`` into
            the order of what is heard, ``[N_i, 1, R, *]`` where joint critics answer all at once. None: all counts.
        read: which of the critic's other answers are read after it. None: any may be.
        large: its products are large; None: not known until the first blend, when its parameters are at hand.
        joint: some critic reads the inputs of others, so all are asked at one adjacent state of everybody. None: not
            known until a part of the network says that it is ``centralized``, or the first blend has tried.
    """

    critic: Any
    value: Callable[[], Key]
    arguments: frozenset[Key] = frozenset()
    heard: Callable[[], Key] | None = None
    pick: Callable[[Tensor, TensorDictBase, Callable[[Tensor], Tensor]], Tensor] | None = None
    read: frozenset[Key] | None = None
    joint: bool | None = None
    large: bool | None = None

    def answer(self, reciprocal: Reciprocal, data: TensorDictBase, call: Call) -> TensorDictBase:
        """``data`` ``[*B]``, which the critic reads, with all that it writes, Z* in place of its values."""
        rows = data if data.dim() == 1 else data.reshape(-1)
        blend, out = self.blended(reciprocal, rows, call)
        others = [key for key in self.critic.out_keys if self.read is None or unravel_key(key) in self.read]
        value = self.value()
        answers = [(key, out.get(key)[: len(rows)]) for key in others if key != value]
        for key, answer in [*answers, (value, blend)]:
            data.set(key, answer.reshape(*data.shape, *answer.shape[1:]))
        return data

    @torch.no_grad()
    def blended(self, reciprocal: Reciprocal, rows: TensorDictBase, call: Call) -> tuple[Tensor, TensorDictBase]:
        """Z* for ``[R]`` rows, ``[R, N, C]``; and all answers, those at adjacent states behind those of the rows.

        Args:
            call: runs the critic on rows, under the parameters that count. It is called once, for true and adjacent
                states together: a call of a small network costs more than its rows.
        """
        n, engine, count = reciprocal.agents, reciprocal.engine, len(rows)
        entries = {key: rows.get(key) for key in self.critic.in_keys}
        for key, entry in entries.items():
            _require_agents(key, entry, n)
        weights = engine.links(n, next(iter(entries.values())))
        if engine.space.views:
            out = call(TensorDict(entries, [count]))
            values = self._values(out, count, n)
            return reciprocal.combined(values, values[None, None], weights).transpose(0, 1), out
        if self.joint is None:
            self.joint = self._reads_others(entries, n, call)
        if self.large is None:
            self.large = is_large(self.critic)
        near, who = self._adjacent(reciprocal, weights, entries)
        levels, calls, *_ = next(iter(near.values())).shape
        asked = {}
        for key, entry in entries.items():
            more = near[key] if key in near else who.of(entry).transpose(0, 1).expand(levels, calls, *entry.shape)
            asked[key] = torch.cat([entry.unsqueeze(0), more.flatten(0, 1)]).flatten(0, 1)
        with onednn() if self.large else nullcontext():
            out = call(TensorDict(asked, [count + levels * calls * count]))
        values = self._values(out, count, n)
        heard = out.get((self.heard or self.value)())[count:].unflatten(0, (levels, calls, count)).transpose(2, 3)
        alone = sole(engine.graph) is not None
        if alone:
            heard = who.alone(heard)
        if self.pick is not None:
            heard = self.pick(heard, out, _agents_first if alone else who.hearing)
            if self.joint:  # a neighbour to whom the action is forbidden has no opinion of it
                own = values if alone else values.unsqueeze(1)
                heard = torch.where(heard > torch.finfo(heard.dtype).min / 2, heard, own)
        if not (alone or self.joint):
            heard = who.placed(heard)
        return reciprocal.combined(values, heard, None if alone else weights).transpose(0, 1), out

    def _reads_others(self, entries: Mapping[Key, Tensor], agents: int, call: Call) -> bool | None:
        """Whether some critic's value changes with another agent's input; None: not every one even with its own.

        Each agent's input is moved up and down, both calls have the same shape, so that all else stays equal to the
        bit. A critic that answers the same whatever it reads (its last layer begins at 0) does not tell; until it does
        no harm is done, as all adjacent states are worth the same to it.
        """
        if any(getattr(part, "centralized", False) for part in self.critic.modules()):
            return True
        still, moved = {}, {}
        for key, entry in entries.items():
            entry = entry[:PROBED].expand(2 * agents, *entry[:PROBED].shape)
            still[key] = moved[key] = entry.flatten(0, 1)
            if entry.is_floating_point():
                one = torch.eye(agents).to(entry).reshape(agents, 1, agents, *[1] * (entry.dim() - 3))
                moved[key] = (entry + torch.cat([one, -one]) * (1 + entry.abs())).flatten(0, 1)
        value = self.value()
        with _undisturbed(self.critic):
            before, after = (call(TensorDict(x, [len(next(iter(x.values())))])).get(value) for x in (still, moved))
        _require_agents(value, before, agents)
        change = ~torch.isclose(before, after, rtol=0, atol=0, equal_nan=True)
        change = change.unflatten(0, (2, agents, -1)).transpose(2, 3).flatten(3).any(-1).any(0)  # of j by moving i
        own = torch.eye(agents, dtype=torch.bool, device=change.device)
        if (change & ~own).any():
            return True
        return False if change.diagonal().all() else None

    def _values(self, out: TensorDictBase, count: int, agents: int) -> Tensor:
        """Those at the true states, ``[N, R, C]``."""
        values = out.get(self.value())[:count]
        _require_agents(self.value(), values, agents)
        return values.transpose(0, 1)

    def _adjacent(
        self, reciprocal: Reciprocal, weights: Tensor, entries: Mapping[Key, Tensor]
    ) -> tuple[dict[Key, Tensor], Hearers]:
        """Adjacent states, ``{key: [S, L, R, N_j, D]}``, and whose they are."""
        parts = {k: x for k, x in entries.items() if k not in self.arguments and x.is_floating_point()}
        only = next(iter(parts)) if len(parts) == 1 else None
        state = parts[only] if only else torch.cat(list(parts.values()), -1)  # [R, N, D]
        graph, n = reciprocal.engine.graph, reciprocal.agents
        listens = listeners(graph, weights)
        who = hearers(None if listens is None else tuple(map(tuple, listens)), n, bool(self.joint))
        if self.joint:
            near = reciprocal.adjacent(state.flatten(1).unsqueeze(0)).unflatten(-1, state.shape[1:])
        else:
            near = who.of(reciprocal.adjacent(state.transpose(0, 1))).transpose(2, 3)
        if only:
            return {only: near}, who
        widths = [part.shape[-1] for part in parts.values()]
        return dict(zip(parts, near.split(widths, -1), strict=True)), who


def _require_agents(key: Key, entry: Tensor, agents: int) -> None:
    if entry.dim() < 3 or entry.shape[1] != agents:
        raise UserError(f"{key}: expected shape [rows, {agents}, *] for {agents} agents, got {list(entry.shape)}")


def _agents_first(agents: Tensor) -> Tensor:
    """``[R, N, *]`` -> ``[N, R, *]``."""
    return agents.transpose(0, 1)


@contextmanager
def _undisturbed(critic: torch.nn.Module) -> Iterator[None]:
    """A try that leaves no trace: no dropout, no running statistics, the global random stream where it was."""
    training = [part for part in critic.modules() if part.training]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()), enabled=True):
        for part in training:
            part.training = False
        try:
            yield
        finally:
            for part in training:
                part.training = True


def _mark(estimator: ValueEstimatorBase) -> None:
    """Whoever wires an estimator says so, as it may be reached by its loss and by itself."""
    if getattr(estimator, "blends", False):
        raise UserError(f"{type(estimator).__name__}: expected one that does not blend its targets yet, this one does")
    estimator.blends = True


def _best_by_own(loss: QMixerLoss) -> Callable[[Tensor, TensorDictBase, Callable[[Tensor], Tensor]], Tensor]:
    """Neighbours are asked what the action is worth that agent i's own network finds best at its true state."""

    def pick(heard: Tensor, answers: TensorDictBase, arranged: Callable[[Tensor], Tensor]) -> Tensor:
        best = arranged(answers.get(loss.tensor_keys.action)[: heard.shape[-2]])
        if loss.action_space != "categorical":
            return (heard * best).sum(-1, keepdim=True)
        best = best if best.dim() == heard.dim() - 1 else best.unsqueeze(-1)
        return heard.take_along_dim(best.unsqueeze(0), -1)

    return pick


def _wire_estimator(loss: LossModule, wire: Callable[[ValueEstimatorBase], None]) -> None:
    """Wire the loss's value estimator, and each that takes its place."""
    wire(loss.value_estimator)
    make = loss.make_value_estimator

    def make_value_estimator(*args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        wire(loss.value_estimator)
        return made

    loss.make_value_estimator = make_value_estimator


def _wire_estimate(estimator: ValueEstimatorBase, team: Team, reciprocal: Reciprocal) -> None:
    """While the estimator asks for the next value, under target parameters, the critic answers Z*."""
    _mark(estimator)
    estimate, critic = estimator.value_estimate, team.critic

    def value_estimate(*args: Any, **kwargs: Any) -> Tensor:
        if not reciprocal.turn():
            return estimate(*args, **kwargs)
        call, own = critic.forward, vars(critic).get("forward")
        vars(critic)["forward"] = lambda data: team.answer(reciprocal, data, call)
        try:
            return estimate(*args, **kwargs)
        finally:
            del vars(critic)["forward"]
            if own is not None:  # somebody had replaced it before
                vars(critic)["forward"] = own

    estimator.value_estimate = value_estimate


def _wire_twins(loss: TD3Loss, reciprocal: Reciprocal) -> None:
    """Under target parameters the critics answer Z*, of which the loss then takes the minimum over the twins."""
    if not loss.delay_qvalue:
        raise UserError("TD3Loss: expected delay_qvalue=True, targets cannot be told from critics without")
    make = loss._make_vmap
    team = Team(
        loss.qvalue_network, lambda: loss.tensor_keys.state_action_value, frozenset(loss.actor_network.out_keys)
    )

    def make_vmap() -> None:
        make()
        asked = loss._vmap_qvalue_network00

        def answered(data: TensorDictBase, params: TensorDictBase) -> TensorDictBase:
            def call(rows: TensorDictBase) -> TensorDictBase:  # [R] -> values [R, N, twins]
                twins = asked(rows.expand(len(data), *rows.batch_size), params)
                return rows.set(team.value(), twins.get(team.value()).squeeze(-1).movedim(0, -1))

            if params is not loss.target_qvalue_network_params or not reciprocal.turn():
                return asked(data, params)
            blend = team.answer(reciprocal, data[0], call).get(team.value())
            return TensorDict({team.value(): blend.movedim(-1, 0).unsqueeze(-1)}, data.batch_size)

        loss._vmap_qvalue_network00 = answered

    loss._make_vmap = make_vmap
    make_vmap()


def _wire_values(estimator: ValueEstimatorBase, reciprocal: Reciprocal) -> None:
    """The values of the next states are blended; those of the states themselves, which advantages subtract, are not."""
    if not isinstance(estimator, TD0Estimator | TD1Estimator | TDLambdaEstimator | GAE):
        raise UserError(f"value estimator: expected TD0, TD1, TDLambda or GAE, got {type(estimator).__name__}")
    _mark(estimator)
    critic, asked = estimator.value_network, estimator._call_value_nets

    @cache
    def team_of(value: Key) -> Team:
        return Team(critic, lambda: value)

    def call_value_nets(data: TensorDictBase, params: Any, next_params: Any, **kwargs: Any) -> tuple[Any, ...]:
        value, next_value, *rest = asked(data=data, params=params, next_params=next_params, **kwargs)
        if not reciprocal.turn():
            return value, next_value, *rest
        team, following = team_of(kwargs["value_key"]), data.get("next").select(*critic.in_keys)
        borrowed = nullcontext() if next_params is None else next_params.to_module(critic)
        with borrowed:
            blend = team.answer(reciprocal, following, critic).get(kwargs["value_key"])
        if isinstance(estimator, GAE):
            blend = torch.lerp(next_value, blend, _bootstrapped(estimator, data, next_value))
        return value, blend, *rest

    estimator._call_value_nets = call_value_nets


def _bootstrapped(estimator: GAE, data: TensorDictBase, value: Tensor) -> Tensor:
    """How much of the next value is a bootstrap in the lambda-return: 1 - lambda, and 1 where the return ends.

    The rest of it is what GAE takes off again at the next step; it must stay V, or Z* would enter at every step anew.
    """
    done = data.get(("next", estimator.tensor_keys.done)).clone()
    done.movedim(estimator._get_time_dim(None, data), 0)[-1] = True
    while done.dim() < value.dim():
        done = done.unsqueeze(-2)
    return 1 - estimator.lmbda.to(value) * (~done).to(value)
