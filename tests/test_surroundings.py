"""Runs inside a larger program: its choices for torch, its streams, its processes and its present folder."""

import contextlib
import multiprocessing
import os
import sys

import pytest
import torch
from run_tools import Marl, state

import marl
from marl.engines.processes import ProcessEngine
from marl.envs import make_env
from marl.export import export
from marl.loop import Training
from marl.types import UserError

SMALL = {"hidden": (16, 16), "batch_size": 16, "buffer_size": 1000, "threads": 1, "warmup": 30, "eval_episodes": 2}
RUN = {**SMALL, "steps": 60, "eval_every": 30}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- torch --------------------------------------------------------------------------------------------------------

CHOICES = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu"),
    "device": lambda: torch.device("meta"),
}


def lived(folder, choice=contextlib.nullcontext):
    """The state in which a run that was stopped and resumed ends, its scores, and what its team does."""
    with choice():
        run = marl.train("maddpg", "mpe/simple_spread_v3", run=folder, **RUN)
        marl.resume(run, steps=80)
        team = marl.load(run)
        actions = team.act([[1.0] * size for size in team.spec.obs_sizes])
        scores = marl.evaluate(run, episodes=2)["members"]
        export(run, "agent_0")
    return state(run)[1], scores, [action.tolist() for action in actions]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return lived(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("choice", CHOICES)
def test_what_a_program_has_chosen_for_its_own_torch_changes_no_bit_of_a_run(choice, alone, tmp_path):
    tensors, *seen = lived(tmp_path / "run", CHOICES[choice])
    assert seen == [*alone[1:]]
    assert tensors.keys() == alone[0].keys()
    assert all(torch.equal(tensors[name], alone[0][name]) for name in tensors)


def test_another_default_type_is_refused_since_all_threads_share_it():
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(UserError, match=r"^torch's default dtype is torch\.float64, expected torch\.float32"):
            marl.train("ddpg", "probe/policy", run="run", **RUN)
    finally:
        torch.set_default_dtype(torch.float32)
    assert not os.path.exists("run")


# ---- stderr -------------------------------------------------------------------------------------------------------


class Plain:
    """A stream of a program that logs: it writes, and that is all."""

    def write(self, text):
        self.text = getattr(self, "text", "") + text

    def flush(self):
        pass


@pytest.mark.parametrize("stream", [None, Plain()], ids=["none", "plain"])
def test_a_run_needs_no_stderr_and_takes_one_that_only_writes(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    run = marl.train("ddpg", "probe/policy", **RUN, progress=True)
    assert marl.evaluate(run, episodes=2, progress=True)["step"] == 60
    assert stream is None or "60/60" in stream.text


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 2)


def full_disk():
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("stderr", [closed_pipe, full_disk])
def test_a_progress_bar_that_nobody_can_be_shown_ends_no_run(stderr, tmp_path):
    arguments = ("train", "ddpg", "probe/policy", "--steps", "60", "--warmup", "30", "--eval-every", "0")
    process = Marl(*arguments, "--threads", "1", "--run", tmp_path / "run", log=tmp_path / "log", before=stderr)
    assert process.wait() == 0
    assert marl.evaluate(tmp_path / "run", episodes=2)["step"] == 60


# ---- processes ----------------------------------------------------------------------------------------------------


def play():
    with contextlib.closing(make_env("gym/CartPole-v1", workers=1)) as env:
        env.start()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_forked_process_starts_workers_though_its_parent_has_some():
    play()  # starts the fork server, which is no child of a child
    process = multiprocessing.get_context("fork").Process(target=play)
    process.start()
    process.join(120)
    assert process.exitcode == 0


@pytest.mark.parametrize("begin", [play, lambda: ProcessEngine().place(dict)], ids=["environments", "engine"])
def test_a_daemonic_process_says_in_one_line_that_it_may_start_no_workers(begin, monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    with pytest.raises(UserError, match=r"a daemon of multiprocessing and may start no workers; expected daemon=False"):
        begin()


# ---- the present folder -------------------------------------------------------------------------------------------


def test_a_program_that_goes_to_another_folder_loses_nothing_of_its_run(tmp_path, monkeypatch):
    def learn(training, learn=Training.learn):
        monkeypatch.chdir("/")
        return learn(training)

    monkeypatch.setattr(Training, "learn", learn)
    run = marl.train("ddpg", "probe/policy", run="run", **RUN)
    monkeypatch.chdir(tmp_path)
    assert str(run) == "run" and marl.evaluate(run, episodes=2)["step"] == 60
    assert (run / "tensorboard" / "seed=0").is_dir()
