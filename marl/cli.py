"""The command line: ``marl train | classic | lifelong | resume | evaluate | export | list | plot | doctor``.

Exit codes: 0 done, 2 the user's input, 130 interrupted, 1 anything else.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from marl import config as cfg
from marl import lifelong_cli, presets, registry
from marl.parser import Parser, add_settings, free_options, make_parser, print_json, reader
from marl.processes import keep_memory
from marl.runfolder import check_target, read_config, size, to_make, watch_command
from marl.types import UserError

TRAIN_HELP = """\
Train a population of teams from scratch.

  marl train maddpg mpe/simple_spread_v3 --steps 200000 --seeds 0 1 2
  marl train maddpg mpe/simple_spread_v3 --sweep reciprocity.kappa=0,.2,.5,.8
  marl train td3 mujoco/Hopper-v5 --agents 3 --reciprocity.kappa 0.5
  marl train maddpg mpe/simple_spread_v3 --env.local-ratio 0.5 --env.max-cycles 100
  marl train ddpg gym/Pendulum-v1 --env.g 9.81
  marl train --preset pr-fig6-spread-n3-maddpg --seeds 0 1
  marl train maddpg mpe/simple_adversary_v3 --init-from runs/spread
  marl train maptf mpe/simple_spread_v3 --teachers runs/spread:agent_0 runs/other:1

`marl train ALGO ENV --help` lists every setting of that algorithm and environment; `marl list` lists both, and
`marl list --presets` the runs of the policy-reciprocity paper. Options after a preset stand instead of its own.
Every combination of the sweeps' values with every seed is one member, and all members train at once.
"""


PLOT_HELP = """\
Learning curves of runs of marl train: interquartile mean and bootstrap interval over seeds.
Of runs of marl lifelong with different --agents: agent reward and agent time against the number of agents.
"""


def _train_parser(positional: Sequence[tuple[str, str]], preset: presets.Preset | None = None) -> Parser:
    """The options that every algorithm and environment has."""
    parser = make_parser("train", preset.describe() if preset else TRAIN_HELP, positional)
    seeds = " ".join(map(str, preset.seeds)) if preset else "0"
    if preset:
        parser.usage = "marl train --preset NAME [options]"
    parser.add_argument("--preset", metavar="NAME", help="Instead of ALGO and ENV: a run of `marl list --presets`.")
    parser.add_argument("--run", type=to_make, metavar="FOLDER", help="Folder to make. Default: runs/ALGO-ENV-TIME.")
    parser.add_argument(
        "--seeds", type=reader("seeds", int), nargs="+", action="extend", metavar="S",
        help=f"One member each. Default: {seeds}.",
    )  # fmt: skip
    parser.add_argument("--sweep", action="append", default=[], metavar="FIELD=V,V,...", help="Values to compare.")
    parser.add_argument("--init-from", metavar="RUN[:AGENT]", help="Start from another run's networks where they fit.")
    parser.add_argument("--init-networks", nargs="+", action="extend", metavar="NET", help="Only these. Default: all.")
    parser.add_argument(
        "--teachers", metavar="RUN:AGENT", nargs="+", action="extend", help="Frozen policies to learn from: maptf, dvm."
    )
    parser.add_argument("--json", action="store_true", help="Print the result as one JSON object.")
    parser.add_argument("--quiet", action="store_true", help="No progress bar.")
    add_settings(parser, "the loop", cfg.LoopConfig, preset.settings if preset else {})
    return parser


def train(arguments: Sequence[str]) -> None:
    preset, arguments = _preset(arguments)
    names = [a for a in arguments[:2] if not a.startswith("-")]
    names = [preset.algorithm, preset.environment] if preset else names
    positional = [("ALGO", "algorithm, for example maddpg"), ("ENV", "environment, for example mpe/simple_spread_v3")]
    if len(names) < 2:
        if not {"-h", "--help"} & {*arguments}:
            raise UserError("expected: marl train ALGO ENV [options]")
        _train_parser(positional).print_help()
        return

    from marl.envs import family_of

    algorithm = registry.algorithm(names[0])
    family = family_of(names[1])
    parser = _train_parser([] if preset else positional, preset)
    add_settings(parser, names[0], algorithm.Config, preset.settings if preset else {})
    free: dict[str, Any] = {}
    rest = list(arguments)
    if family.options is not None:
        add_settings(parser, names[1], family.options, preset.env if preset else {}, "env.")
    else:
        free, rest = free_options(arguments)
    given = vars(parser.parse(rest))
    env = {k.removeprefix("env."): given.pop(k) for k in list(given) if k.startswith("env.")} | free
    sweep = _sweeps(algorithm.Config, given.pop("sweep"))
    folder, seeds, as_json, quiet = given.pop("run"), given.pop("seeds"), given.pop("json"), given.pop("quiet")
    sources = ("init_from", "init_networks", "teachers")
    known = {name: value for name in sources if (value := given.pop(name)) is not None}
    settings = {name: value for name, value in given.items() if name not in ("algo", "env", "preset")}
    run = {"algorithm": names[0], "environment": names[1], "seeds": seeds or [0], "sweep": sweep, "env": env} | settings
    run = preset.arguments(seeds, sweep, env, **settings) if preset else run

    from marl import api

    folder = api.train(**run, **known, run=folder, progress=not quiet)
    _finish(folder, as_json)


def _preset(arguments: Sequence[str]) -> tuple[presets.Preset | None, list[str]]:
    """The preset that ``--preset NAME`` names, if any; and the other arguments."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    given, rest = parser.parse_known_args(arguments)
    if given.preset is None:
        return None, list(arguments)
    preset = presets.find(given.preset)
    if rest and not rest[0].startswith("-"):
        raise UserError(f"--preset {given.preset} says what to train; got {rest[0]!r} as well")
    return preset, rest


