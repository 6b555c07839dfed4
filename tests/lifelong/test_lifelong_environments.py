"""Lifelong tasks from Gymnasium and MinAtar, options of environments, and what is refused before anything is done."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from marl import cli
from marl.algos.dqn import DQNConfig
from marl.classic.experiments.base import Row
from marl.lifelong.experiment import Lifelong
from marl.lifelong.options import LifelongOptions
from marl.lifelong.shard import Shard
from marl.lifelong.tasks import Tasks

needs_minatar = pytest.mark.skipif(find_spec("minatar") is None, reason="the extra `minatar` is not installed")

EPISODES = itertools.count(1)


class Diary(gymnasium.Env):
    """Observes the number of the episode, which no other one ever had, and the step. It cannot be saved."""

    made: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, length: int = 5, ink: int = 0) -> None:
        self.action_space, self.observation_space = Discrete(3), Box(0, np.inf, (2,))
        self.length = length
        self.made.append((length, ink))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.page = np.array([next(EPISODES), 0], np.float32)
        return self.page.copy(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.page[1] += 1
        return self.page.copy(), 1.0, bool(self.page[1] >= self.length), False, {}


gymnasium.register("marl-lifelong/Diary-v0", entry_point=Diary, max_episode_steps=7)
gymnasium.register("marl-lifelong/Diary-v1", entry_point=Diary, max_episode_steps=3)

TINY = LifelongOptions(
    tasks=("gym/marl-lifelong/Diary-v0", "gym/marl-lifelong/Diary-v1"),
    agents=2,
    frames=96,
    copies=4,
    identify="told",
    ewc_samples=4,
    evals=1,
    eval_episodes=1,
    dqn=DQNConfig(hidden=(8,), warmup=40, batch_size=8),
)
SETTINGS = {
    "agents": 2,
    "frames": 80,
    "copies": 4,
    "identify": "told",
    "ewc-samples": 4,
    "evals": 1,
    "eval-episodes": 1,
    "dqn.hidden": 8,
    "dqn.warmup": 40,
    "dqn.batch-size": 8,
    "seeds": 1,
}


def test_tasks_that_cannot_be_saved_go_on_in_new_episodes_and_nothing_leads_over_the_break() -> None:
    tasks = Tasks.of(TINY.tasks, {})

    def make() -> Shard:
        return Shard(TINY, tasks, [0, 1], [3, 4], 0.0, None)

    shard, breaks = make(), 0
    shard.begin(0, [0, 1], None)
    while (done := shard.advance(0.0)[0]) < shard.steps:
        if done % 16 == 0:
            state, last = shard.state_dict(), next(EPISODES)
            shard = make()
            shard.load_state_dict(state)
            breaks += 1
            assert shard.now is not None
            assert (shard.now.view.obs[..., 0] > last).all()
        if done > 4:
            assert shard.now is not None
            batch = shard.now.draw(100)
            assert torch.equal(batch.obs[..., 0], batch.next_obs[..., 0]), "of one episode"
            assert torch.equal(batch.obs[..., 1] + 1, batch.next_obs[..., 1])
    assert breaks == 5


def test_new_episodes_after_a_state_that_cannot_be_saved_are_said(caplog: pytest.LogCaptureFixture) -> None:
    shard = Shard(TINY, Tasks.of(TINY.tasks, {}), [0, 1], [3, 4], 0.0, None)
    shard.begin(0, [0, 1], None)
    shard.load_state_dict(shard.state_dict())
    what = "its state cannot be saved: every copy begins a new episode"
    assert caplog.messages == [f"{task}: {what}" for task in TINY.tasks]


@pytest.mark.parametrize("identify", ["told", "simnet"])
def test_options_of_the_environments_reach_every_one_that_is_made(identify: Any, tmp_path: Path) -> None:
    """To train, to evaluate, to know the task: all have an ``ink`` of 3."""
    Diary.made.clear()
    options = dataclasses.replace(TINY, env={"length": 4, "ink": 3}, identify=identify, identify_steps=1001, rounds=1)
    run = Lifelong(options, 0)
    run.house(tmp_path)
    while run.done < run.total:
        run.advance()
    assert set(Diary.made) == {(4, 3)}
    assert len(Diary.made) > 2 * 4 + 2, "copies of the task, and evaluations"


def command(folder: Path, tasks: str, *more: str) -> int:
    words = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
    return cli.main(["lifelong", tasks, *words, *more, "--run", str(folder), "--json", "--quiet"])


def read(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


def test_gymnasium_tasks_by_the_command_and_resumed_to_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CartPole's own time limits, 500 and 200, are both changed."""
    run = tmp_path / "run"
    assert command(run, "gym/CartPole-v0,gym/CartPole-v1", "--env.max-episode-steps", "9") == 0
    found = {row["name"]: row["mean"] for row in json.loads(capsys.readouterr().out)["findings"]}
    assert 5 < found["shared: CartPole-v1"] <= 9 and 5 < found["shared: CartPole-v0"] <= 9
    assert read(run)["options"]["env"] == {"max_episode_steps": 9}
    rows = (run / "results.csv").read_bytes()
    (run / "results.csv").unlink()
    assert cli.main(["resume", str(run), "--json", "--quiet"]) == 0
    assert (run / "results.csv").read_bytes() == rows


