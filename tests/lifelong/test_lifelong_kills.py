"""Real runs of ``marl lifelong`` whose processes are killed at random moments: nothing that was shared is lost."""

import contextlib
import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marl.engines import make_engine
from marl.lifelong.agent import Plan, Team
from marl.lifelong.hub import Hub
from marl.lifelong.options import LifelongOptions
from marl.lifelong.tasks import Tasks

TASKS = "small/catch,small/gather"
SETTINGS = {
    "agents": 2,
    "frames": 1200,
    "copies": 4,
    "identify": "told",
    "ewc-samples": 4,
    "evals": 2,
    "eval-episodes": 2,
    "dqn.hidden": 16,
    "dqn.conv": "small",
    "dqn.warmup": 40,
    "env.max-steps": 20,
    "seeds": 3,
}
ENGINES = {
    "local": [],
    "processes": ["--engine", "processes", "--workers", "2"],
    "ray": ["--engine", "ray", "--workers", "2"],
}


def start(*arguments):
    words = [sys.executable, "-m", "marl.cli", *map(str, arguments), "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def begin(folder, engine):
    options = [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]
    return start("lifelong", TASKS, *options, *ENGINES[engine], "--run", folder)


def finish(process):
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return err


def measured(folder):
    """Every row but those of the traffic: what is shared twice, since a process died in between, travels twice."""
    with (folder / "results.csv").open() as file:
        return sorted(tuple(row.values()) for row in csv.DictReader(file) if "traffic" not in row["metric"])


def assert_all_is_shared(folder):
    with Hub(folder / "seeds" / "3" / "shared" / "hub", 0.5) as hub:
        assert len(hub) == 2
        assert all(hub.fetch(task, "judge").transitions is not None for task in (1, 2))


def descendants(pid):
    """Processes below that one, with their command lines."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            try:
                found.append((child, Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()))
                found += descendants(child)
            except OSError:
                continue
    return found


def is_agent(pid, command):
    return "spawn_main" in command or ("ray::RayHost" in command and not is_hub(pid, command))


def is_hub(pid, command):
    """The process of the hub has its index open."""
    if "ray::RayHost" not in command:
        return False
    return any("index.sqlite" in os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir())


def kill_one(process, sort, moment, rng):
    """SIGKILL to one of the processes of that sort, that many seconds after the first of them is there."""

    def there():
        with contextlib.suppress(OSError):
            return [pid for pid, command in descendants(process.pid) if sort(pid, command)]

    until = time.monotonic() + 120
    while not (found := there()):
        assert time.monotonic() < until and process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(moment)
    victim = rng.choice(there() or found)
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return victim


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The measured rows of a run with two workers that nothing befell, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    began = time.monotonic()
    finish(begin(folder, "processes"))
    return measured(folder), time.monotonic() - began


def test_agents_killed_at_random_moments_cost_time_and_nothing_else(tmp_path, straight):
    rows, seconds = straight
    rng = random.Random(1)
    said = ""
    for trial in range(3):
        process = begin(tmp_path / str(trial), "processes")
        kill_one(process, is_agent, rng.uniform(0.3, 0.8) * seconds, rng)
        said += finish(process)
        assert measured(tmp_path / str(trial)) == rows
        assert_all_is_shared(tmp_path / str(trial))
    assert "died; they begin where they were last saved" in said


@pytest.mark.parametrize("engine", ["local", "processes"])
def test_a_driver_killed_at_random_moments_goes_on_to_the_same_numbers(tmp_path, straight, engine):
    rows, seconds = straight
    rng = random.Random(2)
    process = begin(tmp_path / "run", engine)
    for _ in range(3):
        time.sleep(rng.uniform(0.3, 0.8) * seconds)
        below = [pid for pid, _ in descendants(process.pid)]
        process.kill()
        process.communicate()
        until = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in below):
            assert time.monotonic() < until, "a process outlived its parent"
            time.sleep(0.05)
        begun = (tmp_path / "run" / "config.json").exists()
        process = start("resume", tmp_path / "run") if begun else begin(tmp_path / "run", engine)
    finish(process)
    assert_all_is_shared(tmp_path / "run")
    if engine == "processes":
        assert measured(tmp_path / "run") == rows
    else:  # its agents are stacked, and so rounded otherwise
        assert [row[:4] for row in measured(tmp_path / "run")] != []


@pytest.mark.ray
def test_on_ray_agents_and_the_hub_killed_at_random_moments_cost_time_and_nothing_else(tmp_path, straight):
    rows, seconds = straight
    rng = random.Random(3)
    for trial, sort in enumerate([is_agent, is_hub]):
        process = begin(tmp_path / str(trial), "ray")
        assert kill_one(process, sort, rng.uniform(0.0, 0.2) * seconds, rng) is not None
        finish(process)
        assert measured(tmp_path / str(trial)) == rows
        assert_all_is_shared(tmp_path / str(trial))


@pytest.mark.ray
def test_on_ray_a_killed_driver_goes_on_to_the_same_numbers(tmp_path, straight):
    rows, seconds = straight
    process = begin(tmp_path / "run", "ray")
    until = time.monotonic() + 120
    while not (tmp_path / "run" / "seeds" / "3.csv").exists():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    time.sleep(random.Random(4).uniform(0.2, 0.5) * seconds)
    process.kill()
    process.communicate()
    finish(start("resume", tmp_path / "run"))
    assert measured(tmp_path / "run") == rows


def test_a_flipped_bit_in_the_hub_is_refused_and_the_task_learnt_anew(tmp_path, caplog):
    options = LifelongOptions(
        tasks=tuple(TASKS.split(",")), frames=96, copies=4, identify="told", ewc_samples=4, evals=1, eval_episodes=2
    )
    tasks = Tasks.of(options.tasks, {"max_steps": 8})
    team = Team(options, 0, tasks, Plan("team", 2, True, 0.0), tmp_path / "team", make_engine("local"))
    team.sequence.table[:] = 0  # both agents meet the same task in both rounds
    while team.sequence.round < 1:
        team.advance()
    replay = next(path for path in (tmp_path / "team" / "hub" / "tensors").iterdir() if "-replay-" in path.name)
    damaged = bytearray(replay.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    replay.write_bytes(damaged)
    rows = []
    while team.done < team.total:
        rows += team.advance()
    frames = [row.value for row in rows if row.metric == "frames"]
    assert frames[-1] == 2 * 96 * 2  # both played it, in the second round too
    said = " ".join(caplog.messages)
    assert "is damaged or gone; what" in said and "learns it anew" in said
    assert team.hub.fetch(1, "judge").transitions is not None  # it is there again