def _sweeps(config: type, texts: Sequence[str]) -> dict[str, list[Any]]:
    sweep: dict[str, list[Any]] = {}
    for text in texts:
        name, values = _sweep(config, text)
        if name in sweep:
            raise UserError(f"--sweep {name}: given twice, expected all its values at once, --sweep {name}=V,V,...")
        sweep[name] = values
    return sweep


def _sweep(config: type, text: str) -> tuple[str, list[Any]]:
    name, equals, values = text.partition("=")
    name = name.replace("-", "_")
    kinds = {s.name: s.type for s in cfg.settings(config) if s.sweep}
    if name not in kinds:
        raise UserError(
            f"--sweep {text}: expected FIELD=V,V,... of a field that may be swept{cfg.suggestion(name, kinds)}"
        )
    if not equals or not values:
        raise UserError(f"--sweep {text}: expected FIELD=V,V,..., got no values; {name}=V1,V2 for example")
    return name, [cfg.parse(f"--sweep {name}", kinds[name], value) for value in values.split(",")]


def classic(arguments: Sequence[str]) -> None:
    from marl import classic_cli

    classic_cli.classic(arguments)


def resume(arguments: Sequence[str]) -> None:
    from marl import classic_cli

    parser = make_parser("resume", "Go on with a run from its last checkpoint, bit for bit.", [("RUN", "its folder")])
    parser.add_argument("--steps", type=reader("steps", int), help="A new end, environment steps per member.")
    parser.add_argument("--address", metavar="HOST:PORT", help="Another Ray cluster than the one that it began on.")
    classic_cli.add_workers(parser)
    parser.add_argument("--json", action="store_true", help="Print the result as one JSON object.")
    parser.add_argument("--quiet", action="store_true", help="No progress bar.")
    given = parser.parse(arguments)
    if _is_experiment(Path(given.run)):
        if given.steps is not None:
            raise UserError(f"{given.run} is a run of an experiment, which has no --steps; its options are fixed")
        classic_cli.resume(Path(given.run), given.workers, not given.quiet, given.json, given.address)
        return
    if given.workers is not None:
        raise UserError(f"{given.run} is a run of marl train, which goes on with the --workers that it began with")
    from marl import api

    _finish(api.resume(given.run, steps=given.steps, address=given.address, progress=not given.quiet), given.json)


def _is_experiment(folder: Path) -> bool:
    return "experiment" in read_config(folder)