@needs_minatar
def test_minatar_tasks_are_learnt_side_by_side(tmp_path: Path) -> None:
    tasks, env = ("minatar/Breakout", "minatar/Seaquest"), {"sticky": 0.0, "max_steps": 9}
    options = dataclasses.replace(TINY, tasks=tasks, env=env, frames=48)
    run = Lifelong(options, 0)
    run.house(tmp_path)
    rows: list[Row] = []
    while run.done < run.total:
        rows += run.advance()
    assert {row.series for row in rows if row.metric == "return"} >= {"shared: Breakout", "shared: Seaquest"}


def test_atari_tasks_without_ale_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    assert command(tmp_path / "run", "atari/Alien-ram,atari/Krull-ram") == 2
    said = capsys.readouterr().err
    assert "atari/* needs ale-py: pip install" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("tasks", "more", "message"),
    [
        (
            "gym/CartPole-v1,gym/Acrobot-v1",
            "",
            "tasks need equal spaces: gym/CartPole-v1 has observations of 4 and 2 actions, "
            "gym/Acrobot-v1 has observations of 6 and 3 actions",
        ),
        ("gym/Pendulum-v1", "", "gym/Pendulum-v1 has continuous actions"),
        ("gym/CartPole-v1", "--env.wheels 3", "gym/CartPole-v1 does not take these keywords"),
        ("small/catch", "--env.sticky 0", "env.sticky"),
        ("small/catch", "--env.max-steps 0", "max_steps: expected 1 or more, got 0"),
        ("small/catch", "--identify simnet --identify-steps 1000", "identify_steps: expected more than the 1000 of"),
        ("small/catch", "--dqn.warmup 1000 --frames 500", "frames: expected more than 1000 (dqn.warmup 1000, copies "),
        ("small/catch", "--frames 100 --copies 1000 --evals 1", "frames: expected more than 1000 (dqn.warmup 40, "),
        ("small/catch", "--dqn.conv nature", "conv: nature needs pictures of 36 x 36 pixels or more, got 10 x 10"),
        ("small/catch", "--threshold 2", "threshold 2: expected --identify simnet with it, got told"),
        ("small/catch", "--identify simnet --isolated --threshold 2", "threshold 2: expected a hub to use it, got"),
        ("small/catch", "--isolated --hub-bytes 1000", "hub_bytes 1000: expected a hub to use it, got --isolated"),
        ("small/catch", "--rehearse .1", "rehearse: expected 0, or a row or more of a batch of 8, got 0.1"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_makes_no_folder(
    tasks: str, more: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path / "run", tasks, *more.split()) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()
