"""Start a run's networks from those of another run: other agents, observations, actions, environment or algorithm.

What fits is copied; a table says of each network of each agent what became of it. ``docs/howto/transfer.md`` has the
rules, ``marl.networks`` what the inputs and outputs stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from marl.algos.common import Learner
from marl.config import suggestion
from marl.envs.base import EnvSpec
from marl.events import csv_text
from marl.modules.mixers import QMixer
from marl.modules.normal import RunningNorm
from marl.modules.q_values import QNetwork
from marl.modules.recurrent import StackedRNN
from marl.modules.stacked import Stacked
from marl.networks import Block, Net, networks, plain_networks, structure
from marl.recipe import Recipe, load_learner, recipe_of
from marl.runfolder import explain_disk_errors, write_atomically
from marl.types import UserError

TABLE = "init.csv"


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        network: or ``member``.
        to, source: the agent (or member) that got something, and the one that it comes from; empty: nobody.
        what: ``kept``; ``padded`` (inputs whose weights start at 0), ``cut`` (inputs or outputs left out),
            ``new outputs``, ``new twin``, or several of them; ``new``: nothing was copied; ``unused``: what nobody got.
        details: in numbers, or why.
    """

    network: str
    to: str
    source: str
    what: str
    details: str = ""


class Source(NamedTuple):
    """A run to start from, at its newest checkpoint."""

    spec: EnvSpec
    learner: Learner
    step: int


class Agents(NamedTuple):
    """Who starts from whom, by number.

    Attributes:
        origin: of each agent.
        places: of which agent of the source each takes the place, where critics see all of them; None: of nobody.
    """

    origin: list[int]
    places: list[int | None]

    def seen_by(self, agent: int) -> list[int | None]:
        """The same places as that agent's critic has to see them: where its origin saw itself, it sees itself."""
        places, own = list(self.places), self.origin[agent]
        if own in places:
            places[places.index(own)] = places[agent]
        places[agent] = own
        return places


class Paired(NamedTuple):
    """Inputs or outputs of two networks that belong together, as places.

    Attributes:
        here, there: in the one network and in the other, pair by pair.
        rest: those here that have no partner there.
        lost: how many there have no partner here.
    """

    here: list[int]
    there: list[int]
    rest: list[int]
    lost: int


class Fit(NamedTuple):
    """What a network can take from another.

    Attributes:
        inputs, outputs: what belongs together; None where nothing fits.
        turn: an input there that is always 1, whose weights join the bias; None: none.
        what, details: for the table.
    """

    inputs: Paired | None = None
    outputs: Paired | None = None
    turn: int | None = None
    what: str = "new"
    details: str = ""


def start(recipe: Recipe, learner: Learner, spec: EnvSpec) -> list[Row]:
    """Copy into a fresh learner what ``recipe.init`` names, and say what became of each network; [] without it.

    Optimisers, replay, exploration and random streams stay new; target networks become copies.

    Raises:
        UserError: the source cannot be read any more, a network has another name, or a learner is not ours.
    """
    if recipe.init is None:
        return []
    origins = [recipe.init["members"][member.name] for member in recipe.members]
    sources = {origin["run"]: load_source(Path(origin["run"]), origin.get("step")) for origin in origins}
    given, rows = recipe.init["given"], []
    for member, origin in zip(recipe.members, origins, strict=True):
        step = sources[origin["run"]].step
        rows.append(Row("member", member.name, origin["name"], "kept", f"{given}, step {step}"))
    for p, origin in enumerate(origins):
        table = transfer(learner, spec, p, sources[origin["run"]], origin["member"], recipe.init)
        rows += [] if p else table  # members of one run are alike in all but their numbers
    return rows


def load_source(folder: Path, step: int | None = None) -> Source:
    """A run at its newest checkpoint; raises ``UserError`` where there is none, or it is not that of ``step``."""
    recipe = recipe_of(folder)
    spec = recipe.spec()
    found, learner = load_learner(folder, recipe, spec)
    if step not in (None, found):
        raise UserError(f"{folder}: expected its checkpoint of step {step}, as when it was named, got step {found}")
    return Source(spec, learner, found)


