"""Seeds in processes: the same numbers however many there are and however often they stop; each fails by itself."""

import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
from toy_experiment import Toy, ToyOptions

from marl.classic import runner
from marl.classic.experiments.base import Row
from marl.classic.runner import run, run_seed
from marl.classic.storage import load_state, save_state
from marl.processes import THREADS
from marl.types import UserError


def alone(folder, seed=0, stops=(), seconds=1e9, options=None):
    """Run one seed in this process, stopped and built anew where ``stops`` says."""
    for stop in [*stops, None]:
        experiment = Toy(options or ToyOptions(), seed)
        ended = run_seed(experiment, seed, folder, seconds, lambda *_: None, lambda e=experiment, s=stop: e.done == s)
        assert ended == (stop is None)
    return content(folder, seed)


def content(folder, seed):
    state = load_state(folder / "seeds" / f"{seed}.npz")
    return (folder / "seeds" / f"{seed}.csv").read_bytes(), repr(state)


def quiet(*_):
    pass


def test_a_seed_that_stops_and_goes_on_writes_the_same_rows_and_ends_in_the_same_state(tmp_path):
    whole = alone(tmp_path / "whole")
    assert alone(tmp_path / "stopped", stops=[1, 7, 8, 19]) == whole
    assert whole[0].count(b"\n") == 1 + 20 * 3 + 1  # the head, three rows a step, a point at the end


@pytest.mark.parametrize("seconds", [0, 1e9])
def test_rows_beyond_the_checkpoint_are_cut_off(tmp_path, seconds):
    whole = alone(tmp_path / "whole")
    broken = tmp_path / "broken"

    class Dead(Exception):
        pass

    experiment = Toy(ToyOptions(), 0)

    def die():
        if experiment.done == 11:
            raise Dead
        return False

    with pytest.raises(Dead):
        run_seed(experiment, 0, broken, seconds, quiet, die)
    assert (broken / "seeds" / "0.npz").exists() == (seconds == 0)  # else it begins anew
    with (broken / "seeds" / "0.csv").open("ab") as file:
        file.write(b"0,a,pla")
    assert alone(broken) == whole


@pytest.mark.parametrize("harm", ["flipped", "empty", "rows lost", "rows changed"])
def test_what_cannot_be_used_costs_a_detour_and_no_bit(tmp_path, harm, caplog):
    whole = alone(tmp_path / "whole")
    broken = tmp_path / "broken"
    run_seed(experiment := Toy(ToyOptions(), 0), 0, broken, 1e9, quiet, lambda: experiment.done == 9)
    path, rows = broken / "seeds" / "0.npz", broken / "seeds" / "0.csv"
    if harm == "rows lost":
        rows.write_bytes(b"")
    elif harm == "rows changed":
        rows.write_bytes(rows.read_bytes().replace(b".", b"x", 1))
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:] if harm == "flipped" else b"")
    assert alone(broken) == whole
    (message,) = caplog.messages
    assert message.endswith("; seed 0 begins anew, to the same numbers")
    said = {"rows lost": "0.csv lacks rows", "rows changed": "0.csv fails its checksum"}
    assert said.get(harm, "0.npz fails its checksum") in message


@pytest.mark.parametrize("harmed", [False, True])
def test_a_checkpoint_that_knows_no_checksum_of_the_rows_is_gone_on_from_where_they_can_be_read(
    tmp_path, harmed, caplog
):
    whole = alone(tmp_path / "whole")
    run_seed(experiment := Toy(ToyOptions(), 0), 0, tmp_path, 1e9, quiet, lambda: experiment.done == 9)
    path, rows = tmp_path / "seeds" / "0.npz", tmp_path / "seeds" / "0.csv"
    save_state(path, {name: part for name, part in load_state(path).items() if name != "csv_checksum"})
    if harmed:
        rows.write_bytes(rows.read_bytes().replace(b".", b"x", 1))
    assert alone(tmp_path) == whole
    assert caplog.messages == [f"{rows} is damaged; seed 0 begins anew, to the same numbers"] * harmed


def test_a_state_that_is_not_the_experiments_is_not_taken_for_a_damaged_one(tmp_path):
    alone(tmp_path)
    path = tmp_path / "seeds" / "0.npz"
    save_state(path, load_state(path) | {"experiment": {"other": 1}})
    with pytest.raises(KeyError, match="done"):
        alone(tmp_path)


# ---- in processes -------------------------------------------------------------------------------------------------


def files(folder):
    paths = sorted((folder / "seeds").iterdir())
    return {path.name: repr(load_state(path)) if path.suffix == ".npz" else path.read_bytes() for path in paths}


