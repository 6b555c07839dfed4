"""``marl classic``, and what ``marl lifelong`` and ``marl resume`` share with it: experiments in a run folder."""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from marl import config as cfg
from marl.classic.experiments import ELSEWHERE, EXPERIMENTS, experiment
from marl.classic.experiments.base import Distributed, Drawn
from marl.classic.figure import draw
from marl.classic.results import FORMAT, RESULTS, check_seeds, merge, read_results, read_run, summarise
from marl.classic.runner import run, run_in_turn
from marl.doctor import cores, versions
from marl.parser import Parser, add_settings, make_parser, print_json, reader
from marl.runfolder import lock, new_run, to_make, watch_command, write_config
from marl.terminal import progress_bar, say_how_to_go_on
from marl.types import UserError

SEEDS = (0, 1, 2, 3, 4)

HELP = """\
Run an experiment with a tabular or linear method, once for each seed, and draw its figure.

  marl classic --list
  marl classic coop-lsvi --seeds 0 1 2 --workers 2
  marl classic coop-lsvi --help

`marl classic NAME --help` lists the options of that experiment. The folder gets results.csv, findings.csv, NAME.png
and tensorboard/. Stop it at any time; `marl resume FOLDER` goes on, to the same numbers.
"""


def classic(arguments: Sequence[str]) -> None:
    """The command ``marl classic``."""
    if not arguments or arguments[0].startswith("-"):
        _without_name(arguments)
        return
    name = arguments[0]
    if name in ELSEWHERE:
        raise UserError(f"{name} has a command of its own: marl {name} --help")
    kind = experiment(name)
    about = f"{name}: {EXPERIMENTS[name].about}."
    parser = experiment_parser("classic", "NAME", ("NAME", "experiment, for example coop-lsvi"), about)
    parser.usage = f"marl classic {name} [options]"
    add_settings(parser, name, kind.Options, {})
    given = vars(parser.parse(arguments))
    start(given.pop("name"), name, given, given.pop("workers"), arguments)


def start(name: str, label: str, given: dict[str, Any], workers: int | None, arguments: Sequence[str]) -> None:
    """Make the folder of the experiment that the command line asks for, and run it; ``label`` is part of its name."""
    kind = experiment(name)
    folder, seeds, as_json, quiet = (given.pop(word) for word in ("run", "seeds", "json", "quiet"))
    options = kind.Options()
    for setting, value in given.items():
        options = cfg.replace(options, setting, value)
    cfg.check_ranges(options)
    check_seeds(seeds)
    with _silence():  # the processes that run it say the same
        kind(options, seeds[0])  # raises for options that make no sense together

    command = name if name in ELSEWHERE else "classic"
    made_from = {"format": FORMAT, "experiment": name, "options": cfg.to_json(options), "seeds": seeds}
    made_from |= {"command": shlex.join(["marl", command, *arguments]), "versions": versions()}
    resume(_make(folder, command, label, made_from), workers, not quiet, as_json)


def _make(folder: Path | None, command: str, name: str, config: dict[str, Any]) -> Path:
    """The folder of a new run, with its ``config.json``."""
    folder = new_run(command, name, folder)
    with lock(folder):
        write_config(folder, config)
    return folder


