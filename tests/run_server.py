"""A process without threads that has imported what every run imports, and forks one for each run.

A test's own process must not be forked: it has threads, and what one of them has locked stays locked in the fork.
"""

import contextlib
import faulthandler
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from multiprocessing.connection import Connection, Pipe

import cloudpickle


class Server:
    """Ends with the process that made it."""

    def __init__(self):
        self.connection, theirs = Pipe()
        command = [sys.executable, __file__, str(theirs.fileno())]
        alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # OpenBLAS starts its threads as NumPy is imported
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=alone)
        theirs.close()

    def run(self, arguments, out, err, before=None):
        """The number of a new process that runs ``marl ARGUMENTS`` here and now, after a call of ``before``."""
        here = dict(os.environ), sys.path, os.getcwd()
        return self._ask(cloudpickle.dumps((here, arguments, out, err, before)))

    def code(self, pid):
        """The exit code of one that it forked, told once; None while that runs."""
        return self._ask(pid)

    def _ask(self, question):
        self.connection.send(question)
        return self.connection.recv()


def serve(connection):
    """Answer until the other side is gone."""
    _import_all()
    assert len(os.listdir("/proc/self/task")) == 1, "a process that has threads must not be forked"
    with contextlib.suppress(EOFError):
        while True:
            question = connection.recv()
            if isinstance(question, int):
                pid, status = os.waitpid(question, os.WNOHANG)
                connection.send(os.waitstatus_to_exitcode(status) if pid else None)
            elif pid := os.fork():
                connection.send(pid)
            else:
                connection.close()
                _become(question)


def _import_all():
    """What runs import, torch's own lazy parts by using them."""
    import gymnasium.envs.mujoco  # noqa: F401
    import mpe2.simple_spread_v3  # noqa: F401
    import torch

    from marl.api import train

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        settings = {"hidden": (2,), "batch_size": 2, "warmup": 1, "buffer_size": 10, "eval_every": 0, "threads": 1}
        train("maddpg", "probe/team", run=f"{folder}/run", steps=3, **settings)


def _become(job):
    """The forked process: never returns."""
    code = 1
    try:
        (environment, sys.path[:], folder), arguments, out, err, before = pickle.loads(job)
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        faulthandler.dump_traceback_later(100)  # before anybody's patience ends: where it hangs
        if before is not None:
            before()
        from marl import cli

        code = cli.main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
