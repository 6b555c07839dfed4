"""A team whose agents live in several workers, which die: the numbers stay those of a team that nothing befell."""

import dataclasses
import pickle

import pytest
import torch
from lifelong_tools import TINY

from marl.checkpoint import flatten
from marl.engines import Gone
from marl.engines.local import LocalEngine
from marl.lifelong import agent
from marl.lifelong.agent import Plan, Team
from marl.lifelong.shard import Shard
from marl.lifelong.tasks import Tasks
from marl.types import UserError

THREE = dataclasses.replace(TINY, agents=3)
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


def team(folder, engine, options=THREE, workers=2, orders=ORDERS):
    options, plan = dataclasses.replace(options, workers=workers), Plan("team", len(orders), True, 10.0)
    made = Team(options, 5, Tasks.of(options.tasks, options.env), plan, folder / "team", engine)
    made.sequence.table = torch.tensor(orders).T.contiguous()
    made.total = len(orders[0]) * made.steps
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


def test_how_an_agent_explores_after_it_borrowed_does_not_depend_on_who_shares_its_process(tmp_path):
    """In round 2 agent 1 borrows what both learnt while agent 0 plays on; in round 3 it plays, always at random."""
    tasks, config = (*TINY.tasks, "small/gates"), dataclasses.replace(TINY.dqn, epsilon_final=1.0)
    options = dataclasses.replace(TINY, tasks=tasks, dqn=config)
    played = []
    for workers in (1, 2):
        made = team(tmp_path / str(workers), LocalEngine(), options, workers, orders=[[0, 1, 1], [0, 0, 2]])
        while made.done < made.total:
            made.advance()
        known = made.hub.fetch(3, "reader")
        played.append((known.agent, known.transitions["action"].tolist()))
        made.close()
    assert played[0][0] == "agent_1"
    assert played[0] == played[1]


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


# ---- what is lost with a worker, and what not ----------------------------------------------------------------------


def everything(made):
    """Of all workers after the last round: networks, anchors, memories, and where all random streams stand."""
    return flatten({str(k): state for k, state in enumerate(made.saved)})


def assert_same(made, other):
    (tensors, values), (others, same) = everything(made), everything(other)
    assert values == same and tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


@pytest.mark.parametrize("method, first, save_after", [("advance", 60, None), ("share", 4, 30), ("identify", 6, 5)])
def test_memories_and_networks_are_the_same_bit_for_bit_after_a_death(tmp_path, method, first, save_after):
    made = [team(tmp_path / name, engine) for name, engine in (("a", Perilous()), ("b", Perilous(method, first)))]
    run(made[0])
    run(made[1], save_after)
    assert any("memories" in name and "obs" in name for name in everything(made[0])[0])
    assert_same(*made)


def test_a_borrower_whose_process_dies_after_the_hub_dropped_what_it_borrowed_still_has_it(tmp_path):
    """In round 2 agent 0 shares the second task, which drives out the first, before agent 1, which borrowed that."""
    orders = [[0, 1], [0, 0]]
    run(team(tmp_path / "unlimited", Perilous(), TINY, orders=orders))
    replays = (tmp_path / "unlimited" / "team" / "hub" / "tensors").glob("*-replay-*")
    one = dataclasses.replace(TINY, hub_bytes=max(path.stat().st_size for path in replays))
    engines = {"lives": Perilous(), "dies": Perilous("share", first=4)}  # two workers share in each round
    made = [team(tmp_path / name, engine, one, orders=orders) for name, engine in engines.items()]
    rows = [run(each) for each in made]
    assert [row.value for row in rows[0] if row.metric == "frames"] == [2 * STEPS, 3 * STEPS]  # it did borrow
    (left,) = (tmp_path / "lives" / "team" / "hub" / "tensors").glob("*-replay-*")
    assert left.name.startswith("000002-")  # the second task
    assert_same(*made)


@pytest.mark.parametrize("first", [25, 26, 27])
def test_an_evaluation_that_is_due_while_a_lost_worker_catches_up_is_written_down(straight, tmp_path, first):
    """Piece 12 ends at step 48, where the second of two evaluations is due; the checkpoint is taken just before it."""
    rows = run(team(tmp_path, Perilous("advance", first)), save_after=12)
    assert but_traffic(rows) == but_traffic(straight)


@pytest.mark.parametrize("first", [20, 25, 45, 47])
def test_a_worker_that_catches_up_faster_than_it_was_gets_no_further_than_the_rounds_end(
    straight, tmp_path, monkeypatch, first
):
    """After a death a call lasts for five steps instead of one."""
    engine, one_step = Perilous("advance", first), Shard.advance

    def faster(self, seconds):
        points = []
        for _ in range(5 if engine.seen >= first else 1):
            reached, more = one_step(self, 0.0)
            points += more
        return reached, points

    monkeypatch.setattr(Shard, "advance", faster)
    assert but_traffic(run(team(tmp_path, engine))) == but_traffic(straight)


def test_to_advance_where_the_round_is_over_does_nothing(tmp_path):
    made = team(tmp_path, LocalEngine(), workers=1)
    made.advance()
    alone = made.crew.workers[0].made[1]
    while alone.now.done < STEPS:
        alone.advance(0.0)
    before = alone.learner.critic.flat.data.clone()
    assert alone.advance(0.0) == (STEPS, [])
    assert alone.now.done == STEPS and torch.equal(alone.learner.critic.flat.data, before)
    made.close()


def test_it_goes_on_with_as_many_workers_as_it_began_with_though_the_machine_has_fewer_cores(straight, tmp_path):
    two, one = Perilous(), Perilous()
    two.capacity, one.capacity = 2, 1
    first, rows = team(tmp_path, two, workers=None), []
    for _ in range(30):
        rows += first.advance()
    state = pickle.loads(pickle.dumps(first.state_dict()))
    first.close()
    second = team(tmp_path, one, workers=None)
    second.load_state_dict(state)
    assert second.groups == [[0, 1], [2]]
    assert but_traffic(rows + run(second)) == but_traffic(straight)