def _finish(folder: Path, as_json: bool) -> None:
    """What ``train`` and ``resume`` end with: before and after, and where everything lies."""
    from marl.summary import changes

    rows = changes(folder)
    if as_json:
        print_json({"run": str(folder), "members": [row._asdict() for row in rows]})
        return
    for row in rows:
        print(row.text())
    print(f"watch: {watch_command(folder)}")
    print(f"run: {folder}")


def evaluate(arguments: Sequence[str]) -> None:
    parser = make_parser("evaluate", "Play a run's newest policies without exploration.", [("RUN", "its folder")])
    parser.add_argument(
        "--episodes", type=reader("episodes", int), default=100, metavar="N", help="Episodes per member. Default: 100."
    )
    parser.add_argument(
        "--video",
        nargs="?",
        const=True,
        metavar="MP4",
        help="Film the first episodes. Default: video.mp4 in RUN.",
    )
    parser.add_argument("--member", help="Which member to film, its number or name. Default: 0.")
    parser.add_argument("--task", metavar="ID", help="Of marl lifelong: play this task alone. Default: all.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    parser.add_argument("--quiet", action="store_true", help="No progress bar.")
    given = parser.parse(arguments)
    video = Path(given.run) / "video.mp4" if given.video is True else given.video and Path(given.video)
    if given.video == "":
        raise UserError("--video: expected a file whose name ends in .mp4, got ''")
    if lifelong_cli.is_lifelong(Path(given.run)):
        if given.member is not None:
            raise UserError("--member: lifelong agents are no members of a population; agent 0 is filmed")
        if video is not None:
            check_target(video, ".mp4")
        lifelong_cli.evaluate(Path(given.run), given.episodes, video, given.task, given.json, not given.quiet)
        return
    if given.task is not None:
        raise UserError(f"--task: {given.run} is no run of marl lifelong, and has one environment")
    from marl import api
    from marl.evaluation import NotFilmed

    member, failure = api.member_number(given.run, given.member or "0", "--member"), None
    try:
        result = api.evaluate(given.run, given.episodes, video, member, not given.quiet)
    except NotFilmed as error:
        result, failure = error.result, error
    _print_scores(result, given.json)
    if failure is not None:
        raise failure
    if video is not None and not given.json:
        print(f"video: {video}")


def _print_scores(result: Mapping[str, Any], as_json: bool) -> None:
    """What ``marl.api.evaluate`` returns, as one JSON object or for people."""
    from marl.stats import t_quantile

    if as_json:
        print_json(result)
        return
    for row in result["members"]:
        margin = row["standard_error"] and t_quantile(0.975, result["episodes"] - 1) * row["standard_error"]
        interval = "" if margin is None else f" +- {margin:.3f} (95 % interval)"
        outcomes = "".join(f", {name} {value:.3f}" for name, value in row["outcomes"].items())
        print(f"{row['name']}: {row['mean']:.3f}{interval} {row['unit']}, {result['episodes']} episodes{outcomes}")


def export(arguments: Sequence[str]) -> None:
    from marl.api import member_number
    from marl.export import FORMATS, export

    about = "Write one agent's newest policy as a file that runs without marl."
    parser = make_parser("export", about, [("RUN", "its folder")])
    parser.add_argument("--agent", help="Its name or number. Default: the only one.")
    parser.add_argument("--member", default="0", help="Which member of the population, its number or name. Default: 0.")
    parser.add_argument("--out", metavar="FOLDER", help="Default: export/MEMBER-AGENT in RUN.")
    parser.add_argument("--format", type=reader("format", Literal[tuple(FORMATS)]), default="safetensors",
                        metavar="|".join(FORMATS), help="Default: safetensors.")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    given = parser.parse(arguments)
    member = member_number(given.run, given.member, "--member")
    done = export(Path(given.run), given.agent, member, given.out, given.format)
    if given.json:
        print_json({"folder": str(done.folder), "files": done.files, "script": done.script})
        return
    print(f"# to run it, in {done.folder}:", done.script, sep="\n", end="")
    print("exported:", *(done.folder / file for file in done.files))


def list_(arguments: Sequence[str]) -> None:
    parser = make_parser("list", "What there is to train, and where.", [])
    parser.add_argument("--presets", action="store_true", help="The runs that `marl train --preset NAME` knows.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    given = parser.parse(arguments)
    if given.presets:
        if given.json:
            print_json({"presets": {name: preset.to_json() for name, preset in presets.PRESETS.items()}})
            return
        for name, preset in presets.PRESETS.items():
            print(f"{name}: {preset.about}", f"  {preset.command()}", sep="\n")
        return
    from marl.envs import list_environments

    found = {"algorithms": sorted(registry.ALGORITHMS), "environments": list_environments()}
    if given.json:
        print_json(found)
        return
    for kind, names in found.items():
        print(f"{kind}:", *names, sep="\n  ")
    print("experiments: marl classic --list; lifelong agents: marl lifelong --help")
    print(
        "also: gym/ANY-GYMNASIUM-ID, pettingzoo/ANY-PETTINGZOO-ID, pettingzoo/ANY.PARALLEL.MODULE, mujoco/ANY-MUJOCO-ID"
    )


def plot(arguments: Sequence[str]) -> None:
    parser = make_parser("plot", PLOT_HELP, [])
    parser.usage = "marl plot RUN [RUN ...] [options]"
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folders")
    parser.add_argument("--out", type=Path, metavar="PNG", help="Default: curves.png in the first run's folder.")
    parser.add_argument("--metric", help="A metric of the log of marl train. Default: eval/return_mean.")
    parser.add_argument("--json", action="store_true", help="Print the table as one JSON object.")
    given = parser.parse(arguments)
    out = given.out or given.runs[0] / "curves.png"
    if lifelong_cli.all_lifelong(given.runs):
        if given.metric is not None:
            raise UserError("--metric: runs of marl lifelong are drawn with their own measures")
        lifelong_cli.plot(given.runs, out, given.json)
        return
    from marl.plot import plot as draw

    curves = draw(given.runs, out, given.metric or "eval/return_mean")
    if given.json:
        print_json({"picture": str(curves.path), "groups": [row._asdict() for row in curves.table]})
        return
    for row in curves.table:
        interval = "" if math.isnan(row.low) else f" [{row.low:.2f}, {row.high:.2f}]"
        print(f"{row.group}: {row.estimate:.2f}{interval} {row.unit}, seeds: {row.n}, step {row.step}")
    print(f"picture: {curves.path}")


def doctor(arguments: Sequence[str]) -> None:
    parser = make_parser("doctor", "Versions, optional parts, what is missing and how to get it.", [])
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    given = parser.parse(arguments)
    from marl.doctor import print_report, report

    if given.json:
        print_json(report())
    else:
        print_report(report())


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "train": (train, "train a population from scratch"),
    "classic": (classic, "run an experiment with a tabular or linear method"),
    "lifelong": (lifelong_cli.lifelong, "agents that learn task after task and share what they learn"),
    "resume": (resume, "go on with a run from its last checkpoint"),
    "evaluate": (evaluate, "play a run's newest policies, film them"),
    "export": (export, "one agent's policy as a file that runs without marl"),
    "list": (list_, "what there is to train, and where"),
    "plot": (plot, "learning curves of runs"),
    "doctor": (doctor, "versions, optional parts, what is missing"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: marl COMMAND ...\n\n" + "\n".join(f"  {name:10} {text}" for name, (_, text) in COMMANDS.items()))
        print("\n`marl COMMAND --help` explains each.")
        return 0 if arguments else 2
    try:
        if arguments[0] not in COMMANDS:
            raise UserError(f"no command {arguments[0]!r}{cfg.suggestion(arguments[0], COMMANDS)}")
        keep_memory()
        COMMANDS[arguments[0]][0](arguments[1:])
    except UserError as error:
        print(f"marl: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if (reason := _out_of_memory(error)) is None:
            raise
        print(f"marl: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"marl: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, ``head`` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _out_of_memory(error: Exception) -> str | None:
    """One line for an array that there is no room for; None for another error."""
    text = " ".join(str(error).split())
    asked = re.search(r"(?:tried to allocate|Out of memory allocating) (\d+) bytes", text)
    if asked is None and not isinstance(error, MemoryError):
        return None
    what = f"{size(int(asked[1]))} at once" if asked else text or "more than there is"
    return f"out of memory: asked for {what}; a smaller population, --copies, --buffer-size or --episodes needs less"


if __name__ == "__main__":
    sys.exit(main())
