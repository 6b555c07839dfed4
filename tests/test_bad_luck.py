"""Numbers that are not finite, a full disk, damaged files, Ctrl-C: one line, and the last good checkpoint stays."""

import resource
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass

import pytest
import torch
from run_tools import SMALL, Marl, content, differences, last_step, refused, run_marl

import marl.api
import marl.recipe
from marl import registry
from marl.checkpoint import Checkpoints
from marl.cli import main
from marl.config import option
from marl.envs.probes import Masking, ProbeOptions
from marl.finite import require_finite

# ---- numbers that are not finite ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PoisonOptions:
    what: str = option("reward", "Which number turns bad.")
    value: float = option(float("nan"), "What it becomes.")


class Poison(Masking):
    """The probe, until its 61st step: there agent 1's reward or observation turns bad, or what it sees at the start of
    that episode. Evaluations are shorter."""

    def __init__(self, seeds, copies, options):
        super().__init__(seeds, copies, ProbeOptions())
        self.options, self.count = options, 0

    def reset(self):
        return super().reset() * (self.options.value if self.options.what == "first" else 1)

    def step(self, action):
        step = super().step(action)
        self.count += 1
        if self.count == (60 if self.options.what == "start" else 61):  # episodes have two steps
            bad = {"reward": step.reward, "observation": step.next_obs, "start": step.obs}[self.options.what]
            bad[:, 1] = self.options.value
        return step


class Family:
    options = PoisonOptions

    def names(self):
        return ["masking"]

    def make(self, name, *, seeds, copies, agents, workers, options):
        return Poison(seeds, copies, options)


FAMILY = Family()


@pytest.fixture
def poison(monkeypatch):
    monkeypatch.setitem(registry.ENVIRONMENTS, "poison", f"{__name__}:FAMILY")


@pytest.mark.parametrize(
    "what, value, said",
    [
        ("reward", "nan", "reward of agent_1 (member seed=0) is not finite at step 60"),
        ("reward", "-inf", "reward of agent_1 (member seed=0) is not finite at step 60"),
        ("observation", "nan", "observation of agent_1 (member seed=0) is not finite at step 60"),
        ("start", "nan", "observation of agent_1 (member seed=0) is not finite at step 59"),
        ("start", "inf", "observation of agent_1 (member seed=0) is not finite at step 59"),
        # (1e25)^2 is beyond float32: the reward is finite, and the loss of the batch that first holds it is not.
        ("reward", "1e25", "grad/critic_norm of agent_1 (member seed=0) is not finite at step "),
    ],
)
def test_a_number_that_is_not_finite_ends_the_run_and_keeps_its_last_checkpoint(
    what, value, said, poison, capsys, tmp_path
):
    settings = [*SMALL, "--eval-every", "10", "--batch-size", "64", "--steps", "200", "--run", tmp_path / "run"]
    line = refused(capsys, "train", "ddpg", "poison/masking", *settings, "--env.what", what, f"--env.value={value}")
    assert line.startswith(said) and line.endswith("; the last checkpoint is kept")
    step = Checkpoints(tmp_path / "run" / "checkpoints").load().step
    assert step == 35 or (value == "1e25" and step >= 35)
    result = marl.api.evaluate(tmp_path / "run", episodes=3)
    assert result["step"] == step and abs(result["members"][0]["mean"]) <= 0.5


def test_a_run_whose_first_episode_begins_with_nan_is_not_begun(poison, capsys, tmp_path):
    task = ("train", "ddpg", "poison/masking", *SMALL, "--run", tmp_path / "run", "--env.what", "first")
    line = refused(capsys, *task)
    assert line == "observation of agent_0 (member 0) is not finite as the first episode begins"
    assert not (tmp_path / "run").exists()


