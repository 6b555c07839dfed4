"""What the tests of the engines place and serve; importable from any worker."""

import logging
import os
import signal
import sys
import time
from pathlib import Path

from tqdm import tqdm

from marl.types import UserError


class Diary:
    """Notes what it is told."""

    def __init__(self, *entries):
        self.entries = list(entries)

    def add(self, entry):
        self.entries.append(entry)
        return list(self.entries)

    def pid(self):
        return os.getpid()

    def threads(self):
        import torch  # takes a second, which most tests need not wait

        return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], os.environ["NUMBA_NUM_THREADS"]

    def nap(self, seconds):
        time.sleep(seconds)
        return seconds

    def echo(self, value):
        return value

    def change(self, array):
        array += 1
        return array

    def refuse(self):
        raise UserError("refused: got 3, expected 2")

    def stumble(self):
        return {}["missing"]

    def talk(self):
        tqdm.write("hello", file=sys.stderr)

    def warn(self):
        logging.getLogger("marl").warning("beware of %s", "the dog")

    def meet(self, served, word):
        return served.add(word)

    def meet_and_kill(self, served, word):
        """Have the process of a served object killed, then ask for something."""
        os.kill(served.pid(), signal.SIGKILL)
        return served.add(word)


class Refused:
    def __init__(self, text):
        raise UserError(text)


class Broken:
    def __init__(self):
        raise ZeroDivisionError("as planned")


class Ledger:
    """Words in a file; to add one twice does no harm. Each process has its own ledger of the same file."""

    def __init__(self, path):
        self.path = path
        path.touch()

    def __reduce__(self):
        return Ledger, (self.path,)

    def add(self, word):
        words = self.path.read_text().split()
        if word not in words:
            self.path.write_text(" ".join([*words, word]))
        return self.path.read_text().split()

    def pid(self):
        return os.getpid()

    def refuse(self, what="nothing"):
        raise UserError(f"the ledger refuses {what}")


def alive(pid):
    """Whether the process runs; a dead one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition, seconds=20.0):
    """Wait for it; whether it came."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def drive(name):
    """A run in a process of its own: two workers, a served object, and stop requests that are merely noted."""
    from marl.engines import make_engine
    from marl.terminal import stop_requests

    engine = make_engine(name)
    with stop_requests() as stop:
        workers = [engine.place(Diary) for _ in range(2)]
        served = engine.serve(Diary)
        pids = [worker.call("pid").result() for worker in workers]
        print(*pids, *([served.pid()] if name == "ray" else []), flush=True)
        calls = [worker.call("nap", 2.0) for worker in workers]
        print([call.result() for call in calls], flush=True)
        print([worker.call("add", 1).result() for worker in workers], len(stop), flush=True)
        time.sleep(100)


if __name__ == "__main__":
    drive(sys.argv[1])
