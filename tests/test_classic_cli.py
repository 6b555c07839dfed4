"""``marl classic``: what it prints and refuses, and that a run that was killed ends as one that never was."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marl.classic import experiments
from marl.classic.experiments.base import Row
from marl.classic.results import FORMAT, SeedLog, merge
from marl.cli import main
from marl.config import to_json
from marl.lifelong.findings import METRICS
from marl.lifelong.options import LifelongOptions
from marl.runfolder import lock, read_config, write_config

TOY = Path(__file__).parent / "classic" / "toy_experiment.py"
FILES = ("results.csv", "findings.csv", "toy.png")


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
    """The toy is in the list, and no run of this file lands in the source tree."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(TOY.parent)
    entry = experiments.Entry("toy_experiment", "Toy", "a random walk with drift")
    monkeypatch.setitem(experiments.EXPERIMENTS, "toy", entry)


def out(capsys, *arguments):
    """What ``marl ARGUMENTS`` prints on stdout; nothing may come on stderr."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    return printed


def refused(capsys, *arguments):
    """The one line that ``marl ARGUMENTS`` answers to input that it cannot work with."""
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    printed, errors = capsys.readouterr()
    assert (code, printed, errors.count("\n")) == (2, "", 1), errors
    return errors.removeprefix("marl: ").rstrip("\n")


def results(folder):
    return [(Path(folder) / name).read_bytes() for name in FILES]


LONG = ("classic", "toy", "--seeds", "0", "1", "2", "--pause", "0.02", "--run", "r")


def start(*words, **options):
    """``marl WORDS`` in a process, and a process group, of its own."""
    return subprocess.Popen(
        [sys.executable, str(TOY), *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What a run that nobody stops writes."""
    folder = tmp_path_factory.mktemp("straight")
    process = start(*LONG, "--quiet", cwd=folder)
    assert process.wait(60) == 0, process.stderr.read()
    return folder / "r"


@pytest.fixture
def done(straight):
    """A copy of it to do harm to."""
    return Path(shutil.copytree(straight, "r"))


# ---- what it prints -----------------------------------------------------------------------------------------------


def test_the_list_has_a_line_for_each_experiment(capsys):
    lines = out(capsys, "classic", "--list").splitlines()
    assert lines == [f"{name}: {entry.about}" for name, entry in experiments.EXPERIMENTS.items()]
    assert "toy: a random walk with drift" in lines
    found = json.loads(out(capsys, "classic", "--list", "--json"))
    assert found["experiments"]["toy"] == "a random walk with drift" and len(found["experiments"]) == len(lines)


def test_a_run_ends_with_its_findings_its_picture_and_its_folder(capsys):
    lines = out(capsys, "classic", "toy", "--seeds", 0, 1, 2, "--run", "here", "--quiet").splitlines()
    table = [line.split(",") for line in Path("here/results.csv").read_text().splitlines()]
    ends = [float(row[5]) for row in table if row[1:3] == ["a", "place"] and row[4] == "20"]
    assert len(ends) == 3 and lines[0].startswith(f"end of a: {sum(ends) / 3:.4g} [") and "metres, seeds: 3" in lines[0]
    assert lines[1].startswith("end of b: ")
    assert lines[2:] == ["picture: here/toy.png", "watch: tensorboard --logdir here/tensorboard", "run: here"]
    assert sorted(p.name for p in Path("here").iterdir() if p.name != ".lock") == [
        *("config.json", "findings.csv", "results.csv", "seeds", "tensorboard", "toy.png")
    ]


def test_in_json_it_is_one_object_in_which_what_is_unknown_is_null(capsys):
    result = json.loads(out(capsys, "classic", "toy", "--seeds", 0, 1, "--run", "r", "--quiet", "--json"))
    assert result["run"] == "r" and [row["name"] for row in result["findings"]] == ["end of a", "end of b"]
    assert result["findings"][0].keys() == {"name", "mean", "low", "high", "unit", "seeds"}
    alone = json.loads(out(capsys, "classic", "toy", "--seeds", 0, "--run", "s", "--quiet", "--json"))
    assert alone["findings"][0]["low"] is None and alone["findings"][0]["seeds"] == 1
    assert "[" not in out(capsys, "resume", "s", "--quiet")