def test_an_evaluation_that_is_not_finite_ends_the_run_as_well(poison, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(Poison, "length", 100)  # an episode is now long enough for the 61st step
    settings = [*SMALL, "--steps", "200", "--run", tmp_path / "run"]
    line = refused(capsys, "train", "ddpg", "poison/masking", *settings)
    assert line == "evaluation return of agent_1 (member seed=0) is not finite at step 0; the last checkpoint is kept"
    assert Checkpoints(tmp_path / "run" / "checkpoints").load().step == 0


# ---- a full disk --------------------------------------------------------------------------------------------------

TRAIN = ("train", "maddpg", "probe/team", *SMALL, "--hidden", "64,64", "--eval-every", "0")


def test_a_full_disk_ends_the_run_in_one_line_and_loses_nothing(tmp_path):
    small, whole = tmp_path / "small", tmp_path / "whole"
    run_marl(*TRAIN, "--steps", "100", "--run", whole, log=tmp_path / "log")
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        process = Marl(*TRAIN, "--steps", "100", "--run", small / "run", log=tmp_path / "log")
        assert process.wait() == 2
        (line,) = process.err.splitlines()
        assert line.startswith(f"marl: {small}") and "No space left on device" in line
        step = Checkpoints(small / "run" / "checkpoints").load().step
        assert step < 100
        subprocess.run(["mount", "-o", "remount,size=50m", small], check=True)
        run_marl("resume", small / "run", "--quiet", log=tmp_path / "log")
        assert differences(small / "run", whole) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_file_that_may_not_grow_ends_the_run_in_one_line_and_loses_nothing(tmp_path):
    folder, whole = tmp_path / "run", tmp_path / "whole"
    run_marl(*TRAIN, "--steps", "100", "--run", whole, log=tmp_path / "log")
    last = max(p.stat().st_size for p in whole.glob("checkpoints/*.safetensors"))

    def limit():  # a checkpoint without optimiser state fits, the first one after the warm-up does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (last - 1000, last - 1000))

    process = Marl(*TRAIN, "--steps", "100", "--run", folder, log=tmp_path / "log", before=limit)
    assert process.wait() == 2
    (line,) = process.err.splitlines()
    assert "File too large" in line and line.endswith("the checkpoint of step 35 is kept")
    assert Checkpoints(folder / "checkpoints").load().step == 35
    run_marl("resume", folder, "--quiet", log=tmp_path / "log")
    assert differences(folder, whole) == []


# ---- damage -------------------------------------------------------------------------------------------------------


def damage(run, pattern, how):
    for path in (run / "checkpoints").glob(pattern):
        data = path.read_bytes()
        flipped = bytes([*data[:-2], data[-2] ^ 1, data[-1]])
        path.write_bytes({"truncated": data[:-1], "flipped": flipped, "replaced": b"\x80\x04."}.get(how, b""))
        if how == "removed":
            path.unlink()


HOW = pytest.mark.parametrize("how", ["truncated", "flipped", "replaced", "removed"])
READERS = [(command, pattern) for command in ("resume", "evaluate") for pattern in ("*.json", "0*.safetensors")]


@HOW
@pytest.mark.parametrize("command, pattern", [*READERS, ("resume", "replay*.safetensors")])
def test_checkpoints_that_are_all_damaged_are_named_and_left_alone(command, how, pattern, run, capsys):
    damage(run, pattern, how)
    before = content(run)
    line = refused(capsys, command, run)
    assert line.startswith(f"{run / 'checkpoints'}: ")
    assert ("no checkpoint was saved here" if (how, pattern) == ("removed", "*.json") else "cannot be used") in line
    assert content(run) == before


@HOW
def test_who_needs_only_the_networks_is_not_disturbed_by_a_damaged_replay(how, run, tmp_path):
    sound = marl.api.evaluate(run, episodes=3)
    damage(run, "replay*.safetensors", how)
    assert marl.api.evaluate(run, episodes=3) == sound and sound["step"] == 100
    assert marl.api.load(run).step == 100
    assert main(["export", str(run), "--agent", "0", "--out", str(tmp_path / "out")]) == 0
    start = ["--init-from", str(run), "--steps", "1", "--run", str(tmp_path / "next")]
    assert main(["train", "maddpg", "probe/team", *SMALL, *start]) == 0


STRANGERS = {
    "another algorithm": ("ddpg", "probe/team"),
    "another environment": ("maddpg", "probe/masking"),
    "other networks": ("maddpg", "probe/team", "--hidden", "8,8"),
    "another population": ("maddpg", "probe/team", "--seeds", "0", "1"),
    "more copies": ("maddpg", "probe/team", "--copies", "2"),
}


@pytest.mark.parametrize("arguments", STRANGERS.values(), ids=STRANGERS.keys())
def test_the_checkpoint_of_another_run_is_recognised_and_both_are_left_alone(arguments, run, capsys, tmp_path):
    assert (
        main(["train", *arguments[:2], *SMALL, *arguments[2:], "--steps", "50", "--run", str(tmp_path / "stranger")])
        == 0
    )
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(tmp_path / "stranger" / "checkpoints", run / "checkpoints")
    before = content(run)
    assert "the checkpoint of step 50 is not of this run: " in refused(capsys, "resume", run)
    assert content(run) == before
    if "--copies" not in arguments:  # the same weights play with any number of copies
        assert "the checkpoint of step 50 is not of this run: " in refused(capsys, "evaluate", run)


# ---- a folder that goes away --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fate, when",
    [
        ("moved", "at the next checkpoint"),
        ("deleted", "at the next checkpoint"),
        ("moved", "at the end"),
        ("moved", "at Ctrl-C"),
    ],
)
def test_a_run_whose_folder_goes_away_says_so_and_makes_no_other(fate, when, tmp_path):
    run = tmp_path / "run"
    often = {"at the next checkpoint": "35"}.get(when, "1000000")
    steps = "1000" if when == "at the end" else "1000000"
    settings = [*SMALL, "--eval-every", "0", "--checkpoint-every", often, "--steps", steps, "--run", run]
    process = Marl("train", "maddpg", "probe/team", *settings, log=tmp_path / "log")
    while last_step(run) < 100:
        time.sleep(0.002)
    run.rename(tmp_path / "elsewhere")
    if fate == "deleted":
        shutil.rmtree(tmp_path / "elsewhere")
    if when == "at Ctrl-C":
        process.kill(signal.SIGINT)
    assert process.wait() == 2
    (line,) = process.err.splitlines()
    assert line.startswith(f"marl: {run}: the checkpoint of step ") and "is gone from where it was" in line
    assert line.endswith("moved, deleted or emptied, and the run can go on where it is now")
    assert not run.exists()
    if fate == "moved":
        assert Checkpoints(tmp_path / "elsewhere" / "checkpoints").load().step % int(often) == 0


# ---- Ctrl-C -------------------------------------------------------------------------------------------------------


def test_ctrl_c_before_the_first_step_is_one_line_and_code_130(capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(marl.recipe, "make_env", interrupt)
    assert main(["train", "maddpg", "mpe/simple_spread_v3"]) == 130
    assert capsys.readouterr().err == "marl: interrupted\n"


def test_finite_means_of_huge_numbers_are_no_false_alarm():
    huge = torch.full((1, 2, 2), 3e38)  # the sum overflows, no number does
    require_finite(huge, "reward", 0, ["a", "b"])
    require_finite(torch.tensor([[[1e38, -1e38], [3e38, 3e38]]]), "reward", 0, ["a", "b"])
