"""Who values which state: the stacked answers against explicit loops, one network and one row at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from marl.modules.critics import Critic, JointValues, OwnValues, joint, joint_input, side_by_side, swaps, take_order
from marl.streams import Streams

P, N, B, D, A = 2, 3, 4, 3, 2


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def value(critic: Critic, p: int, network: int, x: Tensor) -> Tensor:
    """One network at one input, layer by layer."""
    for k, layer in enumerate(critic.layers):
        x = x @ layer.weight[p, network] + layer.bias[p, network, 0]
        if k < len(critic.layers) - 1:
            x = x.clamp(min=0)
    return x[0]


def own_critic(heads: int = 1) -> Critic:
    return Critic(Streams([1, 2], "critic"), N, D + A, [8, 8], heads)


def joint_critic(shared: bool) -> Critic:
    return Critic(Streams([1, 2], "critic"), 1 if shared else N, N * (D + A), [8, 8])


@pytest.mark.parametrize("networks", [N, 1], ids=["separate", "shared"])
@pytest.mark.parametrize("heads", [1, 2])
def test_a_critic_is_its_networks_with_the_heads_of_an_agent_next_to_each_other(networks, heads):
    critic, x = Critic(Streams([1, 2], "critic"), networks, D + A, [8, 8], heads), draw(P, N, B, D + A)
    y = critic(x)
    assert y.shape == ((P, N, B) if heads == 1 else (P, N, B, heads))
    y = y.view(P, N, B, heads)
    for p in range(P):
        for n in range(N):
            for b in range(B):
                for h in range(heads):
                    network = (n if networks == N else 0) * heads + h
                    torch.testing.assert_close(y[p, n, b, h], value(critic, p, network, x[p, n, b]))
    torch.testing.assert_close(critic.first(x), y[..., 0])


@pytest.mark.parametrize("heads", [1, 2])
def test_own_values_ask_critic_i_or_j_at_the_state_and_action_of_agent_i(heads):
    critic, states, action = own_critic(heads), draw(P, N, B, D), draw(P, N, B, A, seed=1)
    values = OwnValues(critic, action)
    own, peers, views = (f(states) for f in (values.own, values.peers, values.views))
    assert peers.shape[:4] == (P, N, N, B) and views.shape[:4] == (P, 1, N, B)
    for p in range(P):
        for i in range(N):
            for b in range(B):
                for h in range(heads):
                    pick = (b,) if heads == 1 else (b, h)
                    at_i = torch.cat([states[p, i, b], action[p, i, b]])
                    torch.testing.assert_close(own[p, i][pick], value(critic, p, i * heads + h, at_i))
                    torch.testing.assert_close(views[p, 0, i][pick], value(critic, p, i * heads + h, at_i))
                    for j in range(N):
                        expected = torch.tensor(0.0) if i == j else value(critic, p, j * heads + h, at_i)
                        torch.testing.assert_close(peers[p, i, j][pick], expected)


def exchanged(order: list[int], i: int, j: int) -> list[int]:
    order = list(order)
    order[i], order[j] = order[j], order[i]
    return order


def at(critic: Critic, p: int, j: int, states: Tensor, action: Tensor, b: int, order: list[int]) -> Tensor:
    """Critic j at the joint state of row b whose place k is taken by agent ``order[k]``.

    A shared critic sees the place of agent j first: places 0 and j are exchanged once more.
    """
    if critic.networks == 1:
        order = [order[k] for k in exchanged(list(range(N)), 0, j)]
    blocks = states[p, 0, b].view(N, D)
    x = torch.cat([*(blocks[k] for k in order), *(action[p, k, b] for k in order)])
    return value(critic, p, 0 if critic.networks == 1 else j, x)


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
def test_joint_values_ask_critics_at_the_joint_state_and_views_exchange_two_agents(shared):
    critic, states, action = joint_critic(shared), draw(P, 1, B, N * D), draw(P, N, B, A, seed=1)
    values = JointValues(critic, action, D)
    own, peers, views = (f(states) for f in (values.own, values.peers, values.views))
    assert own.shape == (P, N, B) and peers.shape == (P, 1, N, B)
    assert views.shape == ((P, 1, N, B) if shared else (P, N, N, B))
    as_is = list(range(N))
    for p in range(P):
        for b in range(B):
            for j in range(N):
                torch.testing.assert_close(own[p, j, b], at(critic, p, j, states, action, b, as_is))
                torch.testing.assert_close(peers[p, 0, j, b], own[p, j, b])
                for i in range(N):
                    order = as_is if shared else exchanged(as_is, i, j)
                    view = views[p, 0 if shared else i, j, b]
                    torch.testing.assert_close(view, at(critic, p, j, states, action, b, order))
    assert not torch.allclose(views[:, 0, 1], own[:, 0])  # another opinion, for the first agent too


def test_exchanged_agents_by_hand():
    # row (i, j): i and j have changed places, the third stays
    table = swaps(3).tolist()
    assert [table[i][i] for i in range(3)] == [[0, 1, 2]] * 3
    assert table[0][1] == table[1][0] == [1, 0, 2]
    assert table[0][2] == table[2][0] == [2, 1, 0]
    assert table[1][2] == table[2][1] == [0, 2, 1]


def letters() -> tuple[Tensor, Tensor]:
    """One member, three agents, one row: observations 1, 2, 3 and actions 10, 20, 30."""
    return torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1), torch.tensor([10.0, 20.0, 30.0]).view(1, 1, 3, 1, 1)


def test_a_critic_of_its_own_sees_all_observations_then_all_actions_in_the_agents_order():
    x = joint_input(*letters(), shared=False)
    assert x[0, :, 0].tolist() == [[1, 2, 3, 10, 20, 30]] * 3


def test_a_shared_critic_sees_the_agent_whose_critic_it_is_first():
    x = joint_input(*letters(), shared=True)
    assert x[0, :, 0].tolist() == [[1, 2, 3, 10, 20, 30], [2, 1, 3, 20, 10, 30], [3, 2, 1, 30, 20, 10]]


@pytest.mark.parametrize("shared", [False, True])
def test_each_critic_can_be_shown_a_joint_action_of_its_own(shared):
    obs, action = letters()
    own = action.repeat(1, 3, 1, 1, 1)
    for i in range(3):
        own[0, i, i] = -1.0  # agent i's new action, in critic i's input alone
    x = joint_input(obs, own, shared)[0, :, 0, 3:].tolist()
    if shared:
        assert x == [[-1, 20, 30], [-1, 10, 30], [-1, 20, 10]]
    else:
        assert x == [[-1, 20, 30], [10, -1, 30], [10, 20, -1]]


def test_blocks_are_put_side_by_side_row_by_row():
    # agents (1, 2) and (3, 4) in row 0, (5, 6) and (7, 8) in row 1
    x = torch.tensor([[[1.0, 2.0], [5.0, 6.0]], [[3.0, 4.0], [7.0, 8.0]]])
    assert side_by_side(x).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert joint(x.unsqueeze(0)).tolist() == [[[[1, 2, 3, 4], [5, 6, 7, 8]]]]


def test_take_order_orders_the_agents_of_each_row():
    blocks = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 3, 1, 1).expand(1, 2, 3, 1, 1)
    taken = take_order(blocks, torch.tensor([[2, 0, 1], [1, 1, 0]]))
    assert taken.flatten(2)[0].tolist() == [[3, 1, 2], [2, 2, 1]]


@pytest.mark.parametrize("heads", [1, 2])
def test_a_critic_shown_a_wider_agents_state_reads_its_leading_part(heads):
    """Widths 1, 3, 2: what lies beyond is no input of that critic, also after Adam has moved its weights."""
    from marl.modules.optim import StackedAdam

    sizes = torch.tensor([1, 3, 2])
    reads = torch.cat([torch.arange(D) < sizes[:, None], torch.ones(N, A, dtype=torch.bool)], dim=-1)
    critic = Critic(Streams([1, 2], "critic"), N, D + A, [8], heads, reads)
    real = draw(P, N, B, D + A, seed=1) * reads[:, None]
    optimizer = StackedAdam(critic, torch.full((P, 1, 1), 0.1))
    for _ in range(3):
        optimizer.step((critic(real) - 1).square().mean())
    wide = draw(P, N, B, D + A, seed=2)
    torch.testing.assert_close(critic(wide), critic(wide * reads[:, None]))
    free = Critic(Streams([1, 2], "critic"), N, D + A, [8], heads)
    assert not torch.allclose(free(wide), free(wide * reads[:, None]))  # untrained weights would be heard