def test_every_option_reaches_the_run_and_the_command_is_kept_as_typed(capsys):
    words = [
        "classic",
        "toy",
        "--seeds",
        "4",
        "2",
        "--steps=7",
        "--drift",
        "-.25",
        "--trouble",
        "no ne",
        "--workers",
        1,
    ]
    out(capsys, *words, "--run", "r", "--quiet")
    config = read_config(Path("r"))
    assert config["options"] == {"steps": 7, "drift": -0.25, "pause": 0.0, "spin": 0.0, "trouble": "no ne"}
    assert (config["experiment"], config["seeds"], config["format"]) == ("toy", [4, 2], 1)
    assert config["command"] == (
        "marl classic toy --seeds 4 2 --steps=7 --drift -.25 --trouble 'no ne' --workers 1 --run r --quiet"
    )
    assert config["versions"]["numpy"] and config["versions"]["numba"]


def test_without_a_folder_the_run_is_named_by_experiment_and_time_and_has_five_seeds(capsys):
    last = out(capsys, "classic", "toy", "--steps", 1, "--quiet").splitlines()[-1]
    assert last.startswith("run: runs/classic-toy-20") and read_config(Path(last[5:]))["seeds"] == [0, 1, 2, 3, 4]


def test_the_bar_counts_the_steps_of_all_seeds_in_their_unit(capsys):
    assert main(["classic", "toy", "--seeds", "0", "1", "2", "--run", "r"]) == 0
    last = capsys.readouterr().err.rsplit("\r", 1)[-1]
    assert "60/60" in last and "steps" in last


def page(capsys, *arguments):
    try:
        assert main([*arguments]) == 0
    except SystemExit as end:
        assert end.code == 0
    return capsys.readouterr().out


def test_the_pages_name_every_option_with_its_default(capsys):
    text = page(capsys, "classic", "toy", "--help")
    assert all(word in text for word in ("--drift float", "Mean of a step. Default: 0.5.", "--seeds", "--workers"))
    assert "toy: a random walk with drift." in text
    assert "marl classic --list" in page(capsys, "classic", "--help")
    assert "--workers" in page(capsys, "resume", "--help")


def test_neither_the_list_nor_a_run_imports_torch(tmp_path):
    code = "import sys, toy_experiment; sys.exit(toy_experiment.main() or 'torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(TOY.parent)}
    for words in (["--list"], ["toy", "--seeds", "0", "--steps", "2", "--run", "r", "--quiet"]):
        command = [sys.executable, "-c", code, "classic", *words]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    assert (tmp_path / "r" / "toy.png").exists()


# ---- what it refuses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "expected: marl classic NAME [options], or marl classic --list"),
        (["--quiet"], "expected: marl classic NAME [options], or marl classic --list"),
        (["ty"], "no experiment 'ty'; did you mean 'toy'?"),
        (["toy", "--drif", "1"], "unknown argument '--drif'; did you mean '--drift'?"),
        (["toy", "--steps", "many"], "--steps: expected int, got 'many'"),
        (["toy", "--steps", "0"], "steps: expected 1 or more, got 0"),
        (["toy", "--drift", "2"], "drift: expected a number from -1 to 1, got 2.0"),
        (["toy", "--drift", "nan"], "drift: expected a number from -1 to 1, got nan"),
        (["toy", "--steps", "13"], "steps: 13 brings bad luck, expected another number"),
        (["toy", "--seeds", "1", "2", "1"], "seeds: expected different numbers from 0 on, got 1 2 1"),
        (["toy", "--seeds", "-1"], "seeds: expected different numbers from 0 on, got -1"),
        (["toy", "--workers", "0"], "--workers: expected 1 or more, got 0"),
        (["toy", "more"], "unknown argument 'more'"),
    ],
)
def test_words_that_make_no_sense_are_one_line_and_leave_no_folder(words, said, capsys, tmp_path):
    assert refused(capsys, "classic", *words) == said
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_never_overwritten_and_never_shared(done, capsys):
    before = results(done)
    assert refused(capsys, "classic", "toy", "--run", "r") == ("r already holds a run; to go on with it: marl resume r")
    with lock(done):
        assert refused(capsys, "resume", "r") == f"run folder r is in use by process {os.getpid()}"
    assert results(done) == before


