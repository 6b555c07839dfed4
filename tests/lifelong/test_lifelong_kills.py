"""Real runs of ``marl lifelong`` whose processes are killed at random moments: nothing that was shared is lost."""

import contextlib
import csv
import os
import random
import signal
import time
from pathlib import Path

import pytest
from run_tools import Marl

from marl.engines import make_engine
from marl.lifelong.agent import Plan, Team
from marl.lifelong.hub import Hub
from marl.lifelong.options import LifelongOptions
from marl.lifelong.tasks import Tasks

TASKS = "small/catch,small/gather"
SETTINGS = {
    "agents": 2,
    "frames": 800,
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


def begin(folder, engine, log):
    options = [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]
    return Marl("lifelong", TASKS, *options, *ENGINES[engine], "--quiet", "--run", folder, log=log)


def resume(folder, log):
    return Marl("resume", folder, "--quiet", log=log)


def finish(process):
    assert process.wait(300) == 0, process.err
    return process.err


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
        assert time.monotonic() < until and process.poll() is None, process.err
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
    folder = tmp_path_factory.mktemp("straight")
    began = time.monotonic()
    finish(begin(folder / "run", "processes", folder / "log"))
    return measured(folder / "run"), time.monotonic() - began


def test_agents_killed_at_random_moments_cost_time_and_nothing_else(tmp_path, straight):
    rows, seconds = straight
    rng = random.Random(1)
    process = begin(tmp_path / "run", "processes", tmp_path / "log")
    for _ in range(3):
        kill_one(process, is_agent, rng.uniform(0.2, 0.4) * seconds, rng)
    assert "died; they begin where they were last saved" in finish(process)
    assert measured(tmp_path / "run") == rows
    assert_all_is_shared(tmp_path / "run")


@pytest.mark.parametrize("engine", ["local", "processes"])
def test_a_driver_killed_at_random_moments_goes_on_to_the_same_numbers(tmp_path, straight, engine):
    rows, seconds = straight
    rng = random.Random(2)
    process = begin(tmp_path / "run", engine, tmp_path / "log")
    for _ in range(2):
        time.sleep(rng.uniform(0.3, 0.8) * seconds)
        below = [pid for pid, _ in descendants(process.pid)]
        process.kill()
        process.wait()
        until = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in below):
            assert time.monotonic() < until, "a process outlived its parent"
            time.sleep(0.05)
        begun = (tmp_path / "run" / "config.json").exists()
        process = (
            resume(tmp_path / "run", tmp_path / "log") if begun else begin(tmp_path / "run", engine, tmp_path / "log")
        )
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
    process = begin(tmp_path / "run", "ray", tmp_path / "log")
    for sort in (is_agent, is_hub):
        assert kill_one(process, sort, rng.uniform(0.0, 0.2) * seconds, rng) is not None
    finish(process)
    assert measured(tmp_path / "run") == rows
    assert_all_is_shared(tmp_path / "run")


@pytest.mark.ray
def test_on_ray_a_killed_driver_goes_on_to_the_same_numbers(tmp_path, straight):
    rows, seconds = straight
    process = begin(tmp_path / "run", "ray", tmp_path / "log")
    until = time.monotonic() + 120
    while not (tmp_path / "run" / "seeds" / "3.csv").exists():
        assert time.monotonic() < until and process.poll() is None, process.err
        time.sleep(0.05)
    time.sleep(random.Random(4).uniform(0.2, 0.5) * seconds)
    process.kill()
    process.wait()
    finish(resume(tmp_path / "run", tmp_path / "log"))
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
