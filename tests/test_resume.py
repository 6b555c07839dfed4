"""A run that is killed at any moment and resumed ends in the same bits as one that never was."""

import os
import random
import re
import shutil
import signal
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from run_tools import BRIEF, SMALL, Marl, differences, metrics, run_marl, same, state

from marl.api import resume, train
from marl.checkpoint import Checkpoints, flatten
from marl.envs import make_env

PAIR = ("--reciprocity.kappa", "0.5", "--agents", "2", "--steps", "200")
INDEX = ("mpe/simple_spread_v3", "--env.continuous", "no", "--steps", "200")
UNLIKE = ("--seeds", "3", "--sweep", "reciprocity.kappa=0,0.5")
CYCLE = ("--cycle-train", "40", "--cycle-distil", "20")
TASKS = {
    "maddpg": ("maddpg", "mpe/simple_spread_v3", "--reciprocity.kappa", "0.5", "--steps", "200"),
    "dqn": (
        *("dqn", "mpe/simple_spread_v3", "--env.continuous", "no", "--steps", "200", "--n-step", "3"),
        *("--duelling", "yes", "--target-interval", "3", "--reciprocity.kappa", "0.5", "--buffer-size", "70"),
    ),
    "population": (
        *("maddpg", "mpe/simple_spread_v3", "--steps", "200", "--seeds", "3", "--sweep", "reciprocity.kappa=0.2,0.5"),
        *("--reciprocity.adjacency", "gaussian", "--reciprocity.graph", "random", "--copies", "2"),
    ),
    "discrete": (
        *("maddpg", "mpe/simple_speaker_listener_v4", "--env.continuous", "no", "--steps", "200"),
        *("--buffer-size", "70"),
    ),
    "mpe2": ("maddpg", "mpe/simple_spread_v3", "--env.engine", "mpe2", "--copies", "2", "--steps", "200"),
    "ddpg": ("ddpg", "mujoco/InvertedPendulum-v5", *PAIR),
    "td3": ("td3", "mujoco/Hopper-v5", *PAIR, "--reciprocity.adjacency", "knn", "--buffer-size", "90"),
    "td3 mpe": ("td3", "mpe/simple_spread_v3", "--steps", "200", "--reciprocity.kappa", "0.5"),
    "mappo": ("mappo", *INDEX, "--rollout", "20", "--minibatches", "2", "--copies", "2", *UNLIKE),
    "mappo with a memory": (
        *("mappo", "mamujoco/Hopper-3x1", "--steps", "200", "--recurrent", "yes", "--rollout", "20", "--shared", "no"),
        *("--reciprocity.kappa", "0.5", "--env.max_episode_steps", "30"),
    ),
    "qmix": ("qmix", *INDEX, "--batch-size", "2", "--update-every", "10", "--target-interval", "3", *UNLIKE),
    "vdn": (
        *("qmix", *INDEX, "--batch-size", "2", "--mixer", "vdn", "--shared", "no", "--td-lambda", "0.5"),
        *("--copies", "2", "--buffer-size", "80", "--reciprocity.kappa", "0.5"),
    ),
    "maptf": ("maptf", "mpe/spread_assigned", "--steps", "200", "--reciprocity.kappa", "0.5"),
    "maptf-mappo": ("maptf-mappo", *INDEX, "--rollout", "20", "--reciprocity.kappa", "0.5"),
    "dvm": ("dvm", "mpe/spread_assigned", "--steps", "200", "--reciprocity.kappa", "0.5", *CYCLE),
    "mamujoco": ("maddpg", "mamujoco/HalfCheetah-2x3", "--steps", "200", "--env.max_episode_steps", "30"),
}
JAX = {
    "smax": (
        *("qmix", "smax/3m", "--steps", "200", "--env.max_steps", "15", "--copies", "2", "--batch-size", "2"),
        *("--update-every", "20", "--target-interval", "3", "--reciprocity.kappa", "0.5"),
    )
}
"""Tasks for interpreters of their own: a process that has JAX's threads must not fork."""


def command(task):
    """All that ``marl train`` is told for a task but its folder."""
    algorithm, environment, *settings = (TASKS | JAX)[task]
    return algorithm, environment, *(BRIEF if algorithm.endswith("mappo") else SMALL), *settings


WORKERS = ("--workers", "2")


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    """Task -> the folder of its uninterrupted run, made once."""
    made = {}

    def run(task):
        if task not in made:
            folder = tmp_path_factory.mktemp("straight") / "run"
            run_marl("train", *command(task), "--run", folder, log=f"{folder}.log", real=task in JAX)
            made[task] = folder
        return made[task]

    return run


