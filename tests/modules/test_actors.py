"""Policies: probabilities that sum to one, masks, ends of the range, agents of different widths."""

import math

import pytest
import torch

from marl.envs.base import EnvSpec
from marl.modules.actors import Actor, make_net
from marl.streams import Streams

CONTINUOUS = EnvSpec("test/any", ("a", "b"), (3, 3), (1, 2), discrete=False)
DISCRETE = EnvSpec("test/any", ("a", "b"), (3, 3), (2, 4), discrete=True)


def make(spec, networks=2, recurrent=False, log_std=-0.5):
    return Actor(Streams([1, 2], "init"), networks, 3, spec, (8,), "tanh", recurrent, log_std)


def test_what_is_clipped_has_the_probability_of_all_that_lies_beyond():
    """The density inside and the two ends' probabilities sum to 1, wherever the mean is."""
    spec = EnvSpec("test/any", ("a",), (3,), (1,), discrete=False)
    actor = make(spec, networks=1, log_std=math.log(0.7))
    grid = (torch.arange(4000) + 0.5) / 2000 - 1
    for mean in (-3.0, -0.9, 0.0, 0.4, 1.5):
        output = torch.full((2, 1, 1, 4002, 1), mean)
        action = torch.cat([grid, torch.tensor([-1.0, 1.0])]).view(1, 1, 1, -1, 1).expand(2, -1, -1, -1, -1)
        mass = actor.log_prob(output, action).exp()[0, 0, 0].detach()
        torch.testing.assert_close(mass[:-2].sum() / 2000 + mass[-2:].sum(), torch.tensor(1.0), atol=1e-4, rtol=0)
        drawn = actor.sample(output, Streams([3, 4], "draw"))[0].flatten()
        assert (drawn.abs() <= 1).all()
        for end, share in ((-1, mass[-2]), (1, mass[-1])):
            assert abs((drawn == end).float().mean() - share) < 0.03
    # mean 0, standard deviation .7: beyond 1 lies Phi(-1 / .7) = .0766
    output, end = torch.zeros(2, 1, 1, 1, 1), torch.ones(2, 1, 1, 1, 1)
    torch.testing.assert_close(
        actor.log_prob(output, end).exp()[0].flatten().detach(), torch.tensor([0.0766]), atol=1e-4, rtol=0
    )


def test_log_probabilities_and_their_gradients_are_finite_far_out():
    actor = make(CONTINUOUS, log_std=-3.0)
    output = torch.tensor([-50.0, 0.0, 50.0]).view(1, 1, 1, 3, 1).repeat(2, 2, 1, 1, 2).requires_grad_()
    for value in (-1.0, 0.5, 1.0):
        logp = actor.log_prob(output, torch.full((2, 2, 1, 3, 2), value))
        (slope,) = torch.autograd.grad(logp.sum(), output)
        assert logp.isfinite().all() and slope.isfinite().all()


def test_components_that_an_agent_does_not_have_count_for_nothing():
    actor = make(CONTINUOUS)
    output = torch.zeros(2, 2, 1, 5, 2)
    action = actor.sample(output, Streams([3, 4], "draw"))
    assert (action[:, 0, ..., 1] == 0).all() and (action[:, 1] != 0).all()
    logp = actor.log_prob(output, torch.zeros(2, 2, 1, 5, 2))
    # each component at its mean: -log std - log(2 pi) / 2 = .5 - .9189; agent 1 has two
    torch.testing.assert_close(logp[0, :, 0, 0].detach(), torch.tensor([0.5 - 0.9189, 1 - 1.8379]), atol=1e-4, rtol=0)
    entropy = actor.entropy(output)  # log std + 1.4189 for each
    torch.testing.assert_close(entropy[0, :, 0, 0].detach(), torch.tensor([0.9189, 1.8379]), atol=1e-4, rtol=0)
    assert torch.equal(actor.mode(output + 3)[0, 0, 0, 0], torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("recurrent", [False, True])
def test_actions_that_may_not_be_taken_never_are(recurrent):
    actor = make(DISCRETE, recurrent=recurrent)
    x = Streams([5, 6], "x").normal(2, 1, 500, 3)
    memory = torch.zeros(2, 2, 500, 8) if recurrent else None
    free, hidden = actor(x, None, memory)
    assert (hidden is None) != recurrent
    seen = [set(actor.sample(free, Streams([3, 4], "draw"))[:, i].flatten().tolist()) for i in range(2)]
    assert seen == [{0, 1}, {0, 1, 2, 3}]
    avail = torch.tensor([[0, 1, 0, 0], [1, 0, 1, 0]]).bool().view(1, 2, 1, 1, 4).expand(2, -1, 1, 500, -1)
    masked, _ = actor(x, avail, memory)
    for action in (actor.sample(masked, Streams([3, 4], "draw")), actor.mode(masked)):
        assert avail.gather(-1, action.unsqueeze(-1)).all()
        assert actor.log_prob(masked, action).isfinite().all()
    assert (actor.entropy(masked)[:, 0] == 0).all()  # one action is left


def test_networks_start_orthogonal_and_blind_to_padding():
    reads = torch.tensor([[True, True, False], [True, True, True]])
    net = make_net(Streams([1, 2], "init"), 2, 3, 1, (8,), "relu", False, gain=1.0, reads=reads)
    first = net.layers[0].weight.detach()
    assert (first[:, 0, 2] == 0).all() and (first[:, 1, 2] != 0).any()
    # three orthogonal rows of length sqrt(2)
    torch.testing.assert_close(first[:, 1] @ first[:, 1].mT, 2 * torch.eye(3).expand(2, 3, 3), atol=1e-5, rtol=0)
    rnn = make_net(Streams([1, 2], "init"), 2, 3, 1, (8,), "relu", True, gain=1.0, reads=reads)
    assert (rnn.enter.weight[:, 0, 2] == 0).all() and (rnn.enter.weight[:, 1, 2] != 0).any()
