"""Numbers that ``resample`` drew ahead: given back wherever they are asked for, no part of a copy."""

import copy
import pickle

import pytest
import torch
from torch._subclasses import FakeTensorMode

from marl.modules.adjacency import Resample
from marl.streams import Streams

STATES = torch.arange(18.0).view(6, 3)


def space() -> Resample:
    return Resample(Streams([0], "test"), (1,), 1)


def around(space: Resample) -> torch.Tensor:
    (near,) = space.around(STATES)
    return near


@pytest.mark.parametrize("calls", [2, 5])  # one draw or two have been used of those made ahead
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_they_are_given_back_inside_a_vmap_as_outside(calls):
    used, saved = space(), space()
    for _ in range(calls):
        assert torch.equal(around(used), around(saved))
    saved.state_dict()  # gives them back
    each = [torch.func.vmap(s.around, randomness="different")(torch.stack([STATES] * 4)) for s in (used, saved)]
    assert torch.equal(each[0][0], each[1][0])
    assert torch.equal(around(used), around(saved))


def test_they_are_given_back_in_a_fake_mode_as_outside():
    used, alone = space(), space()
    for _ in range(5):
        assert torch.equal(around(used), around(alone))
    with FakeTensorMode() as mode:
        used.around(mode.from_tensor(STATES))  # draws nothing
    assert torch.equal(around(used), around(alone))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_copy_carries_none_and_goes_on_as_the_original(copied):
    made = space()
    for _ in range(5):
        around(made)
    other = copied(made)
    assert not other.ahead.pool.left
    for _ in range(5):
        assert torch.equal(around(made), around(other))
