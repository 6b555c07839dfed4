"""What critics are handed, and how often they are asked."""

import pytest
import torch

from marl.reciprocity import Exact, Reciprocal, ReciprocalCritics


def test_a_critic_that_writes_into_its_input_does_not_write_into_the_hosts():
    states = torch.ones(2, 3, 1)

    def careless(state):
        return state.mul_(2).squeeze(-1)

    ReciprocalCritics([careless] * 2, kappa=0.0)(states)
    assert states.eq(1).all()
    near = Reciprocal(2, adjacency="exact").adjacent(states)
    near.mul_(2)
    assert states.eq(1).all()


def test_of_a_joint_state_the_one_critic_that_all_hear_is_asked_once():
    asked = []

    def critic(j):
        return lambda state: (asked.append(j), state.sum(-1))[1]

    star = torch.tensor([[1.0, 0.0, 0.0]] * 3)
    ReciprocalCritics([critic(j) for j in range(3)], 0.5, star)(torch.randn(1, 4, 2))
    assert sorted(asked) == [0, 0, 1, 2]  # each its own value, and critic 0 once more at the adjacent state


def test_a_space_that_yields_more_states_than_it_has_levels_is_not_heard_in_part():
    class Two(Exact):
        def __call__(self, states, real=None):
            yield states
            yield states

    with pytest.raises(ValueError, match="zip"):
        ReciprocalCritics([lambda s: s[:, 0]] * 2, adjacency=Two())(torch.ones(2, 3, 4))
