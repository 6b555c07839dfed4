"""Which agent meets which task: what is drawn, what it depends on, and going on where it stood."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.lifelong.sequence import TaskSequence
from marl.types import UserError

COUNTS = st.integers(1, 6)
DRAWS = st.sampled_from(["permutation", "uniform"])


@settings(max_examples=50)
@given(tasks=COUNTS, agents=COUNTS, cycles=COUNTS, seed=st.integers(0, 1000))
def test_a_permutation_shows_every_agent_every_task_once_a_cycle(tasks, agents, cycles, seed):
    table = TaskSequence(tasks, agents, cycles * tasks, "permutation", seed).table
    for cycle in table.split(tasks):
        assert torch.equal(cycle.sort(0).values, torch.arange(tasks).unsqueeze(1).expand(-1, agents))


@settings(max_examples=50)
@given(tasks=COUNTS, agents=COUNTS, rounds=COUNTS, draws=DRAWS, seed=st.integers(0, 1000))
def test_more_agents_or_rounds_leave_those_before_as_they_were(tasks, agents, rounds, draws, seed):
    few = TaskSequence(tasks, agents, rounds, draws, seed).table
    many = TaskSequence(tasks, agents + 2, rounds + 5, draws, seed).table
    assert few.shape == (rounds, agents)
    assert torch.equal(many[:rounds, :agents], few)


def test_agents_cycles_and_seeds_have_orders_of_their_own():
    table = TaskSequence(10, 2, 20, "permutation", 0).table
    assert not torch.equal(table[:10, 0], table[:10, 1])
    assert not torch.equal(table[:10, 0], table[10:, 0])
    assert not torch.equal(table, TaskSequence(10, 2, 20, "permutation", 1).table)


def test_uniform_draws_are_uniform_and_may_repeat():
    """6000 draws of 3 tasks: 2000 each, with a deviation of sqrt(6000 * 1/3 * 2/3) = 36.5."""
    table = TaskSequence(3, 20, 300, "uniform", 0).table
    assert ((torch.bincount(table.flatten()) - 2000).abs() < 4 * 36.5).all()
    again = (table[1:] == table[:-1]).float().mean().item()  # a third of 5980, with a deviation of .006
    assert again == pytest.approx(1 / 3, abs=0.025)


def test_rounds_pass_one_by_one():
    sequence = TaskSequence(2, 1, 3, "uniform", 0)
    sequence.table = torch.tensor([[1], [1], [0]])
    seen = []
    while not sequence.finished:
        seen.append(sequence.now())
        sequence.advance()
    assert seen == [[1], [1], [0]]
    with pytest.raises(IndexError):
        sequence.now()


def test_it_goes_on_in_the_round_in_which_it_was_saved_also_with_rounds_added():
    sequence = TaskSequence(5, 2, 5, "permutation", 7)
    sequence.advance()
    sequence.advance()
    longer = TaskSequence(5, 2, 9, "permutation", 7)
    longer.load_state_dict(sequence.state_dict())
    assert longer.round == 2 and longer.now() == sequence.now()


@pytest.mark.parametrize("other", [(5, 2, 5, "permutation", 8), (5, 3, 5, "permutation", 7), (5, 2, 1, "uniform", 7)])
def test_to_go_on_with_other_tasks_than_before_is_refused(other):
    sequence = TaskSequence(5, 2, 5, "permutation", 7)
    sequence.advance()
    sequence.advance()
    with pytest.raises(UserError, match="the 2 rounds that are over"):
        TaskSequence(*other).load_state_dict(sequence.state_dict())


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ((0, 1, 1, "uniform", 0), "tasks: expected 1 or more, got 0"),
        ((1, 0, 1, "uniform", 0), "agents"),
        ((1, 1, 0, "uniform", 0), "rounds"),
        ((1, 1, 1, "permutations", 0), "did you mean 'permutation'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, complaint):
    with pytest.raises(UserError, match=complaint):
        TaskSequence(*arguments)