def test_commands_for_trained_policies_say_what_to_do_instead(done, capsys):
    said = (
        "r is a run of the experiment toy, expected one of marl train; its numbers are in r/results.csv; "
        "marl resume r goes on with it and draws its picture"
    )
    assert refused(capsys, "evaluate", "r") == said
    assert refused(capsys, "evaluate", "r", "--member", "x", "--video") == said
    assert refused(capsys, "plot", "r") == said
    assert refused(capsys, "resume", "r", "--steps", 5) == (
        "r is a run of an experiment, which has no --steps; its options are fixed"
    )


def test_a_run_of_train_has_workers_of_its_own(run, capsys):
    assert refused(capsys, "resume", run, "--workers", 2) == (
        f"{run} is a run of marl train, which goes on with the --workers that it began with"
    )


@pytest.mark.parametrize(
    "change, said",
    [
        ({"format": 2}, "expected format 1, got 2"),
        ({"experiment": "ty"}, "no experiment 'ty'; did you mean 'toy'?"),
        ({"options": {"stps": 3}}, "no setting 'stps' in ToyOptions; did you mean 'steps'?"),
        ({"options": {"steps": "3"}}, "steps: expected int, got '3'"),
        ({"options": {"steps": -3}}, "steps: expected 1 or more, got -3"),
        ({"options": 3}, "is damaged: "),
        ({"seeds": None}, "is damaged: "),
        ({"seeds": ["x"]}, "is damaged: "),
        ({"seeds": []}, "seeds: expected different numbers from 0 on"),
    ],
)
def test_a_damaged_configuration_is_one_line(change, said, done, capsys):
    config = read_config(done)
    (done / "config.json").write_text(json.dumps(config | change))
    assert said in refused(capsys, "resume", "r")


# ---- stop, kill, resume -------------------------------------------------------------------------------------------


def wait_for_rows(process, count, folder=Path("r")):
    end = time.monotonic() + 60
    while sum(path.read_bytes().count(b"\n") for path in folder.glob("seeds/*.csv")) < count:
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(0.002)