def transfer(
    learner: Learner, spec: EnvSpec, p: int, source: Source, member: int, init: Mapping[str, Any]
) -> list[Row]:
    """Fill member ``p`` of ``learner`` from a member of ``source``; see ``start``. What became of each network."""
    nets, others = networks(learner, spec), networks(source.learner, source.spec)
    plain, other_plain = plain_networks(learner), plain_networks(source.learner)
    for owner, found in ((learner, nets), (source.learner, others)):
        if not found:
            raise UserError(f"init_from: no telling which networks a {type(owner).__name__} has")
    wanted = init["networks"] or [*nets, *plain]
    for name in wanted:
        if name not in {*nets, *plain}:
            raise UserError(f"init_networks: no network {name!r}{suggestion(str(name), [*nets, *plain])}")

    agents = match(spec.agents, source.spec.agents, init["agent"])
    rows = []
    for name, net in nets.items():
        for i in [0] if net.shared else range(spec.n_agents):
            to, origin = "all" if net.shared else spec.agents[i], agents.origin[i]
            fit, whose = Fit(details="not asked for"), ""
            if name in wanted:
                fit = Fit(details="the other run has no such network")
            if name in wanted and name in others:
                fit = fitting(net, others[name], i, agents, init["agent"] is not None)
            if fit.what != "new":
                copy(net, others[name], fit, p, member, i, origin)
                whose = "all" if others[name].shared else source.spec.agents[origin]
            rows.append(Row(name, to, whose, fit.what, fit.details))
        if net.target is not None:
            _copy_all(net.target, net.module, p, p)
    alike = agents.origin == list(range(source.spec.n_agents))
    for name, (module, target) in plain.items():
        there = other_plain[name][0] if name in other_plain else None
        if name not in wanted:
            why = "not asked for"
        elif there is None:
            why = "the other run has no such network"
        elif not alike:
            why = "other agents there"
        else:
            why = "" if _shapes(module) == _shapes(there) else "other sizes there"
        if not why and there is not None:
            _copy_all(module, there, p, member)
            if target is not None:
                _copy_all(target, module, p, p)
        rows.append(Row(name, "all", "", "new", why) if why else Row(name, "all", "all", "kept"))
    rows += [Row(name, "", "all", "unused") for name in [*others, *other_plain] if name not in {*nets, *plain}]
    left = sorted({*range(source.spec.n_agents)} - {*agents.origin})
    rows += [Row("agent", "", source.spec.agents[i], "unused") for i in left]
    return [*rows, Row("the rest", "all", "", "new", "optimisers, replay, exploration, random streams")]


def match(names: Sequence[str], others: Sequence[str], agent: int | None) -> Agents:
    """Who starts from whom.

    Agents of the same name belong together; the rest of both, in their order; whoever is then left starts from the
    agent of the same number, counted round and round, and takes nobody's place. ``agent``: all start from that one.
    """
    free = iter([j for j, name in enumerate(others) if name not in names])
    places = [others.index(name) if name in others else next(free, None) for name in names]
    origin = [i % len(others) if place is None else place for i, place in enumerate(places)]
    return Agents([agent] * len(names) if agent is not None else origin, places)


def fitting(net: Net, other: Net, i: int, agents: Agents, chosen: bool) -> Fit:
    """What the network of agent ``i`` (or of all) can take from its origin's; ``chosen``: the user named that one."""
    here, there = structure(net.module), structure(other.module)
    if here["kind"] != there["kind"]:
        return Fit(details=f"{here['kind']} here, {there['kind']} there")
    if differ := [f"{key} {_say(here[key])} here, {_say(there[key])} there" for key in here if here[key] != there[key]]:
        return Fit(details="; ".join(differ))
    if here["kind"] == "mixer" and agents.origin != sorted(agents.origin):
        return Fit(details="the agents come in another order there")
    if net.shared and not other.shared and not chosen and len(set(agents.origin)) > 1:
        return Fit(details="one network for all here, one for each there; name one: RUN:agent")

    origin, seen = agents.origin[i], agents.seen_by(i)
    reads, read = _places(net, net.reads(i)), _places(other, other.reads(origin))
    inputs = _paired(reads, read, lambda kind, j: agents.origin[j] if kind == "id" else seen[j])
    outputs = _paired(
        _places(net, net.says(i)), _places(other, other.says(origin)), lambda kind, j: agents.origin[j], whole=False
    )
    named = any(kind == "id" for kind, _ in reads)
    turn = None if named or ("id", origin) not in read else read["id", origin][0]
    if turn is not None:  # what the others' turns would change is not lost: they take it with them
        inputs = inputs._replace(lost=inputs.lost - sum(kind == "id" for kind, _ in read))
    numbers = {place for (kind, _), places in reads.items() if kind != "id" for place in places}
    if not numbers & {*inputs.here}:
        return Fit(details=f"reads {_kinds(reads)} here, {_kinds(read)} there")

    told = [
        (len(inputs.rest), "padded", f"of {len(inputs.here) + len(inputs.rest)} inputs start at 0"),
        (inputs.lost, "cut", "inputs left out"),
        (len(outputs.rest), "new outputs", f"of {len(outputs.here) + len(outputs.rest)} outputs are new"),
        (outputs.lost, "cut", "outputs left out"),
        (net.heads - other.heads, "new twin", f"of {net.heads} twins are new"),  # a copy would stay one for ever
        (other.heads - net.heads, "cut", f"of {other.heads} twins left out"),
    ]
    told = [each for each in told if each[0] > 0]
    what = ", ".join(dict.fromkeys(word for _, word, _ in told))
    return Fit(inputs, outputs, turn, what or "kept", "; ".join(f"{count} {text}" for count, _, text in told))


