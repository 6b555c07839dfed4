"""A population that workers share is the same run: each part's numbers, the whole folder, and what it survives."""

import importlib
import os
import signal
import sys
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_tools import SMALL, Marl, differences, last_step, metrics, refused, run_marl

from marl import api, parts, registry
from marl.checkpoint import Checkpoints
from marl.cli import main
from marl.engines import Gone
from marl.recipe import make_recipe
from marl.runfolder import lock, read_config, write_config
from marl.summary import changes
from marl.types import UserError

KAPPAS = ("0.2", "0.5")
TASK = ("train", "maddpg", "probe/team", *SMALL, "--seeds", "0", "1", "--steps", "200")
WHOLE = (*TASK, "--sweep", f"reciprocity.kappa={','.join(KAPPAS)}")
SHARED = (*WHOLE, "--engine", "processes", "--workers", "2")
FEW = {
    **{"hidden": (4,), "batch_size": 4, "warmup": 8, "buffer_size": 100},
    **{"eval_every": 0, "log_every": 10, "threads": 1},
}
NAMES = ["kappa=0.2,seed=0", "kappa=0.2,seed=1", "kappa=0.5,seed=0", "kappa=0.5,seed=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with ``shared``, of which a worker was killed in the middle; ``whole``, the same in one process; and
    ``own0``, ``own1``: each part by itself."""
    folder = tmp_path_factory.mktemp("made")
    part = folder / "shared" / "parts" / "1"
    process = Marl(*SHARED, "--run", folder / "shared", log=folder / "shared-log")
    until(lambda: last_step(part) >= 60, process)
    os.kill(int((part / ".lock").read_text()), signal.SIGKILL)
    assert process.wait() == 0, process.err
    run_marl(*WHOLE, "--run", folder / "whole", log=folder / "log")
    for k, kappa in enumerate(KAPPAS):
        run_marl(*TASK, "--sweep", f"reciprocity.kappa={kappa}", "--run", folder / f"own{k}", log=folder / "log")
    return folder


def until(condition, process):
    """Wait for it while the process runs."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end and process.poll() is None, process.err
        time.sleep(0.01)


def same_as_own(run, made):
    """Whether every part of a run has the bits of a run of its members by themselves."""
    return [differences(run / "parts" / str(part), made / f"own{part}") for part in range(2)] == [[], []]


def small(run, algorithm="maddpg", **settings):
    """A shared training in this process that takes a moment."""
    given = {"seeds": [0, 1, 2], "steps": 30, "engine": "processes", "workers": 3, "checkpoint_every": 10, **settings}
    return api.train(algorithm, "probe/team", run=run, **FEW, **given)


class Here:
    """An engine in this process. ``dies(part, n)`` says whether the worker dies in the n-th call to that part."""

    name = "processes"

    def __init__(self, capacity=3, dies=lambda part, n: False, before=lambda part: None):
        self.capacity, self.dies, self.before = capacity, dies, before
        self.placed, self.asked, self.living, self.most = [], {}, 0, 0

    def place(self, kind, *arguments):
        self.placed.append(arguments[2])
        self.living += 1
        self.most = max(self.most, self.living)
        return HereWorker(self, kind, arguments)

    def wait(self, calls, seconds):
        return list(calls)

    def close(self):
        pass


class HereWorker:
    def __init__(self, engine, kind, arguments):
        self.engine, self.kind, self.arguments, self.object = engine, kind, arguments, None

    def call(self, method, *arguments):
        return HereCall(self, method, arguments)

    def kill(self):
        self.engine.living -= 1
        if self.object is not None:
            self.object.loop.close()  # as the process's end would, which frees the lock
            self.object = None


class HereCall:
    def __init__(self, worker, method, arguments):
        self.worker, self.method, self.arguments = worker, method, arguments

    def result(self):
        engine, part = self.worker.engine, self.worker.arguments[2]
        engine.asked[part] = engine.asked.get(part, 0) + 1
        engine.before(part)
        if engine.dies(part, engine.asked[part]):
            raise Gone("it was hit by a meteorite")
        if self.worker.object is None:
            self.worker.object = self.worker.kind(*self.worker.arguments)
        return getattr(self.worker.object, self.method)(*self.arguments)


@pytest.fixture
def here(monkeypatch):
    """``here(**options)``: shared runs use a ``Here`` with these options, whose workers return after every step."""
    monkeypatch.setattr(parts, "SECONDS", 0.0)

    def use(**options):
        engine = Here(**options)
        monkeypatch.setattr(parts, "make_engine", lambda name, address: engine)
        return engine

    return use


@given(st.integers(1, 40), st.integers(1, 50))
def test_parts_are_contiguous_as_equal_as_possible_and_never_empty(members, workers):
    everyone = [str(m) for m in range(members)]
    found = list(parts.split(everyone, workers).values())
    assert [name for part in found for name in part] == everyone
    sizes = {len(part) for part in found}
    assert len(found) == min(workers, members) and min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


def test_each_part_has_the_bits_of_its_members_trained_by_themselves_also_after_a_kill(made):
    assert same_as_own(made / "shared", made)
    assert differences(made / "own0", made / "own1") != []


def test_the_folder_reads_like_that_of_one_process(made):
    def keys(folder):
        return [tuple(row.values())[:-1] for row in parts.read_metrics(folder)]

    assert keys(made / "shared") == keys(made / "whole")  # speeds included: every row, in the same order
    # Another number of members in a batched product may change a sum's last bits, hence no equality here.
    for row, other in zip(metrics(made / "shared"), metrics(made / "whole"), strict=True):
        assert float(row["value"]) == pytest.approx(float(other["value"]), rel=1e-3, abs=1e-3), (row, other)
    assert [change.member for change in changes(made / "shared")] == NAMES
    assert [member["name"] for member in read_config(made / "shared")["members"]] == NAMES


def test_the_gathered_rows_are_those_of_the_parts(made):
    rows = [row for part in range(2) for row in metrics(made / f"own{part}")]
    assert sorted(map(str, rows)) == sorted(map(str, metrics(made / "shared")))


def test_evaluate_asks_every_part(made):
    found = api.evaluate(made / "shared", episodes=3)
    own = [api.evaluate(made / f"own{part}", episodes=3) for part in range(2)]
    assert found["members"] == own[0]["members"] + own[1]["members"]
    assert (found["step"], found["run"]) == (200, str(made / "shared"))


def test_load_goes_to_the_part_that_has_the_member(made):
    for member in range(4):
        team, own = api.load(made / "shared", member), api.load(made / f"own{member // 2}", member % 2)
        obs = torch.linspace(-1, 1, sum(team.spec.obs_sizes)).split(team.spec.obs_sizes)
        assert team.name == own.name == NAMES[member]
        for one, other in zip(team.act(obs), own.act(obs), strict=True):
            assert (one == other).all()
    with pytest.raises(UserError, match=r"^member: expected 0 to 3, got 4$"):
        api.load(made / "shared", 4)


def test_the_film_shows_the_member_asked_for(made, monkeypatch, tmp_path):
    filmed = []

    class Film:
        def __init__(self, member, copies):
            filmed.append(member)

        def __call__(self, env, running):
            filmed.append(env.members)

        def write(self, path):
            filmed.append(path)

    monkeypatch.setattr(api, "Film", Film)
    video = tmp_path / "v.mp4"
    assert main(["evaluate", str(made / "shared"), "--episodes", "1", "--member", NAMES[3], "--video", str(video)]) == 0
    assert filmed[0] == 1 and filmed[-1] == video and set(filmed[1:-1]) == {2}


def test_plot_and_tensorboard_see_every_member(made, capsys):
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    assert main(["plot", str(made / "shared"), "--out", str(made / "c.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        *("MADDPG, reciprocity.kappa = 0.2", "MADDPG, reciprocity.kappa = 0.5", "picture")
    ]
    found = EventMultiplexer().AddRunsFromDirectory(str(made / "shared" / "tensorboard")).Reload().Runs()
    assert sorted(found) == NAMES and all("eval/return_sum" in str(tags["scalars"]) for tags in found.values())


def test_a_worker_that_is_killed_is_replaced_and_one_line_says_so(made):
    (line,) = [line for line in (made / "shared-log.err").read_text().splitlines() if "goes on from" in line]
    assert line.startswith("part 1 (kappa=0.5,seed=0 to kappa=0.5,seed=1): its process was killed by SIGKILL")
    assert "; another worker goes on from step " in line


def test_a_stopped_run_saves_every_part(tmp_path):
    run = tmp_path / "run"
    process = Marl(*SHARED, "--steps", "100000", "--run", run, log=tmp_path / "log")
    until(lambda: min(last_step(run / "parts" / str(part)) for part in range(2)) >= 12, process)
    process.kill(signal.SIGTERM)
    assert process.wait() == 130
    assert "marl: stopped at step" in process.err
    assert f", everything saved; go on with: marl resume {run}\n" in process.err
    reached = [Checkpoints(run / "parts" / str(part) / "checkpoints").newest() for part in range(2)]
    assert last_step(run) >= max(reached) - 12  # gathered
    for part in range(2):
        with lock(run / "parts" / str(part)):  # nobody is left
            pass


@pytest.mark.parametrize("stop_at", [1, 5])
def test_stop_and_resume_part_by_part(stop_at, here, tmp_path):
    small(tmp_path / "straight", engine="local", workers=0, seeds=[2])

    def stop(part):
        if engine.asked[part] == stop_at:
            signal.raise_signal(signal.SIGTERM)

    engine = here(before=stop)
    with pytest.raises(parts.Interrupted, match=r"stopped at step.*go on with: marl resume"):
        small(tmp_path / "run")
    here()
    assert api.resume(tmp_path / "run") == tmp_path / "run"
    assert differences(tmp_path / "straight", tmp_path / "run" / "parts" / "2") == []
    api.resume(tmp_path / "run", steps=50)
    api.resume(tmp_path / "straight", steps=50)
    assert differences(tmp_path / "straight", tmp_path / "run" / "parts" / "2") == []
    assert (read_config(tmp_path / "run")["loop"]["steps"], last_step(tmp_path / "run")) == (50, 50)
    with pytest.raises(UserError, match=r"^steps: expected 50 or more, where the run is now, got 40$"):
        api.resume(tmp_path / "run", steps=40)


def test_a_part_that_dies_again_and_again_ends_in_an_error_and_the_others_are_done(here, tmp_path, capsys):
    engine = here(dies=lambda part, n: part == "1" and n > 15)
    with pytest.raises(UserError, match=r"meteorite; 3 workers have died at step 10; to go on with"):
        small(tmp_path / "run")
    assert engine.placed == ["0", "1", "2", "1", "1"]
    assert capsys.readouterr().err.count("it was hit by a meteorite; another worker goes on from step 10") == 2
    assert [api.evaluate(tmp_path / "run" / "parts" / part, 1)["step"] for part in "012"] == [30, 10, 30]
    here()
    assert api.evaluate(api.resume(tmp_path / "run"), 1)["step"] == 30


def test_deaths_with_progress_in_between_are_no_reason_to_give_up(here, tmp_path):
    here(dies=lambda part, n: part == "0" and n in (1, 2, 14, 15, 30))
    small(tmp_path / "run")
    small(tmp_path / "straight", engine="local", workers=0, seeds=[0])
    assert differences(tmp_path / "straight", tmp_path / "run" / "parts" / "0") == []


def test_a_part_that_fails_does_not_stop_the_others_and_is_named(here, tmp_path, capsys):
    def spoil(part):
        if part == "1":
            raise UserError("no luck")

    here(before=spoil)
    with pytest.raises(UserError, match=r"^part 1 \(seed=1\): no luck; to go on with what is saved: marl resume "):
        small(tmp_path / "run")
    assert "part 1 (seed=1): no luck; the other parts go on" in capsys.readouterr().err
    assert {row["member"] for row in metrics(tmp_path / "run")} == {"seed=0", "seed=2"}


def test_a_machine_that_does_not_see_the_folder_says_so(here, tmp_path):
    def hide(part):
        config = read_config(tmp_path / "run")
        write_config(tmp_path / "run", config | {"id": "another"})

    here(before=hide)
    with pytest.raises(UserError, match=r"run on .* is not this run's folder; every node has to see it under the same"):
        small(tmp_path / "run")


def test_no_more_workers_live_than_the_engine_has_room_for(here, tmp_path):
    engine = here(capacity=2)
    small(tmp_path / "run", seeds=[0, 1, 2, 3, 4], workers=5)
    assert engine.most == 2 and engine.placed == ["0", "1", "2", "3", "4"]


def test_without_a_number_of_workers_the_engine_says_how_many(here, tmp_path):
    here(capacity=2)
    small(tmp_path / "run", workers=0)
    assert read_config(tmp_path / "run")["parts"] == {"0": ["seed=0"], "1": ["seed=1", "seed=2"]}


def test_an_algorithm_that_only_the_caller_registered_is_known_to_the_workers(here, monkeypatch, tmp_path):
    monkeypatch.setitem(registry.ALGORITHMS, "mine", registry.ALGORITHMS["maddpg"])
    here(before=lambda part: registry.ALGORITHMS.pop("mine", None))  # a new process does not know it
    assert last_step(small(tmp_path / "run", algorithm="mine", workers=1)) == 30


def test_what_the_script_itself_defines_is_refused_with_ray_alone_and_before_there_is_a_folder(
    here, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "__main__", importlib.import_module("marl.algos.maddpg"))
    monkeypatch.setitem(registry.ALGORITHMS, "mine", "__main__:MADDPG")
    here()
    with pytest.raises(UserError, match=r"^engine ray: __main__:MADDPG is in the script itself; put it in a module"):
        small(tmp_path / "run", algorithm="mine", engine="ray")
    assert not (tmp_path / "run").exists()
    assert last_step(small(tmp_path / "run", algorithm="mine", engine="processes", workers=1)) == 30


def test_a_worker_computes_with_the_threads_asked_for(made, tmp_path):
    assert [read_config(made / "shared" / "parts" / part)["threads"] for part in "01"] == [1, 1]
    part = parts.Part(*_of_new_run(tmp_path / "run", threads=2), "0", ("", ""))
    torch.set_num_threads(1)  # what a worker is told once its object is made
    try:
        assert part.advance(stop=True).state == "stopped" and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def _of_new_run(folder, **settings):
    """Folder and identity of a shared run that no worker has seen yet."""
    recipe = make_recipe("maddpg", "probe/team", [0], {}, {}, FEW | {"engine": "processes", **settings})
    folder.mkdir()
    write_config(folder, recipe.to_json() | {"id": "x", "parts": {"0": ["seed=0"]}, "command": "", "threads": 2})
    return str(folder), "x"


@pytest.mark.parametrize(
    "words, answer",
    [
        (("--address", "a:1"), "address a:1: only the engine 'ray' has one, got the engine 'local'"),
        (
            ("--engine", "processes", "--address", "a:1"),
            "address a:1: only the engine 'ray' has one, got the engine 'processes'",
        ),
        (("--engine", "rai"), "engine: 'rai' is not a choice; did you mean 'ray'?"),
        (("--engine", "processes", "--workers", "-1"), "workers: expected 0 or more, got -1"),
        (("--engine", "processes", "--env.agents", "x"), "env.agents"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line_and_leaves_no_folder(words, answer, capsys, tmp_path):
    assert answer in refused(capsys, "train", "maddpg", "probe/team", *words, "--run", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_shared_run_in_use_is_not_resumed(made, capsys):
    with lock(made / "shared"):
        assert f"in use by process {os.getpid()}" in refused(capsys, "resume", made / "shared")


@pytest.mark.ray
def test_ray_workers_share_a_population_too(ray_instance, made, tmp_path):
    words = [str(w) for w in (*WHOLE, "--engine", "ray", "--workers", "2", "--run", tmp_path / "run")]
    assert main(words) == 0
    assert same_as_own(tmp_path / "run", made)