def resume(folder: Path, workers: int | None, progress: bool, as_json: bool, address: str | None = None) -> None:
    """Run what is not finished of the run in ``folder``; then its table, findings and picture, and a word on them.

    Args:
        folder: of the run.
        workers: processes that run the seeds; None: one for each core.
        progress: show a bar.
        as_json: print JSON.
        address: of the Ray cluster, in place of the one that the run began with.

    Raises:
        Interrupted: after SIGINT or SIGTERM, once everything is saved.
        UserError: no such run, in use by another process, a seed that failed, a full disk.
    """
    with lock(folder):
        name, kind, options, seeds, command = read_run(folder)
        if not (folder / RESULTS).exists():
            if address is not None:
                options = cfg.replace(options, "address", address)
            in_turn = issubclass(kind, Distributed) and kind.distributed(options)
            if in_turn and workers is not None:
                raise UserError(f"{folder} has workers of its own, as many as it began with; leave --workers out")
            with say_how_to_go_on(folder), contextlib.closing(progress_bar(0, 0, f" {kind.unit}", progress)) as bar:
                show = _Show(bar, len(seeds))
                if in_turn:
                    run_in_turn(kind, options, seeds, folder, show)
                else:
                    run(kind, options, seeds, folder, min(workers or cores(), len(seeds)), show)
            merge(folder, seeds)
        curves = read_results(folder)
        rows = summarise(kind, options, curves, seeds, folder)
        picture = folder / f"{name}.png"
        if issubclass(kind, Drawn):
            kind.draw(curves, options, command, picture)
        else:
            draw(name, kind.metrics, curves, len(seeds), command, picture)
    if as_json:
        print_json({"run": str(folder), "findings": [row._asdict() for row in rows]})
        return
    for row in rows:
        interval = "" if math.isnan(row.low) else f" [{row.low:.4g}, {row.high:.4g}]"
        unit = f" {row.unit}" if row.unit else ""
        print(f"{row.name}: {row.mean:.4g}{interval}{unit}, seeds: {row.seeds}")
    print(f"picture: {picture}")
    print(f"watch: {watch_command(folder)}")
    print(f"run: {folder}")


def _without_name(arguments: Sequence[str]) -> None:
    parser = experiment_parser("classic", "NAME", ("NAME", "experiment, a name of --list"), HELP)
    parser.add_argument("--list", action="store_true", help="The experiments that there are.")
    if {"-h", "--help"} & {*arguments}:
        parser.print_help()
        return
    if "--list" not in arguments:
        raise UserError("expected: marl classic NAME [options], or marl classic --list")
    given = parser.parse(["", *arguments])
    about = {name: entry.about for name, entry in EXPERIMENTS.items()}
    if given.json:
        print_json({"experiments": about})
        return
    for name, text in about.items():
        print(f"{name}: {text}")


def experiment_parser(command: str, label: str, positional: tuple[str, str], text: str) -> Parser:
    """The options that every experiment has; ``label`` stands for that of ``start``."""
    parser = make_parser(command, text, [positional])
    where = f"runs/{command}-{label}-TIME"
    parser.add_argument("--run", type=to_make, metavar="FOLDER", help=f"Folder to make. Default: {where}.")
    parser.add_argument(
        "--seeds",
        type=reader("seeds", int),
        nargs="+",
        default=list(SEEDS),
        metavar="S",
        help=f"Each is run by itself. Default: {' '.join(map(str, SEEDS))}.",
    )
    add_workers(parser)
    parser.add_argument("--json", action="store_true", help="Print the result as one JSON object.")
    parser.add_argument("--quiet", action="store_true", help="No progress bar.")
    return parser


def add_workers(parser: Parser) -> None:
    """``--workers``, which ``marl resume`` has as well."""
    parser.add_argument(
        "--workers",
        type=_workers,
        metavar="N",
        help="Processes that run the seeds of an experiment, one each; of marl lifelong with engines but local: "
        "workers that share the agents. Default: one for each core.",
    )


def _workers(text: str) -> int:
    count: int = cfg.parse("--workers", int, text)
    if count < 1:
        raise UserError(f"--workers: expected 1 or more, got {count}")
    return count


class _Show:
    """Moves the bar, which counts the work of all seeds; what an earlier process did is no speed of this one's."""

    def __init__(self, bar: Any, seeds: int) -> None:
        self.bar, self.seeds = bar, seeds
        self.done: dict[int, int] = {}

    def __call__(self, seed: int, done: int, total: int) -> None:
        if self.bar.disable:
            return
        if seed not in self.done:
            self.bar.total = total * self.seeds
            self.bar.initial += done
        self.done[seed] = done
        self.bar.update(sum(self.done.values()) - self.bar.n)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No warnings of ours inside."""
    log = logging.getLogger("marl")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
