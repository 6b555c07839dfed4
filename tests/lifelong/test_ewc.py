"""EWC: the Fisher information and the penalty in numbers, against loops, and on tasks that contradict each other."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from marl.algos.dqn import DQN, DQNConfig
from marl.envs.base import EnvSpec
from marl.lifelong.ewc import EWC, Mode, fisher
from marl.modules.optim import StackedAdam
from marl.modules.q_values import QNetwork, worth
from marl.modules.stacked import Stacked, StackedMLP
from marl.streams import Streams
from marl.types import Batch, UserError

P, N = 2, 3
ALL = torch.zeros(P, N, dtype=torch.int64)  # task 0, every network


def stack(seeds: tuple[int, ...] = (1, 2), networks: int = N) -> StackedMLP:
    return StackedMLP(Streams(seeds, "init"), networks, (2, 3, 1), activation="tanh")


def flat(parts: dict[str, Tensor]) -> Tensor:
    """``[P, N, K]``."""
    return torch.cat([part.flatten(2) for part in parts.values()], dim=-1)


def weights(network: Stacked) -> dict[str, Tensor]:
    return dict(network.named_parameters())


def noise(network: Stacked, seed: int) -> dict[str, Tensor]:
    """Something to stand for a Fisher information: uniform on [0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(p.shape, generator=generator) for name, p in network.named_parameters()}


# ---- Fisher -------------------------------------------------------------------------------------------------------


def line() -> StackedMLP:
    """One network ``y = 5 x + 7``."""
    network = StackedMLP(Streams([0], "init"), 1, (1, 1))
    network.flat.data.copy_(torch.tensor([[[5.0, 7.0]]]))
    return network


def test_the_fisher_of_a_line_is_the_mean_square_of_its_input_and_1_scaled_by_the_larger():
    x = torch.tensor([1.0, 3.0]).view(1, 1, 2, 1)
    got = fisher(line(), lambda network, x: network(x).squeeze(-1), x)
    # dy/dw = x: (1 + 9) / 2 = 5; dy/db = 1; the larger becomes 1
    assert flat(got).flatten().tolist() == pytest.approx([1.0, 0.2])


def test_the_squares_are_taken_before_the_mean():
    x = torch.tensor([2.0, -2.0]).view(1, 1, 2, 1)
    got = fisher(line(), lambda network, x: network(x).squeeze(-1), x)
    assert flat(got).flatten().tolist() == pytest.approx([1.0, 0.25])  # the square of the mean would be 0 for w


@pytest.mark.parametrize("duelling", [False, True])
def test_the_fisher_of_action_values_is_that_of_a_loop_over_networks_and_samples(duelling):
    """The loop knows nothing of stacks: one network's matrices, one sample at a time, plain autograd."""
    spec = EnvSpec("test/any", ("a", "b", "c"), (4, 4, 4), (2, 2, 2), True)
    network = QNetwork(Streams([1, 2], "init"), spec, (5,), duelling=duelling)
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(P, N, 7, 4, generator=generator)
    action = torch.randint(2, (P, N, 7), generator=generator)
    got = fisher(network, worth, obs, action)
    for p, n in itertools.product(range(P), range(N)):
        own = [q[p, n].detach().clone().requires_grad_() for q in network.parameters()]
        w1, b1, w2, b2 = own
        expected = torch.zeros_like(flat(got)[p, n])
        for x, a in zip(obs[p, n], action[p, n], strict=True):
            out = (torch.relu(x @ w1 + b1) @ w2 + b2).squeeze(0)
            q = out[0] + out[1 + a] - out[1:].mean() if duelling else out[a]
            expected += torch.cat([g.flatten() for g in torch.autograd.grad(q, own)]).square()
        torch.testing.assert_close(flat(got)[p, n], expected / expected.max())


def test_a_picture_network_has_a_fisher_for_its_convolutions_too():
    spec = EnvSpec("test/any", ("a",), (32,), (2,), True, pixels=(2, 4, 4))
    network = QNetwork(Streams([1], "init"), spec, (5,))
    got = fisher(network, worth, torch.rand(1, 1, 6, 32), torch.zeros(1, 1, 6, dtype=torch.int64))
    assert all(mass.max() > 0 for mass in got.values())
    assert flat(got).max() == 1


def test_a_network_whose_value_depends_on_nothing_has_zeros_and_not_nan():
    network = stack()
    got = fisher(network, lambda network, x: 0 * network(x).squeeze(-1), torch.ones(P, N, 2, 2))
    assert not flat(got).any()


# ---- the penalty --------------------------------------------------------------------------------------------------


