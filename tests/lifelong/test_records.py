"""What a team writes down does not depend on which of its workers speaks first, and each gets its own agents' part."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.lifelong.crew import Crew
from marl.lifelong.records import Records

TASKS = ["small/catch", "small/gather"]
AGENTS, EVALS = 4, 3  # evaluations 0, 1, 2 and the last, 3
NOW = [0, 1, 1, 0]
SCORES = torch.arange(8.0).view(AGENTS, 2)


def report(records, number, agents):
    """Agent i's score is ten times the number and i, its frames a hundred times the number and i."""
    records.evaluated(number, agents, [10.0 * number + i for i in agents], [100 * number + i for i in agents])


def whole_round(records, reports):
    records.begin(NOW)
    for number, agents in reports:
        report(records, number, agents)
    records.end(SCORES, [100, 0, 100, 0], 50, [7] * AGENTS)


def expected():
    """Two rounds of one worker that reports everything in order."""
    records = Records("team", TASKS, AGENTS)
    for _ in range(2):
        whole_round(records, [(number, list(range(AGENTS))) for number in range(EVALS + 1)])
    return records


@st.composite
def stories(draw):
    """Which worker has which agents, and one round's reports in any order, some of them twice."""
    worker = draw(st.lists(st.integers(0, 2), min_size=AGENTS, max_size=AGENTS))
    groups = [[i for i in range(AGENTS) if worker[i] == k] for k in sorted(set(worker))]
    all_reports = [(number, agents) for number in range(EVALS + 1) for agents in groups]
    return draw(st.permutations(all_reports + draw(st.lists(st.sampled_from(all_reports), max_size=4))))


@settings(max_examples=60)
@given(first=stories(), second=stories(), stop=st.integers(0, 20))
def test_the_rows_are_the_same_in_whatever_order_workers_report_also_twice_and_over_a_checkpoint(first, second, stop):
    records, rows = Records("team", TASKS, AGENTS), []
    whole_round(records, first)
    records.begin(NOW)
    for k, (number, agents) in enumerate(second):
        if k == stop:
            rows += records.take()
            state = json.loads(json.dumps(records.state_dict()))
            records = Records("team", TASKS, AGENTS)
            records.load_state_dict(state)
        report(records, number, agents)
    records.end(SCORES, [100, 0, 100, 0], 50, [7] * AGENTS)
    straight = expected()
    assert rows + records.take() == straight.take()
    assert records.state_dict() == straight.state_dict()


def test_rows_come_once_all_agents_were_evaluated_and_in_the_order_of_the_agents():
    records = Records("team", TASKS, AGENTS)
    records.begin(NOW)
    report(records, 1, [2, 3])
    report(records, 0, [2, 3])
    report(records, 0, [1])
    assert records.rows == []  # nobody has heard of agent 0
    report(records, 0, [0])
    returns = [(row.series, row.x, row.value) for row in records.take() if row.metric == "learning_return"]
    assert returns == [
        ("team: catch, agent 0", 0, 0.0),
        ("team: gather, agent 1", 0, 1.0),
        ("team: gather, agent 2", 0, 2.0),
        ("team: catch, agent 3", 0, 3.0),
    ]
    report(records, 1, [0, 1])  # the others said theirs before
    assert [row.value for row in records.take() if row.metric == "learning_return"] == [10.0, 11.0, 12.0, 13.0]


def test_what_was_counted_is_not_counted_twice():
    records = Records("team", TASKS, AGENTS)
    records.begin(NOW)
    report(records, 0, [0, 1, 2, 3])
    before = records.take()
    report(records, 0, [0, 1, 2, 3])
    assert len(before) == 2 * AGENTS and records.rows == [] and records.waiting == {}


# ---- the crew ------------------------------------------------------------------------------------------------------


class Echo:
    """A worker that answers with what it was asked."""

    def call(self, method, *arguments):
        self.said = (method, *arguments)
        return self

    def result(self):
        return self.said


def crew(groups):
    return Crew("team", groups, lambda agents: Echo(), lambda *_: None)


def test_a_list_is_divided_among_the_workers_by_their_agents_and_all_else_goes_to_each():
    table = torch.arange(3)
    made = crew([[0, 1], [2]])
    assert made.part(0, (7, ["a", "b", "c"], None)) == (7, ["a", "b"], None)
    assert made.part(1, (7, ["a", "b", "c"], (1, 2, 3), table)) == (7, ["c"], (1, 2, 3), table)
    assert made.ask_all("begin", 7, ["a", "b", "c"]) == [("begin", 7, ["a", "b"]), ("begin", 7, ["c"])]


@given(agents=st.integers(1, 9), workers=st.integers(1, 9))
def test_the_parts_of_all_workers_together_are_the_list(agents, workers):
    groups = [part.tolist() for part in torch.arange(agents).tensor_split(min(workers, agents))]
    names = [f"agent_{i}" for i in range(agents)]
    parts = [part for _, part in crew(groups).ask_all("greet", names)]
    assert [name for part in parts for name in part] == names
    assert [len(part) for part in parts] == [len(group) for group in groups]


def test_a_list_that_lacks_an_agent_is_not_divided():
    with pytest.raises(IndexError):
        crew([[0, 1], [2]]).ask_all("begin", ["a", "b"])
