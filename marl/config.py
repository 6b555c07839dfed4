"""Settings as frozen dataclasses: declared once, read from the command line, from JSON and from sweeps alike.

A setting is a dataclass field made by ``option``; nested dataclasses make dotted names (``reciprocity.kappa``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from marl.types import UserError

T = TypeVar("T")
EngineName: TypeAlias = Literal["local", "processes", "ray"]


def option(default: Any, help: str, sweep: bool = False, least: float | None = None, most: float = math.inf) -> Any:
    """A dataclass field with its one-sentence explanation.

    Args:
        default: the value when nothing is said.
        help: one sentence for ``--help`` and the documentation.
        sweep: members of one population may differ in it; its tensor is then ``[P, 1, 1]``.
        least: the smallest number that makes sense; None: 0 for a float, 1 for a count.
        most: the largest.
    """
    metadata = {"help": help, "sweep": sweep, "least": least, "most": most}
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        return dataclasses.field(default_factory=lambda: default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Setting(NamedTuple):
    """One leaf of a configuration; see ``option``."""

    name: str
    type: Any
    default: Any
    help: str
    sweep: bool
    least: float | None
    most: float


def settings(config: type, prefix: str = "") -> Iterator[Setting]:
    """Every leaf of a configuration class, in the order of declaration."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from settings(hints[field.name], f"{prefix}{field.name}.")
        else:
            about = {"help": "", "sweep": False, "least": None, "most": math.inf, **field.metadata}
            yield Setting(prefix + field.name, hints[field.name], field.default, **about)


