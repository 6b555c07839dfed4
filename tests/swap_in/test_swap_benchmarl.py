"""BenchMARL's algorithms with reciprocity, each as its users run them; BenchMARL lives in an environment of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import venvs
from benchmarks.pair import Missing

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "examples" / "swap_in" / "benchmarl"
TINY = [
    "experiment.max_n_frames=200",
    "experiment.off_policy_collected_frames_per_batch=100",
    "experiment.off_policy_n_optimizer_steps=2",
    "experiment.off_policy_memory_size=1000",
    "experiment.evaluation_interval=100",
    "experiment.loggers=[csv]",
    "experiment.render=False",
    "task.max_steps=10",
]


@pytest.fixture(scope="module")
def python():
    try:
        return venvs.python("benchmarl")
    except Missing:
        pytest.skip("BenchMARL is not here: python benchmarks/venvs.py benchmarl")


def command(python, *arguments, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(RECIPE)}
    return subprocess.run([python, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_what_must_hold_where_benchmarl_is(python):
    done = command(python, "-m", "pytest", "-p", "no:cacheprovider", "tests/swap_in/inside_benchmarl.py", folder=ROOT)
    assert done.returncode == 0, done.stdout


def test_benchmarls_own_command_runs_reciprocal_qmix_and_refuses_a_kappa_of_2_in_one_line(python, tmp_path):
    choice = ["algorithm=reciprocal_qmix", "task=vmas/balance", "algorithm.kappa=0.5,2"]  # one after the other
    done = command(python, "-m", "benchmarl.run", "--multirun", *choice, *TINY, folder=tmp_path)
    assert list(tmp_path.rglob("reciprocalqmix_balance_mlp*.json"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "kappa: expected a number from 0 to 1, got 2.0" in done.stderr.splitlines()


def test_the_scripts_print_the_same_return_without_reciprocity_and_with_kappa_0(python, tmp_path):
    size = ["--steps", "1000", "--seed", "1"]
    plain = command(python, RECIPE / "plain.py", *size, folder=tmp_path)
    with_kappa_0 = command(python, RECIPE / "reciprocal.py", *size, "--kappa", "0", folder=tmp_path)
    assert plain.returncode == with_kappa_0.returncode == 0, plain.stderr + with_kappa_0.stderr
    word, value = plain.stdout.splitlines()[-1].split()
    assert word == "return" and float(value) < 0
    assert with_kappa_0.stdout.splitlines()[-1] == f"return {value}"
