"""A team whose agents live in several workers, which die: the numbers stay those of a team that nothing befell."""

import dataclasses
import pickle

import pytest
import torch

from marl.algos.dqn import DQNConfig
from marl.engines import Gone
from marl.engines.local import LocalEngine
from marl.lifelong import agent
from marl.lifelong.agent import Plan, Team
from marl.lifelong.options import LifelongOptions
from marl.lifelong.tasks import Tasks
from marl.types import UserError

TINY = LifelongOptions(
    tasks=("small/catch", "small/gather"),
    agents=3,
    frames=96,
    copies=4,
    identify="told",
    ewc_samples=4,
    evals=2,
    eval_episodes=2,
    dqn=DQNConfig(hidden=(8,), warmup=40, batch_size=8),
    env={"max_steps": 8},
)
STEPS = 96
ORDERS = [[0, 1, 0], [1, 0, 1], [0, 1, 1]]


class Perishable:
    """A worker that dies at a call of ``method``: the first ``deaths`` of them all over the engine that reach it."""

    def __init__(self, engine, kind, arguments):
        self.engine, self.inner, self.dead = engine, LocalEngine().place(kind, *arguments), False

    def call(self, method, *arguments):
        self.engine.calls.append(method)
        if method == self.engine.method:
            self.engine.seen += 1
            self.dead |= self.engine.first <= self.engine.seen < self.engine.first + self.engine.deaths
        return Dead() if self.dead else Travelled(self.inner.call(method, *travelled(arguments)))

    def kill(self):
        pass


class Travelled:
    """The answer of another process: a copy."""

    def __init__(self, call):
        self.call = call

    def result(self):
        return travelled(self.call.result())


def travelled(value):
    return pickle.loads(pickle.dumps(value))


class Dead:
    def result(self):
        raise Gone


class Perilous(LocalEngine):
    def __init__(self, method="", first=1, deaths=1):
        self.method, self.first, self.deaths, self.seen, self.calls = method, first, deaths, 0, []

    def place(self, kind, *arguments):
        return Perishable(self, kind, arguments)


def team(folder, engine, options=TINY, workers=2):
    options = dataclasses.replace(options, workers=workers)
    made = Team(options, 5, Tasks.of(options.tasks, options.env), Plan("team", 3, True, 10.0), folder / "team", engine)
    made.sequence.table = torch.tensor(ORDERS).T.contiguous()
    made.total = len(ORDERS[0]) * made.steps
    return made


def run(made, save_after=None):
    """All rows; a checkpoint is taken after so many pieces of work."""
    rows, pieces = [], 0
    while made.done < made.total:
        rows += made.advance()
        pieces += 1
        if pieces == save_after:
            made.state_dict()
    made.close()
    return rows


@pytest.fixture(autouse=True)
def step_by_step(monkeypatch):
    monkeypatch.setattr(agent, "SECONDS", 0.0)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent, "SECONDS", 0.0)
        return run(team(tmp_path_factory.mktemp("straight"), Perilous()))


def but_traffic(rows):
    """What is shared twice since its worker died in between has travelled twice."""
    return [row for row in rows if "traffic" not in row.metric]


def test_agents_in_two_workers_come_to_the_numbers_of_agents_in_one(straight, tmp_path):
    together = run(team(tmp_path, LocalEngine(), workers=1))
    assert [row[:3] for row in together] == [row[:3] for row in straight]
    returns = [[row.value for row in rows if row.metric == "agent_return"] for rows in (together, straight)]
    assert returns[0] == pytest.approx(returns[1], abs=1e-6)


@pytest.mark.parametrize("save_after", [None, 3])
@pytest.mark.parametrize(
    "method, first",
    [
        *[("identify", 1), ("identify", 4), ("begin", 2), ("begin", 5), ("advance", 1), ("advance", 30)],
        *[("advance", 77), ("end", 1), ("end", 4), ("share", 2), ("share", 3), ("state_dict", 1)],
    ],
)
def test_a_worker_that_dies_is_placed_anew_and_the_numbers_stay(straight, tmp_path, method, first, save_after):
    if method == "state_dict" and save_after is None:
        pytest.skip("is asked for a checkpoint only")
    engine = Perilous(method, first)
    rows = run(team(tmp_path, engine), save_after)
    assert engine.seen > first  # it was asked once more
    assert but_traffic(rows) == but_traffic(straight)


def test_the_worker_that_takes_over_may_die_too(straight, tmp_path):
    rows = run(team(tmp_path, Perilous("advance", 20, deaths=3)))
    assert but_traffic(rows) == but_traffic(straight)


def test_a_worker_that_dies_again_and_again_ends_the_run_with_one_line(tmp_path):
    with pytest.raises(UserError, match=r"team: the process of agent_2 died 5 times without any progress"):
        run(team(tmp_path, Perilous("advance", 20, deaths=10**9)))


def test_it_is_said_whose_process_died(tmp_path, caplog):
    run(team(tmp_path, Perilous("end", 2)))
    assert caplog.messages == ["team: the process of agent_2 died; they begin where they were last saved"]