def test_the_penalty_by_hand():
    network, ewc = line(), EWC(strength=100.0)
    ewc.remember(network, {"layers.0.weight": torch.ones(1, 1, 1, 1), "layers.0.bias": torch.full((1, 1, 1, 1), 0.2)},
                 torch.tensor([[0]]))  # fmt: skip
    network.flat.data.copy_(torch.tensor([[[5.5, 9.0]]]))
    # 100 / 2 (1 * .5^2 + .2 * 2^2) = 50 * 1.05; d/dw = 100 * 1 * .5, d/db = 100 * .2 * 2
    value = ewc(weights(network))
    gradient = torch.autograd.grad(value, network.flat.parameters)
    assert value.item() == pytest.approx(52.5)
    assert [g.item() for g in gradient] == pytest.approx([50.0, 40.0])


def three_tasks(mode: Mode, strength: float = 3.0) -> tuple[StackedMLP, EWC, list[tuple[Tensor, Tensor]]]:
    """A stack that was elsewhere after each of three tasks; what it was, and the Fisher, ``[P, N, K]`` each."""
    network, ewc, past = stack(), EWC(strength, mode, decay=0.5), []
    for task in range(3):
        network.flat.data.add_(torch.randn(P, N, 13, generator=torch.Generator().manual_seed(task)))
        mass = noise(network, task)
        ewc.remember(network, mass, ALL + task)
        past.append((network.flat.data.clone(), flat(mass)))
    network.flat.data.add_(1.0)
    return network, ewc, past


@pytest.mark.parametrize("mode", ["separate", "online", "last"])
def test_value_and_gradient_are_the_formulas_in_every_mode(mode):
    network, ewc, past = three_tasks(mode)
    (_, f0), (_, f1), (newest, f2) = past
    terms = {
        "separate": past,
        "online": [(newest, f2 + 0.5 * f1 + 0.25 * f0)],
        "last": [(newest, f2)],
    }[mode]
    away = [(f, network.flat.data - at) for at, f in terms]
    value = ewc.penalty(weights(network))
    torch.testing.assert_close(value, 1.5 * sum((f * d.square()).sum(-1) for f, d in away))
    gradient = torch.autograd.grad(value.sum(), network.flat.parameters)
    expected = 3.0 * sum(f * d for f, d in away)
    torch.testing.assert_close(torch.cat([g.flatten(2) for g in gradient], -1), expected)


def test_at_its_only_anchor_the_penalty_is_exactly_0_and_before_any_anchor_too():
    network, ewc = stack(), EWC(400.0)
    assert ewc(weights(network)).item() == 0
    ewc.remember(network, noise(network, 0), ALL)
    assert ewc(weights(network)).item() == 0


def test_a_task_learnt_again_replaces_its_own_anchor_and_no_other():
    network, ewc, past = three_tasks("separate")
    ewc.remember(network, noise(network, 9), ALL + 1)
    assert sorted(ewc.anchors) == [0, 1, 2]
    assert torch.equal(flat(ewc.anchors[1].weights), network.flat.data)
    assert torch.equal(flat(ewc.anchors[2].weights), past[2][0])


def test_each_network_has_anchors_of_its_own():
    """Networks learn tasks 0, 1, 0 in the one member and 2, none, 2 in the other."""
    network, ewc = stack(), EWC(1.0)
    mass = noise(network, 0)
    ewc.remember(network, mass, torch.tensor([[0, 1, 0], [2, -1, 2]]))
    held = {task: flat(anchor.fisher).amax(-1) > 0 for task, anchor in ewc.anchors.items()}
    assert {task: mask.tolist() for task, mask in held.items()} == {
        0: [[True, False, True], [False] * 3],
        1: [[False, True, False], [False] * 3],
        2: [[False] * 3, [True, False, True]],
    }
    network.flat.data.add_(1.0)
    expected = 0.5 * flat(mass).sum(-1)
    expected[1, 1] = 0  # it has learnt nothing yet
    torch.testing.assert_close(ewc.penalty(weights(network)), expected)


@pytest.mark.parametrize("mode", ["separate", "online", "last"])
def test_a_member_of_a_population_is_penalised_as_alone(mode):
    together, alone = stack(), stack(seeds=(2,))
    both, one = EWC(2.0, mode), EWC(2.0, mode)
    for task in range(3):
        for network in (together, alone):
            network.flat.data.add_(0.1 * task)
        mass = noise(together, task)
        both.remember(together, mass, torch.tensor([[0, 0, 0], [task, 1, -1]]))
        one.remember(alone, {name: m[1:] for name, m in mass.items()}, torch.tensor([[task, 1, -1]]))
    for network in (together, alone):
        network.flat.data.mul_(2.0)
    assert torch.equal(both.penalty(weights(together))[1:], one.penalty(weights(alone)))


def test_anchors_are_copies_and_a_saved_one_goes_on_bit_for_bit():
    network, ewc, past = three_tasks("separate")
    saved = ewc.state_dict()
    twin = EWC(3.0)
    twin.load_state_dict({key: saved[key] for key in reversed(saved)})
    assert torch.equal(flat(twin.anchors[0].weights), past[0][0])
    assert torch.equal(twin.penalty(weights(network)), ewc.penalty(weights(network)))
    twin.anchors[0].weights["layers.0.bias"].zero_()
    assert torch.equal(flat(ewc.anchors[0].weights), past[0][0])


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ((-1.0,), "strength"),
        ((float("nan"),), "strength"),
        ((1.0, "seperate"), "did you mean 'separate'"),
        ((1.0, "online", 1.5), "decay"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, complaint):
    with pytest.raises(UserError, match=complaint):
        EWC(*arguments)