def _places(net: Net, blocks: Sequence[Block]) -> dict[tuple[str, int], range]:
    """Where each block's own numbers are; in a network of all agents those of the widest."""
    found, start = {}, 0
    for block in blocks:
        found[block.kind, block.agent] = range(start, start + (block.width if net.shared else block.own))
        start += block.width
    return found


def _paired(
    here: Mapping[tuple[str, int], range],
    there: Mapping[tuple[str, int], range],
    whose: Callable[[str, int], int | None],
    whole: bool = True,
) -> Paired:
    """The leading numbers of blocks that stand for each other.

    Args:
        here, there: from ``_places``.
        whose: the agent there for a kind and an agent here.
        whole: blocks there that nobody here stands for are lost, too.
    """
    paired, used = Paired([], [], [], 0), dict[tuple[str, int | None], range]()
    for (kind, agent), places in here.items():
        other = agent if agent < 0 else whose(kind, agent)
        found = range(0) if other is None else there.get((kind, other), range(0))
        used[kind, other] = found
        both = min(len(places), len(found))
        paired.here.extend(places[:both])
        paired.there.extend(found[:both])
        paired.rest.extend(places[both:])
    counted = there.values() if whole else used.values()
    return paired._replace(lost=sum(map(len, counted)) - len({*paired.there}))


def _kinds(blocks: Mapping[tuple[str, int], range]) -> str:
    return " and ".join(dict.fromkeys(kind for kind, _ in blocks))


def _say(value: object) -> str:
    if isinstance(value, list) and value:
        return ",".join(map(_say, value))
    return "none" if value in ([], None) else str(value)


def copy(net: Net, other: Net, fit: Fit, p: int, member: int, i: int, origin: int) -> None:
    """Into the networks of agent ``i`` of member ``p`` from those of ``origin`` of ``member``."""
    first, last = ends(net.module)
    theirs = dict(other.module.named_parameters())
    for head in range(min(net.heads, other.heads)):
        here, there = net.place(i) + head, other.place(origin) + head
        for name, parameter in net.module.named_parameters():
            layer, _, kind = name.rpartition(".")
            to, source = parameter.data[p, here], theirs[name].data[member, there]
            if layer == first and kind == "bias" and fit.turn is not None:
                source = source + theirs[f"{first}.weight"].data[member, there, fit.turn]
            rows = fit.inputs if layer == first and kind == "weight" else None
            _put(to, source, rows, fit.outputs if layer == last else None)
            if rows is not None:
                to[rows.rest] = 0
        if net.log_std is not None and other.log_std is not None:
            _put(net.log_std.data[p, here], other.log_std.data[member, there], None, fit.outputs)
        if net.norm is not None and other.norm is not None:
            seen = other.norm.sums[member, there]
            net.norm.sums[p, here] = seen if seen[0] > 0 else seen.new_tensor(RunningNorm.NEUTRAL)


def _put(to: Tensor, source: Tensor, rows: Paired | None, columns: Paired | None) -> None:
    """Copy whole, or some rows and columns (the last two dimensions)."""
    if rows is None and columns is None:
        to.copy_(source)
        return
    above, aside = (list(range(size)) for size in to.shape[-2:])
    r, from_r = (above, above) if rows is None else (rows.here, rows.there)
    c, from_c = (aside, aside) if columns is None else (columns.here, columns.there)
    row, from_row, column, from_column = (torch.tensor(places, dtype=torch.int64) for places in (r, from_r, c, from_c))
    to[..., row[:, None], column] = source[..., from_row[:, None], from_column]


def ends(module: Stacked) -> tuple[str, str]:
    """Names of the layer that reads the input ("" where that is pictures: none of these does) and of the last one."""
    if isinstance(module, StackedRNN):
        return "enter", "leave"
    if isinstance(module, QMixer):
        return "first", "v"
    pictures = isinstance(module, QNetwork) and module.pictures is not None
    return "" if pictures else "layers.0", f"layers.{len(list(module.get_submodule('layers').children())) - 1}"


def _copy_all(to: Stacked, source: Stacked, p: int, member: int) -> None:
    for mine, theirs in zip(to.parameters(), source.parameters(), strict=True):
        mine.data[p] = theirs.data[member]


def _shapes(module: Stacked) -> list[torch.Size]:
    return [x.shape[1:] for x in module.parameters()]


def lines(rows: Sequence[Row]) -> list[str]:
    """The table in columns, one text for each line."""
    cells = [("network", "to", "from", "what", ""), *rows]
    widths = [max(len(row[k]) for row in cells) for k in range(4)]
    return [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]).rstrip() for row in cells
    ]


def write(folder: Path, rows: Sequence[Row], name: str = TABLE) -> None:
    """The table as ``init.csv``, or under another name."""
    with explain_disk_errors(folder, f"{name} was not written"):
        write_atomically(folder / name, csv_text([("network", "to", "from", "what", "details"), *rows]))