def test_the_numbers_do_not_depend_on_the_number_of_processes(tmp_path):
    said = []
    run(Toy, ToyOptions(), [3, 0, 2], tmp_path / "one", 1, lambda *news: said.append(news))
    run(Toy, ToyOptions(), [3, 0, 2], tmp_path / "three", 3, quiet)
    assert files(tmp_path / "one") == files(tmp_path / "three")
    assert len(files(tmp_path / "one")) == 6
    assert said[0] == (3, 0, 20) and said[-1] == (2, 20, 20) and len(said) == 3 * 21
    for seed in (0, 2, 3):
        assert alone(tmp_path / "alone", seed) == content(tmp_path / "one", seed)


def test_a_seed_that_raises_is_named_with_its_reason_and_the_others_end(tmp_path):
    options = ToyOptions(trouble="raise")
    with pytest.raises(UserError) as caught:
        run(Toy, options, [0, 1, 2], tmp_path, 2, quiet)
    where = tmp_path / "seeds" / "1.error.txt"
    what, how = str(caught.value).split("; ")
    assert what == f"seed 1: ZeroDivisionError: the toy broke (where: {where})"
    assert how == f"to go on with what is saved: marl resume {tmp_path}"
    assert "_go_wrong" in where.read_text() and "Traceback" in where.read_text()
    assert load_state(tmp_path / "seeds" / "2.npz")["experiment"]["done"] == 20
    run(Toy, ToyOptions(), [0, 1, 2], tmp_path, 2, quiet)
    assert not where.exists() and content(tmp_path, 1) == alone(tmp_path / "alone", 1)


def test_a_process_that_dies_is_named_replaced_and_costs_no_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(UserError) as caught:
        run(Toy, ToyOptions(trouble="die"), [0, 1, 2], tmp_path, 1, quiet)
    assert str(caught.value) == (
        "seed 1: its process was killed by SIGKILL, perhaps for want of memory; "
        f"to go on with what is saved: marl resume {tmp_path}"
    )
    assert load_state(tmp_path / "seeds" / "1.npz")["experiment"]["done"] == 4
    assert load_state(tmp_path / "seeds" / "2.npz")["experiment"]["done"] == 20  # in a new process
    run(Toy, ToyOptions(), [0, 1, 2], tmp_path, 1, quiet)
    assert content(tmp_path, 1) == alone(tmp_path / "alone", 1)


def test_of_several_failures_the_first_is_told_with_their_number(tmp_path):
    with pytest.raises(UserError, match=r"^seed 2 \(and 1 more\): steps: 13 brings bad luck"):
        run(Toy, ToyOptions(steps=13), [5, 2], tmp_path, 2, quiet)


class Tired(Toy):
    """Every seed says the same, and something of its own."""

    def __init__(self, options, seed):
        super().__init__(options, seed)
        logging.getLogger("marl").warning("the toy is 100 % tired")
        if seed:
            logging.getLogger("marl").warning("seed %d sleeps", seed)


def test_what_all_seeds_warn_of_is_said_once(tmp_path, caplog, capfd):
    run(Tired, ToyOptions(steps=2), [0, 1], tmp_path, 2, quiet)
    assert sorted(caplog.messages) == ["seed 1 sleeps", "the toy is 100 % tired"]
    assert capfd.readouterr().err == ""


class Environment(Toy):
    """Measures what its process is told of threads, and the parent's modules that a child must not have."""

    def advance(self):
        import sys

        self.done = self.total
        told = [Row(name, "place", 0, float(os.environ.get(name, "nan"))) for name in THREADS]
        return [*told, Row("torch", "place", 0, "torch" in sys.modules)]


def test_each_process_computes_with_one_thread_and_without_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    run(Environment, ToyOptions(), [0], tmp_path, 1, quiet)
    values = [line.split(",")[-1] for line in (tmp_path / "seeds" / "0.csv").read_text().splitlines()[1:]]
    assert values == ["1.0"] * len(THREADS) + ["0.0"]
    assert os.environ["OMP_NUM_THREADS"] == "7" and "MKL_NUM_THREADS" not in os.environ


class Named(Toy):
    """Writes the number of its process into the file ``pid`` of the current folder, then computes without a pause."""

    def advance(self):
        Path("pid").write_text(str(os.getpid()))
        return super().advance()


def gone(pid, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.01)
    return False


def test_an_exception_in_the_parent_ends_the_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def fail(seed, done, total):
        if done:
            raise OSError("the bar broke")

    with pytest.raises(OSError, match="the bar broke"):
        run(Named, ToyOptions(spin=0.05), [0], tmp_path, 1, fail)
    assert gone(int(Path("pid").read_text()), 0.5)


def test_integers_and_numpy_numbers_in_rows_are_written_as_floats(tmp_path):
    class Odd(Toy):
        def advance(self):
            self.done = self.total
            return [Row("a", "place", 3, 2), Row("a", "place", np.int64(4), np.float32(0.5))]

    run_seed(Odd(ToyOptions(), 0), 0, tmp_path, 1e9, quiet, lambda: False)
    assert (tmp_path / "seeds" / "0.csv").read_text().splitlines()[1:] == [
        "0,a,place,metres,3,2.0",
        "0,a,place,metres,4,0.5",
    ]
