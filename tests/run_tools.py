"""Runs of ``marl`` in processes of their own, and the bits in which two runs may not differ.

Used by the tests of resuming, of bad input and of the command line.
"""

import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

from run_server import Server

from marl import cli
from marl.checkpoint import Checkpoints, flatten
from marl.plot import read_metrics
from marl.recipe import Recipe
from marl.runfolder import read_config

BRIEF = (
    *("--hidden", "16,16", "--threads", "1", "--quiet", "--log-every", "12", "--checkpoint-every", "35"),
    *("--eval-every", "100", "--eval-episodes", "2"),
)
"""Settings of a run that takes a second and does everything often. Checkpoints come in the middle of MPE's episodes of
25 steps, and between rows of the log."""
SMALL = (*BRIEF, "--batch-size", "16", "--warmup", "45", "--buffer-size", "5000")
"""The same for a learner with a replay; a checkpoint comes in the middle of the warm-up."""


class Marl:
    """``marl ARGUMENTS`` in a process of its own.

    Args:
        arguments: of the command line.
        log: stdout and stderr go to ``log.out`` and ``log.err``.
        real: start an interpreter; else fork one that has torch imported already.
        before: called in the forked process before the command.
    """

    def __init__(self, *arguments, log, real=False, before=None):
        self.files = [Path(f"{log}.out"), Path(f"{log}.err")]
        words, paths = [str(a) for a in arguments], [str(path) for path in self.files]
        self.code = None
        if real:
            command = [sys.executable, "-m", "marl.cli", *words]
            with self.files[0].open("wb") as out, self.files[1].open("wb") as err:
                process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=out, stderr=err)
            self.pid, self.ask = process.pid, process.poll
        else:
            server = started()
            self.pid = server.run(words, *paths, before)
            self.ask = lambda: server.code(self.pid)

    def poll(self):
        """Its exit code, or the negative number of the signal that ended it; None while it runs."""
        if self.code is None:
            self.code = self.ask()
        return self.code

    def wait(self, timeout=120.0):
        """Its exit code as above, when there is one."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"{self.err}")
            time.sleep(0.002)
        return self.code

    def kill(self, number=signal.SIGKILL):
        os.kill(self.pid, number)

    @property
    def out(self):
        return self.files[0].read_text()

    @property
    def err(self):
        return self.files[1].read_text()

    def kill_at(self, folder, step, delay=0.0, number=signal.SIGKILL):
        """Kill it ``delay`` seconds after ``metrics.csv`` has a row of ``step``; its exit code."""
        end = time.monotonic() + 180
        while last_step(folder) < step:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"no step {step}: {self.err}")
            if self.poll() is not None:
                raise AssertionError(f"ended with {self.code} before step {step}: {self.err}")
            time.sleep(0.002)
        time.sleep(delay)
        self.kill(number)
        return self.wait()


started = cache(Server)
"""The one from which runs are forked; it takes seconds to start."""


def run_marl(*arguments, log, **options):
    """Run ``marl ARGUMENTS`` to its end, which must be a good one; what it printed on stdout."""
    process = Marl(*arguments, log=log, **options)
    assert process.wait() == 0, process.err
    return process.out


def last_step(folder):
    """The step of the last row of ``metrics.csv``; -1 if there is none."""
    try:
        lines = (Path(folder) / "metrics.csv").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return -1
    return int(lines[-1].split(b",")[0]) if len(lines) > 1 else -1


def metrics(folder):
    """All rows of ``metrics.csv`` but those that measure speed."""
    return [row for row in read_metrics(Path(folder)) if not row["metric"].startswith("speed/")]


def state(folder):
    """The newest checkpoint: its step and every number in it by its path, the replay's time slots included."""
    folder = Path(folder)
    recipe = Recipe.from_json(read_config(folder))
    loaded = Checkpoints(folder / "checkpoints").load()
    del loaded.state["recorder"]["csv_bytes"]  # speeds take more or fewer characters
    env = recipe.make_env(recipe.loop.copies)
    learner = recipe.make_learner(env.spec)
    replay = learner.Buffer.of(recipe.config, env.spec, env.copies, recipe.seeds, learner.memory_size)
    env.close()
    replay.load_state_dict(loaded.state["buffer"])
    replay.restore(loaded.chunks)
    slots = replay.read(max(replay.written - replay.capacity, 0), replay.written) if replay.written else {}
    tensors, values = flatten(loaded.state)
    tensors |= {f"/slots/{name}": tensor for name, tensor in slots.items()}
    return loaded.step, tensors, _leaves(values, "")


def differences(one, other):
    """Where two runs' last checkpoints and logs differ in any bit; empty if nowhere."""
    (step, tensors, values), (other_step, other_tensors, other_values) = state(one), state(other)
    found = [] if step == other_step else ["step"]
    found += sorted(tensors.keys() ^ other_tensors.keys()) + sorted(values.keys() ^ other_values.keys())
    found += [key for key in tensors.keys() & other_tensors.keys() if not same(tensors[key], other_tensors[key])]
    found += [key for key in values.keys() & other_values.keys() if repr(values[key]) != repr(other_values[key])]
    return sorted(found) + ([] if metrics(one) == metrics(other) else ["metrics.csv"])


def same(one, other):
    """Equal dtype, shape and bits: NaN is itself, and 0 is not -0."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()


def _leaves(node, path):
    if isinstance(node, dict):
        return {key: leaf for name, child in node.items() for key, leaf in _leaves(child, f"{path}/{name}").items()}
    return {path: node}


def refused(capsys, *arguments):
    """The one line that ``marl ARGUMENTS`` answers, in this process, to input that it cannot work with."""
    capsys.readouterr()
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("marl: ") and "Traceback" not in err
    return err.removeprefix("marl: ").rstrip("\n")


def content(folder):
    """Every file's bytes but the lock's."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
