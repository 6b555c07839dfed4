"""What every command of ``marl`` reads its arguments with, and how it prints JSON."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from marl import config as cfg
from marl.types import UserError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the nearest valid option, and exits with code 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse all of ``arguments``; underscores and dashes in option names are the same."""
        namespace, unknown = self.parse_known_args([_dashed(a) for a in arguments])
        if unknown:
            known = "; a list is one word, as 64,64" if unknown[0][:1].isdigit() else ""
            if unknown[0].startswith("-"):
                known = self._nearest(unknown[0].split("=")[0])
            raise UserError(f"unknown argument {unknown[0]!r}{known}")
        return namespace

    def _nearest(self, word: str) -> str:
        """The end of a sentence: the option whose last part is nearest to the last part of ``word``."""
        options = {o.rpartition(".")[2].lstrip("-"): o for o in self._option_string_actions if o.startswith("--")}
        near = difflib.get_close_matches(word.rpartition(".")[2].lstrip("-"), options, n=1, cutoff=0.5)
        return f"; did you mean {options[near[0]]!r}?" if near else f"; see {self.prog} --help"


def _dashed(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def make_parser(command: str, description: str, positional: Sequence[tuple[str, str]]) -> Parser:
    """The parser of ``marl COMMAND``; ``positional`` has the names and explanations of its first words."""
    parser = Parser(
        prog=f"marl {command}",
        usage=" ".join(["marl", command, *(name for name, _ in positional), "[options]"]),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, text in positional:
        parser.add_argument(name.lower(), metavar=name, help=text)
    return parser


def add_settings(
    parser: Parser,
    title: str,
    config: type,
    values: Mapping[str, Any],
    prefix: str = "",
    without: Sequence[str] = (),
    sweeps: bool = True,
) -> None:
    """One option for each leaf of a configuration class, but for those in ``without``, in a group of the help page;
    ``values`` are other defaults, ``sweeps`` says whether the command has ``--sweep``."""
    group = parser.add_argument_group(title)
    for setting in cfg.settings(config):
        if setting.name in without:
            continue
        name = prefix + setting.name
        default = values.get(setting.name, setting.default)
        default = ",".join(map(str, default)) if isinstance(default, tuple) else default
        default = "none" if default is None else default
        note = f"{setting.help} Default: {default}." + (" May be swept." if setting.sweep and sweeps else "")
        group.add_argument(
            "--" + name.replace("_", "-"),
            dest=name,
            default=argparse.SUPPRESS,
            metavar=cfg.describe(setting.type),
            type=reader(name, setting.type),
            help=note.replace("%", "%%"),
        )


def reader(name: str, kind: Any) -> Callable[[str], Any]:
    """What argparse takes as ``type``: see ``marl.config.parse``."""

    def read(text: str) -> Any:
        return cfg.parse(f"--{name.replace('_', '-')}", kind, text)

    return read


def free_options(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """``--env.KEY VALUE`` for families that hand any keyword on, values read as JSON where they are; and the rest."""
    free: dict[str, Any] = {}
    rest: list[str] = []
    pending = iter(arguments)
    for argument in pending:
        if not argument.startswith("--env."):
            rest.append(argument)
            continue
        name, equals, value = argument.removeprefix("--env.").partition("=")
        text = value if equals else next(pending, None)
        if text is None or (not equals and text.startswith("--")):
            raise UserError(f"{argument}: expected a value")
        try:
            free[name.replace("-", "_")] = json.loads(text)
        except ValueError:
            free[name.replace("-", "_")] = text
    return free, rest


def print_json(value: Any) -> None:
    """JSON knows no nan: what is unknown becomes null."""
    print(json.dumps(json.loads(json.dumps(value), parse_constant=lambda name: None)))