def steps_of(task):
    words = command(task)
    return int(words[words.index("--steps") + 1])


def interrupted(task, folder, kills, workers=(), real=False, log="log"):
    """Train, killed ``kills`` times at random moments, then resumed to the end."""
    for i in range(kills):
        if i == 0:
            process = Marl("train", *command(task), *workers, "--run", folder, log=f"{folder}.{i}", real=real)
        else:
            process = Marl("resume", folder, "--quiet", log=f"{folder}.{i}", real=real)
        low = i * steps_of(task) // kills
        moment = random.randrange(low, low + steps_of(task) // kills - 25)
        assert process.kill_at(folder, moment, random.uniform(0, 0.01)) == -signal.SIGKILL
    run_marl("resume", folder, "--quiet", log=f"{folder}.last", real=real)


def test_the_comparison_sees_every_part_of_the_state(never_stopped, tmp_path):
    folder = never_stopped("maddpg")
    other = tmp_path / "other"
    run_marl("train", *command("maddpg"), "--seeds", "1", "--run", other, log=tmp_path / "log")
    found = differences(folder, other)
    for part in (
        *("/learner/actor/flat", "/learner/actor_optimizer", "/learner/explore", "/learner/reciprocity/space"),
        *("/learner/target_critic", "/slots/obs", "/slots/reward", "/buffer/sampler", "/warmup", "/env/world"),
        *("/env/streams", "/metrics", "/view/obs", "metrics.csv"),
    ):
        assert any(part.removesuffix("/flat") in name for name in found), part
    assert differences(folder, folder) == []


@pytest.mark.parametrize("task", TASKS)
def test_a_killed_and_resumed_run_ends_in_the_same_bits(task, never_stopped, tmp_path):
    interrupted(task, tmp_path / "run", kills=2)
    assert differences(never_stopped(task), tmp_path / "run") == []


@pytest.mark.parametrize("task", ["mpe2", "ddpg"])
def test_so_does_one_whose_environments_live_in_worker_processes(task, never_stopped, tmp_path):
    interrupted(task, tmp_path / "run", kills=1, workers=WORKERS)
    assert differences(never_stopped(task), tmp_path / "run") == []


def test_so_does_the_installed_command_with_workers(never_stopped, tmp_path):
    interrupted("td3", tmp_path / "run", 1, WORKERS, real=True)
    assert differences(never_stopped("td3"), tmp_path / "run") == []


@pytest.mark.jax
def test_so_does_one_in_smax(never_stopped, tmp_path):
    """Its compiled programs, random keys and half-fought battles included."""
    pytest.importorskip("jaxmarl")
    interrupted("smax", tmp_path / "run", kills=1, real=True)
    assert differences(never_stopped("smax"), tmp_path / "run") == []


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_kill_while_a_checkpoint_is_written_costs_nothing(after, never_stopped, tmp_path):
    """A checkpoint is three files; the kill comes when ``after`` of the third checkpoint's are done, or half done."""
    folder = tmp_path / "run"

    def kill_later():
        import marl.checkpoint

        write, count = marl.checkpoint.write_atomically, [0]

        def write_or_die(path, data):
            # Step 0 has no time slots, and so two files; step 35 has three.
            if count[0] == 2 + 3 + after:
                path.with_name(path.name + ".tmp").write_bytes(data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1
            write(path, data)

        marl.checkpoint.write_atomically = write_or_die

    process = Marl("train", *command("maddpg"), "--run", folder, log=tmp_path / "log", before=kill_later)
    assert process.wait() == -signal.SIGKILL
    assert Checkpoints(folder / "checkpoints").load().step == (35 if after < 3 else 70)
    run_marl("resume", folder, "--quiet", log=tmp_path / "log")
    assert differences(never_stopped("maddpg"), folder) == []
    assert not list((folder / "checkpoints").glob("*.tmp"))


def test_a_kill_during_the_very_first_evaluation_costs_nothing(never_stopped, tmp_path):
    folder = tmp_path / "run"

    def die_in_evaluation():
        import marl.evaluation

        marl.evaluation.Evaluator.__call__ = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    process = Marl("train", *command("maddpg"), "--run", folder, log=tmp_path / "log", before=die_in_evaluation)
    assert process.wait() == -signal.SIGKILL
    run_marl("resume", folder, "--quiet", log=tmp_path / "log")
    assert differences(never_stopped("maddpg"), folder) == []


@pytest.mark.parametrize("shared", [(), ("--engine", "processes", "--workers", "2")], ids=["local", "engine"])
def test_what_was_killed_before_it_could_be_resumed_begins_anew_with_the_same_command(shared, never_stopped, tmp_path):
    folder = tmp_path / "run"

    def die_before_the_configuration():
        import marl.parts
        import marl.session

        marl.session.write_config = marl.parts.write_config = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    words = ("train", *command("population" if shared else "maddpg"), *shared, "--run", folder)
    process = Marl(*words, log=tmp_path / "log", before=die_before_the_configuration)
    assert process.wait() == -signal.SIGKILL
    assert {path.name for path in folder.iterdir()} > {".lock"} and not (folder / "config.json").exists()
    run_marl(*words, log=tmp_path / "log")
    if not shared:
        assert differences(never_stopped("maddpg"), folder) == []


@pytest.mark.parametrize("number, moment", [(signal.SIGINT, 24), (signal.SIGTERM, 60)])
def test_a_stop_request_saves_says_so_in_one_line_and_exits_with_130(number, moment, never_stopped, tmp_path):
    folder = tmp_path / "run"
    process = Marl("train", *command("ddpg"), "--run", folder, log=tmp_path / "log")
    assert process.kill_at(folder, moment, number=number) == 130
    (line,) = process.err.splitlines()
    step = int(
        re.fullmatch(rf"marl: stopped at step (\d+), everything saved; go on with: marl resume {folder}", line)[1]
    )
    assert Checkpoints(folder / "checkpoints").load().step == step
    run_marl("resume", folder, "--quiet", log=tmp_path / "log")
    assert differences(never_stopped("ddpg"), folder) == []


def test_so_does_one_in_the_midst_of_an_evaluation(never_stopped, tmp_path):
    folder = tmp_path / "run"

    def stop_in_the_second():
        import marl.evaluation

        play, count = marl.evaluation.Evaluator.__call__, [0]

        def stopped(evaluator, learner, on_step):
            count[0] += 1
            if count[0] == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return play(evaluator, learner, on_step)

        marl.evaluation.Evaluator.__call__ = stopped

    process = Marl("train", *command("ddpg"), "--run", folder, log=tmp_path / "log", before=stop_in_the_second)
    assert process.wait() == 130
    assert Checkpoints(folder / "checkpoints").load().state["evaluation_due"]
    run_marl("resume", folder, "--quiet", log=tmp_path / "log")
    assert differences(never_stopped("ddpg"), folder) == []


def test_more_steps_go_on_to_where_a_longer_run_would_be(never_stopped, tmp_path):
    folder = tmp_path / "run"
    run_marl("train", *command("maddpg"), "--run", folder, "--steps", "200", log=tmp_path / "log")
    run_marl("resume", folder, "--quiet", "--steps", "200", log=tmp_path / "log")
    assert differences(never_stopped("maddpg"), folder) == []
    # Where the shorter run does not end at an evaluation, its closing evaluation stays in the log, and nothing else.
    other = tmp_path / "other"
    run_marl("train", *command("maddpg"), "--run", other, "--steps", "130", log=tmp_path / "log")
    run_marl("resume", other, "--quiet", "--steps", "200", log=tmp_path / "log")
    assert differences(never_stopped("maddpg"), other) == ["metrics.csv"]
    extra = [row for row in metrics(other) if row not in metrics(folder)]
    assert {(row["step"], row["metric"].split("/")[0]) for row in extra} == {("130", "eval")}


def test_resuming_a_finished_run_changes_nothing(never_stopped, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(never_stopped("maddpg"), folder)
    assert f"run: {folder}" in run_marl("resume", folder, "--quiet", log=tmp_path / "log")
    assert differences(never_stopped("maddpg"), folder) == []


def test_a_damaged_last_checkpoint_costs_a_detour_and_no_bit(never_stopped, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(never_stopped("maddpg"), folder)
    next((folder / "checkpoints").glob("000000000200-*")).write_bytes(b"damaged")
    process = Marl("resume", folder, "--quiet", log=tmp_path / "log")
    assert process.wait() == 0
    (line,) = process.err.splitlines()
    assert "000000000200.json cannot be used" in line and line.endswith("going on from the checkpoint of step 175")
    assert differences(never_stopped("maddpg"), folder) == []


class Drift(gymnasium.Env):
    """Reward 1 a step for 30 steps, the observation being their number; a stranger, whose state nobody can save."""

    observation_space = gymnasium.spaces.Box(0.0, 30.0, (1,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.held = iter(range(1, 31))
        return np.zeros(1, np.float32), {}

    def step(self, action):
        step = next(self.held)
        return np.float32([step]), 1.0, step == 30, False, {}


def test_an_environment_that_cannot_be_saved_says_so_and_goes_on(tmp_path):
    folder, task = tmp_path / "run", ("ddpg", "gym/Drift-v0")

    def register():
        gymnasium.register("Drift-v0", Drift)

    process = Marl("train", *task, *SMALL, "--run", folder, "--steps", "100", log=tmp_path / "log", before=register)
    killed = process.kill_at(folder, 60)
    assert (killed, process.err.count("\n")) == (-signal.SIGKILL, 1)
    assert f"the state of {task[1]} cannot be saved; a resumed run starts new episodes" in process.err
    process = Marl("resume", folder, "--quiet", log=tmp_path / "log", before=register)
    assert process.wait() == 0, process.err
    (line,) = process.err.splitlines()
    assert line == f"note: the state of {task[1]} could not be saved; new episodes start"
    register()
    step, tensors, values = state(folder)
    # The newest observation of step 35 takes a slot of its own that is never sampled; nothing was lost by a worker.
    assert (step, values["/buffer/written"], values["/restarts"]) == (100, 101, 0)
    assert tensors["/slots/lost"].flatten().nonzero().tolist() == [[35]]
    # Step 35 is the 5th of the second episode. No transition leads from there into the new one, which begins at 0.
    assert tensors["/slots/obs"].flatten()[33:38].tolist() == [3.0, 4.0, 5.0, 0.0, 1.0]
    assert [row["value"] for row in metrics(folder) if row["metric"] == "train/return_mean"] == ["30.0"] * 3


class Chance(Drift):
    """Shows where each episode of three steps began: at a random number."""

    def reset(self, seed=None, options=None):
        gymnasium.Env.reset(self, seed=seed)
        self.begun, self.held = self.np_random.uniform(0, 30), iter(range(3))
        return np.float32([self.begun]), {}

    def step(self, action):
        return np.float32([self.begun]), 0.0, next(self.held) == 2, False, {}


def test_an_environment_that_cannot_be_saved_plays_other_episodes_after_each_resume(tmp_path):
    gymnasium.register("Chance-v0", Chance)
    folder = train("ddpg", "gym/Chance-v0", run=tmp_path / "run", steps=30, warmup=10, eval_every=0, hidden=(4,))
    for steps in (60, 90):
        resume(folder, steps=steps)
    begun = state(folder)[1]["/slots/obs"].flatten()
    assert len(begun.unique()) == 32  # ten a time, none of them twice, and two that were given up as they began


def test_so_does_the_original_starcraft_whose_battles_begin_anew(tmp_path, monkeypatch):
    for part in ("Versions", "Maps/SMAC_Maps"):
        (tmp_path / "game" / part).mkdir(parents=True)
    monkeypatch.setenv("SC2PATH", str(tmp_path / "game"))
    monkeypatch.syspath_prepend(Path(__file__).parent / "envs" / "standin")
    folder, task = tmp_path / "run", ("qmix", "smac/3m", "--batch-size", "2", "--eval-every", "0")
    process = Marl("train", *task[:2], *SMALL, *task[2:], "--run", folder, "--steps", "100", log=tmp_path / "log")
    killed = process.kill_at(folder, 60)
    assert (killed, process.err) == (
        -signal.SIGKILL,
        "note: the state of smac/3m cannot be saved; a resumed run starts new episodes\n"
        "note: nothing will be learnt: 100 steps end before the first update is due\n",
    )
    process = Marl("resume", folder, "--quiet", log=tmp_path / "log")
    assert process.wait() == 0, process.err
    assert process.err == "note: the state of smac/3m could not be saved; new episodes start\n"
    assert state(folder)[0] == 100


@pytest.mark.parametrize("task", ["InvertedPendulum-v5", "Hopper-v5"])
def test_a_saved_mujoco_state_holds_nothing_that_memory_happened_to_hold(task):
    """Not even a reset clears all arrays of MjData; what is in the others' memory must not be in a checkpoint."""
    saved = []
    for rubbish in (0, 1):
        env = make_env(f"mujoco/{task}", seeds=[0])
        world = env.pool.copies[0].env.unwrapped
        arrays = [getattr(world.data, n) for n in dir(world.data) if n.startswith(("iLD", "iM", "map_", "tree_island"))]
        for array in arrays:
            array[...] = rubbish
        env.reset()
        for _ in range(5):
            env.step(torch.zeros(1, 1, 1, env.spec.action_size))
        saved.append(flatten(env.state_dict()["copies"]["0"])[0])
    assert len(arrays) > 3 and all(same(saved[0][name], saved[1][name]) for name in saved[0])