def children(process):
    """The processes in its group, which lives on when it dies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(group) == process.pid and state != "Z":
            found.append(int(path.parent.name))
    return [pid for pid in found if pid != process.pid]


def same_numbers(straight):
    return [(Path("r") / name).read_bytes() == (straight / name).read_bytes() for name in FILES[:2]] == [True, True]


def test_a_killed_run_leaves_no_process_and_goes_on_to_the_same_bits(straight, capsys):
    words = (*LONG, "--workers", "2", "--quiet")
    for i in range(3):
        process = start(*words)
        wait_for_rows(process, random.randrange(10, 60) if i == 0 else 1)
        time.sleep(random.uniform(0.05, 0.4))
        process.kill()
        process.wait()
        end = time.monotonic() + 0.5
        while (left := children(process)) and time.monotonic() < end:
            time.sleep(0.01)
        assert left == []
        words = ("resume", "r", "--quiet", "--workers", str(i + 1))
    out(capsys, "resume", "r", "--quiet", "--workers", 3)
    assert same_numbers(straight)
    assert not list(Path("r/seeds").glob("*.tmp"))


def test_a_process_in_the_middle_of_its_work_dies_with_its_parent(capsys):
    process = start("classic", "toy", "--seeds", "0", "--spin", "5", "--run", "r")
    end = time.monotonic() + 30
    while not Path("r/seeds/0.csv").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.wait()
    time.sleep(0.3)
    assert children(process) == []


@pytest.mark.parametrize("number, all_of_them", [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, True)])
def test_a_stop_request_saves_says_so_in_one_line_and_exits_with_130(number, all_of_them, straight, capsys):
    process = start(*LONG, "--quiet")
    wait_for_rows(process, 12)
    (os.killpg if all_of_them else os.kill)(process.pid, number)  # Ctrl-C reaches the whole group
    assert process.wait(20) == 130
    assert process.stderr.read() == "marl: stopped, everything saved; go on with: marl resume r\n"
    assert not Path("r/results.csv").exists()
    out(capsys, "resume", "r", "--quiet")
    assert same_numbers(straight)


def test_a_stop_request_while_the_processes_start_is_no_different():
    longer = [word.replace("0.02", "0.2") for word in LONG]  # not over before the request, however busy the machine
    process = start(*longer, "--quiet")
    while not Path("r/config.json").exists():
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.2))
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(20) == 130
    assert process.stderr.read() in (
        "marl: stopped, everything saved; go on with: marl resume r\n",
        "marl: interrupted\n",  # before the first process was started
    )


def test_resuming_a_finished_run_draws_it_again_and_runs_nothing(done, capsys, monkeypatch):
    before = results(done)
    (done / "toy.png").unlink()
    monkeypatch.setattr("marl.classic_cli.run", None)  # would be called
    assert "run: r" in out(capsys, "resume", "r")
    assert results(done) == before


def test_a_finished_run_whose_table_was_cut_says_so_and_makes_it_again(done, capsys):
    before = results(done)
    table = done / "results.csv"
    table.write_bytes(b"".join(table.read_bytes().splitlines(keepends=True)[:20]))
    damaged = "r/results.csv is damaged; delete it, and marl resume r makes it again"
    assert refused(capsys, "resume", "r") == damaged
    table.unlink()
    out(capsys, "resume", "r", "--quiet")
    assert results(done) == before


def test_a_lifelong_run_whose_table_was_cut_says_so(capsys):
    """Of its two rows, one is lost, which says what a random policy earns."""
    options = LifelongOptions(tasks=("small/catch", "small/gather"))
    config = {"format": FORMAT, "experiment": "lifelong", "options": to_json(options), "seeds": [0]}
    Path("r").mkdir()
    write_config(Path("r"), config)
    log = SeedLog(Path("r"), 0, METRICS)
    log.write([Row("random: gather", "agent_return", 0, 1.0), Row("random: catch", "agent_return", 0, 1.0)])
    log.close()
    merge(Path("r"), [0])
    table = Path("r/results.csv")
    table.write_bytes(b"".join(table.read_bytes().splitlines(keepends=True)[:2]))
    damaged = "r/results.csv is damaged; delete it, and marl resume r makes it again"
    assert refused(capsys, "plot", "r") == refused(capsys, "resume", "r") == damaged


def test_a_failed_seed_is_one_line_on_a_clean_screen_and_can_be_mended(capsys):
    line = refused(capsys, "classic", "toy", "--seeds", 0, 1, "--trouble", "raise", "--run", "r", "--quiet")
    assert line.startswith("seed 1: ZeroDivisionError: the toy broke") and line.endswith("marl resume r")
    config = read_config(Path("r"))
    Path("r/config.json").write_text(json.dumps(config | {"options": config["options"] | {"trouble": "none"}}))
    assert "seeds: 2" in out(capsys, "resume", "r", "--quiet")


def test_a_file_that_may_not_grow_ends_the_run_in_one_line_and_loses_nothing(straight, capsys):
    def limit():  # config.json and a checkpoint fit, twenty steps of rows do not
        resource.setrlimit(resource.RLIMIT_FSIZE, (1700, 1700))

    process = start(*LONG, "--quiet", preexec_fn=limit)
    assert process.wait(60) == 2
    (line,) = process.stderr.read().splitlines()
    assert line.startswith("marl: seed 0 (and 2 more): r: File too large")
    assert "the last rows of seed 0 were not recorded; to go on with what is saved: marl resume r" in line
    out(capsys, "resume", "r", "--quiet")
    assert same_numbers(straight)