def check_ranges(config: Any) -> None:
    """Raise ``UserError`` for the first number of a configuration that makes no sense, NaN and infinity included."""
    for setting in settings(type(config)):
        value = get(config, setting.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            least = setting.least if setting.least is not None else int(isinstance(number, int) and _counts(setting))
            if not (math.isfinite(number) and least <= number <= setting.most):
                wanted = f"a number from {least} to {setting.most}"
                if math.isinf(setting.most):
                    wanted = f"{least} or more" if math.isfinite(number) else f"a finite number, {least} or more"
                got = ",".join(map(str, value)) if isinstance(value, tuple) else value
                raise UserError(f"{setting.name}: expected {wanted}, got {got}")


def _counts(setting: Setting) -> bool:
    """Whether it is declared an int, and not merely given as one."""
    return "float" not in describe(setting.type)


def suggestion(word: str, choices: Iterable[str]) -> str:
    """The nearest valid choice as the end of a sentence; all of them if none is near."""
    valid = sorted(choices)
    near = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; choose from {', '.join(valid)}" if valid else ""


def describe(kind: Any) -> str:
    """A type as a user reads it: ``float``, ``a|b``, ``int,int,...``, ``int or none``."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "|".join(map(str, args))
    if origin is tuple:
        return f"{describe(args[0])},..."
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if a is type(None) else describe(a) for a in args)
    return str(kind.__name__)


def parse(name: str, kind: Any, text: str) -> Any:
    """The value that ``text`` spells for a setting of type ``kind``; raises ``UserError`` naming what was expected."""
    try:
        return _read(name, kind, text)
    except (ValueError, KeyError):
        raise UserError(f"{name}: expected {describe(kind)}, got {text!r}") from None


def _read(name: str, kind: Any, text: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        matches = [a for a in args if str(a) == text]
        if not matches:
            raise UserError(f"{name}: {text!r} is not a choice{suggestion(text, map(str, args))}")
        return matches[0]
    if origin in (typing.Union, types.UnionType):
        return None if text.lower() == "none" else _read(name, next(a for a in args if a is not type(None)), text)
    if origin is tuple:
        parts = text.split(",") if text else []
        if not all(parts):
            raise ValueError(text)
        return tuple(_read(name, args[0], part) for part in parts)
    if kind is bool:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
    return _integer(text) if kind is int else kind(text)


def _integer(text: str) -> int:
    """Whole numbers may be written 1e6 or 1_000_000; raises ``ValueError`` for others."""
    with contextlib.suppress(ValueError):
        return int(text)
    number = float(text)
    if not number.is_integer() or abs(number) >= 2**53:  # from there on a float does not hold every whole number
        raise ValueError(text)
    return int(number)


def checked(name: str, kind: Any, value: Any) -> Any:
    """``value`` as a setting of type ``kind`` holds it; raises ``UserError`` if it cannot.

    A list becomes a tuple, NumPy's numbers become Python's, and a whole number for a float a float.
    """
    value = _plain(value)
    if not _fits(kind, value):
        raise UserError(f"{name}: expected {describe(kind)}, got {value!r}")
    return _held(kind, value)


def as_json(name: str, value: Any) -> Any:
    """``value`` as JSON gives it back: lists for tuples and arrays, NumPy's numbers as Python's.

    Raises ``UserError`` for what JSON does not hold; ``name`` is the setting's.
    """
    try:
        return json.loads(json.dumps(value, default=lambda part: part.tolist()))
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{name}: expected numbers, texts, lists or mappings of these, got {value!r}") from None


def _held(kind: Any, value: Any) -> Any:
    """A value that fits, whole numbers for floats made floats."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _held(next(a for a in args if _fits(a, value)), value)
    if origin is tuple:
        return tuple(_held(args[0], part) for part in value)
    return float(value) if kind is float else value


def _plain(value: Any) -> Any:
    """Lists and arrays as tuples, NumPy's numbers (known by their method: it is not imported) as Python's."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _fits(kind: Any, value: Any) -> bool:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_fits(a, value) for a in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(args[0], v) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(args[0], key) for key in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def replace(config: T, name: str, value: Any) -> T:
    """The configuration with the leaf of dotted ``name`` set to ``value``.

    Raises:
        UserError: for an unknown name, or a value of another type.
    """
    head, _, rest = name.partition(".")
    kind = typing.get_type_hints(type(config)).get(head)
    if kind is None or (rest and not dataclasses.is_dataclass(kind)):
        raise UserError(f"no setting {name!r}{suggestion(name, (s.name for s in settings(type(config))))}")
    value = replace(getattr(config, head), rest, value) if rest else checked(name, kind, value)
    return dataclasses.replace(config, **{head: value})  # type: ignore[type-var]


def get(config: Any, name: str) -> Any:
    """The leaf of dotted ``name``."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def to_json(config: Any) -> dict[str, Any]:
    """The configuration as nested JSON values (tuples become lists)."""
    return dataclasses.asdict(config)


def from_json(config: type[T], values: Mapping[str, Any]) -> T:
    """The inverse of ``to_json``; raises ``UserError`` for an unknown field, or a value of another type."""
    hints = typing.get_type_hints(config)
    known = {f.name for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    arguments = {}
    for name, value in values.items():
        if name not in known:
            raise UserError(f"no setting {name!r} in {config.__name__}{suggestion(name, known)}")
        kind = hints[name]
        nested = dataclasses.is_dataclass(kind)
        arguments[name] = from_json(typing.cast(type, kind), value) if nested else checked(name, kind, value)
    return config(**arguments)


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Settings of a run that belong to no algorithm. Steps are environment steps per member."""

    steps: int = option(1_000_000, "Environment steps per member: one copy advancing once, all agents acting, is one.")
    agents: int | None = option(None, "Number of agents where the environment leaves it open; none: its own default.")
    copies: int = option(1, "Copies of the environment that each member steps at once.")
    engine: EngineName = option(
        "local", "Where the members train: in this process, or shared among processes or the nodes of a Ray cluster."
    )
    address: str | None = option(None, "HOST:PORT of the Ray cluster to join.")
    workers: int = option(
        0,
        "Processes that step the environments; 0: this one. With an engine: those that share the members; 0: all.",
        least=0,
    )
    eval_every: int = option(10_000, "Steps between evaluations; 0: never.", least=0)
    eval_episodes: int = option(10, "Episodes of one evaluation, per member.")
    log_every: int = option(1_000, "Steps between rows of the log.")
    checkpoint_every: int = option(10_000, "Steps between checkpoints; 0: only at the end.", least=0)
    threads: int | None = option(None, "CPU threads of torch; none: torch's choice, kept when the run is resumed.")