# ---- two tasks that contradict each other -------------------------------------------------------------------------

CONTEXT = torch.linspace(-1, 1, 32)
FIRST = torch.stack([CONTEXT, torch.ones(32), torch.zeros(32)], -1).expand(1, 2, 32, 3)
SECOND = torch.stack([CONTEXT, torch.zeros(32), torch.ones(32)], -1).expand(1, 2, 32, 3)


def errors(network: StackedMLP, x: Tensor, slope: float) -> Tensor:
    """Mean square of ``y - slope * context``, ``[P, N]``."""
    return (network(x).squeeze(-1) - slope * x[..., 0]).square().mean(-1)


def learn_both(strength: float) -> tuple[float, float]:
    """First y = x, then y = -x: the larger of two networks' errors on the first and on the second task at the end."""
    network = StackedMLP(Streams([3], "init"), 2, (3, 128, 1))
    optimizer = StackedAdam(network, torch.tensor([[[0.01]]]))
    ewc = EWC(strength)
    for _ in range(400):
        optimizer.step(errors(network, FIRST, 1.0).sum())
    assert errors(network, FIRST, 1.0).max() < 1e-3
    ewc.remember(network, fisher(network, lambda net, x: net(x).squeeze(-1), FIRST), torch.tensor([[0, 0]]))
    for _ in range(400):
        optimizer.step(errors(network, SECOND, -1.0).sum() + ewc(weights(network)))
    return errors(network, FIRST, 1.0).max().item(), errors(network, SECOND, -1.0).max().item()


def test_of_two_tasks_that_contradict_each_other_the_first_is_kept_and_without_a_penalty_forgotten():
    forgotten, second = learn_both(0.0)
    assert forgotten > 0.3 and second < 1e-3  # an answer of 0 throughout has 1/3
    kept, learnt = learn_both(100.0)
    assert kept < 0.1 and learnt < 1e-3


# ---- in DQN -------------------------------------------------------------------------------------------------------


def learner(**changes: float) -> DQN:
    spec = EnvSpec("test/any", ("a", "b"), (3, 3), (2, 2), True)
    return DQN(spec, [DQNConfig(hidden=(4,), lr=0.01, **changes)] * 2, [1, 2])  # type: ignore[arg-type]


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        obs=torch.randn(2, 2, 8, 3, generator=generator),
        action=torch.randint(2, (2, 2, 8), generator=generator),
        reward=torch.randn(2, 2, 8, generator=generator),
        next_obs=torch.randn(2, 2, 8, 3, generator=generator),
        terminated=torch.zeros(2, 2, 8, dtype=torch.bool),
    )


def test_without_penalties_or_with_one_that_is_0_dqn_learns_the_same_to_the_bit():
    plain, held = learner(), learner()
    held.penalties.append(EWC(400.0))
    for step in range(5):
        plain.update(batch(step))
        held.update(batch(step))
    assert torch.equal(plain.critic.flat.data, held.critic.flat.data)


def test_the_penalty_moves_the_weights_of_dqn_where_the_loss_alone_leaves_them():
    """All rows end at once with a reward of just Q(s, a): no TD error, so only the penalty moves anything."""
    held, free = learner(), learner()
    anchor = held.critic.flat.data.clone()
    ewc = EWC(100.0)
    ones = {name: torch.ones_like(p) for name, p in held.critic.named_parameters()}
    ewc.remember(held.critic, ones, torch.zeros(2, 2, dtype=torch.int64))
    held.penalties.append(ewc)
    for one in (held, free):
        one.critic.flat.data.add_(1.0)
        data = batch(0)._replace(terminated=torch.ones(2, 2, 8, dtype=torch.bool))
        one.update(data._replace(reward=worth(one.critic, data.obs, data.action).detach()))
    assert torch.equal(free.critic.flat.data, anchor + 1.0)
    torch.testing.assert_close(held.critic.flat.data, anchor + 0.99)  # Adam's first step is lr towards the anchor


def test_under_the_penalty_dqn_stays_nearer_to_its_anchor():
    held, free = learner(), learner()
    ewc = EWC(100.0)
    data = batch(0)
    ewc.remember(held.critic, fisher(held.critic, worth, data.obs, data.action), torch.zeros(2, 2, dtype=torch.int64))
    held.penalties.append(ewc)
    start = worth(held.critic, data.obs, data.action).detach()
    for step in range(100):
        held.update(batch(step))
        free.update(batch(step))
    moved = [(worth(one.critic, data.obs, data.action) - start).square().mean(-1) for one in (held, free)]
    assert (moved[0] < moved[1] / 4).all()
