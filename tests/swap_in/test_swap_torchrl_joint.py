"""Critics of all kinds in TorchRL's losses, asked as by brute force: separate, joint, and found out to be either."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("torchrl")
from tensordict.nn import TensorDictModule
from torchrl.modules import MultiAgentMLP, QMixer, QValueModule, SafeSequential
from torchrl.objectives import (
    DDPGLoss,
    QMixerLoss,
    SoftUpdate,
    TD3Loss,
    ValueEstimators,
)
from torchrl_tools import N, batch, recipe, target_critics, targets

from marl.reciprocity import Reciprocal
from marl.swap.torchrl import blend_targets

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Written(torch.nn.Module):
    """A critic by hand, without a word on what it reads: ``[*B, N, 3]`` and ``[*B, N, 1]`` to ``[*B, N, 1]``."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(N, 4 * N))


class Flat(Written):
    """Critic j reads all states and actions."""

    def forward(self, obs, act):
        return torch.tanh(torch.cat([obs, act], -1).flatten(-2) @ self.weight.T).unsqueeze(-1)


class Separate(Written):
    """Critic j reads its own."""

    def forward(self, obs, act):
        return torch.tanh((torch.cat([obs, act], -1) * self.weight[:, :4]).sum(-1, keepdim=True))


class AllActions(Written):
    """Critic j reads its own state and all actions."""

    def forward(self, obs, act):
        own = (obs * self.weight[:, :3]).sum(-1, keepdim=True)
        return own + torch.tanh(act.flatten(-2) @ self.weight[:, -N:].T).unsqueeze(-1)


class Elders(Written):
    """Critic j reads its own and those of the agents behind it: nobody else reads agent 0's."""

    def forward(self, obs, act):
        told = (torch.cat([obs, act], -1) * self.weight[:, :4]).sum(-1)
        return torch.tanh(told.flip(-1).cumsum(-1).flip(-1)).unsqueeze(-1)


class Attentive(torch.nn.Module):
    """TorchRL's separate networks, and attention between what they say."""

    def __init__(self):
        super().__init__()
        self.embed = mlp(False, 4)
        self.attention = torch.nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, obs, act):
        x = self.embed(obs, act)
        return self.attention(x, x, x, need_weights=False)[0].sum(-1, keepdim=True)


def mlp(centralized, n_out=1):
    return MultiAgentMLP(4, n_out, N, centralized=centralized, share_params=False, depth=1)


CRITICS = {  # and whether they are joint
    "separate": (lambda: mlp(False), False),
    "centralized": (lambda: mlp(True), True),
    "written-separate": (Separate, False),
    "written-joint": (Flat, True),
    "all-actions": (AllActions, True),
    "elders": (Elders, True),
    "attentive": (Attentive, True),
}
OBSERVATION, ACTION, MASK = ("agents", "observation"), ("agents", "action"), ("agents", "action_mask")
COMPLETE, NEXT = (1 - torch.eye(N)) / (N - 1), torch.eye(N).roll(1, 1)


def ddpg_of(net):
    actor = TensorDictModule(torch.nn.Linear(3, 1), in_keys=[OBSERVATION], out_keys=[ACTION])
    critic = TensorDictModule(net, in_keys=[OBSERVATION, ACTION], out_keys=[("agents", "state_action_value")])
    loss = DDPGLoss(actor, critic)
    loss.set_keys(**recipe("ddpg", "plain").KEYS)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=1.0)
    SoftUpdate(loss, tau=0.01)
    return loss


@pytest.mark.parametrize(
    "graph", ["complete", "nearest", "self", torch.tensor([[0.5, 0.5, 0], [0, 0, 1], [1.0, 0, 0]])]
)
@pytest.mark.parametrize("critic", CRITICS)
def test_ddpg_asks_critic_j_at_the_state_and_action_of_agent_i(critic, graph):
    torch.manual_seed(0)
    net, joint = CRITICS[critic]
    loss = ddpg_of(net())
    actor = loss.actor_network
    reciprocal = Reciprocal(N, 0.3, graph, "mask", neighbours=1, rho=(9,))  # all coordinates become zero
    blend_targets(loss, reciprocal)
    data = batch("ddpg")
    got = targets(loss, data) - data["next", "agents", "reward"].squeeze(-1).T

    seen = data["next", "agents", "observation"]
    with torch.no_grad():
        with loss.target_actor_network_params.to_module(actor):
            acted = actor.module(seen)

        def asked(obs, act):  # [B, N, *] -> [N, B]
            with loss.target_value_network_params.to_module(loss.value_network):
                return loss.value_network.module(obs, act).squeeze(-1).T

        own, zero, expected = asked(seen, acted), torch.zeros_like(seen), []
        weights = reciprocal.engine.links(N, own)[0].float()
        for i in range(N):
            shown = acted if joint else acted[:, i : i + 1].expand(-1, N, -1)  # everybody reads agent i's action
            expected.append(0.7 * own[i] + 0.3 * weights[i] @ asked(zero, shown))
    torch.testing.assert_close(got, torch.stack(expected))


def test_a_joint_critic_that_answers_0_at_first_is_known_as_soon_as_it_answers_anything_else():
    torch.manual_seed(0)
    loss, data = ddpg_of(Flat()), batch("ddpg")
    other = ddpg_of(Flat())
    weights = [params.get(("module", "weight")) for params in map(target_critics, (loss, other))]
    for each in (loss, other):
        blend_targets(each, Reciprocal(N, 0.5, adjacency="exact"))
    weight = weights[0].data.clone()
    weights[0].data.zero_()
    bootstrap = targets(loss, data.clone()) - data["next", "agents", "reward"].squeeze(-1).T
    assert not bootstrap.any()
    for each in weights:
        each.data.copy_(weight)
    for name in ("actor_network", "target_actor_network"):
        getattr(other, f"{name}_params").data.copy_(getattr(loss, f"{name}_params").data)
    torch.testing.assert_close(targets(loss, data.clone()), targets(other, data.clone()))


def test_finding_out_whether_critics_are_joint_leaves_no_trace():
    class Dropped(Separate):
        def __init__(self):
            super().__init__()
            self.drop, self.norm, self.calls = torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(N), 0

        def forward(self, obs, act):
            self.calls += 1
            return self.drop(self.norm(super().forward(obs, act).squeeze(-1))).unsqueeze(-1)

    def host(kappa):
        torch.manual_seed(0)
        net = Dropped()
        loss = ddpg_of(net)
        if kappa is not None:
            blend_targets(loss, Reciprocal(N, kappa, adjacency="exact"))
        return net, loss

    def states(loss):
        """Of the random stream and the networks after each of two equal calls."""
        data, found = batch("ddpg"), []
        for _ in range(2):
            torch.manual_seed(1)
            targets(loss, data.clone())
            found.append((torch.get_rng_state(), int(target_critics(loss)["module", "norm", "num_batches_tracked"])))
        return found

    (plain, without), (off, switched_off), (net, loss) = (host(kappa) for kappa in (None, 0.0, 0.5))
    for each in (without, switched_off):
        states(each)
    assert off.calls == plain.calls  # nothing is tried while kappa is 0
    first, second = states(loss)
    assert net.calls == plain.calls + 2  # twice at the first blend, and never again
    assert torch.equal(first[0], second[0]) and first[1] * 2 == second[1]
    assert all(part.training for part in loss.value_network.modules())


@pytest.mark.parametrize("space", ["categorical", "one_hot"])
@pytest.mark.parametrize("graph", [NEXT, COMPLETE, lambda: NEXT], ids=["one", "all", "changing"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("centralized", [False, True])
def test_a_team_hears_what_others_think_of_an_agents_own_best_action(centralized, masked, graph, space):
    """The usual bugs: of a joint network agent j's answer to its own best action, or of one forbidden to j -1e38."""
    torch.manual_seed(0)
    names = [("agents", name) for name in ("observation", "action_value", "chosen_action_value")]
    seen, valued, chosen = names
    choice = QValueModule(
        action_value_key=valued,
        action_mask_key=MASK if masked else None,
        out_keys=[ACTION, valued, chosen],
        action_space=space,
    )
    net = MultiAgentMLP(3, 5, N, centralized=centralized, share_params=False, depth=1)
    local = SafeSequential(TensorDictModule(net, in_keys=[seen], out_keys=[valued]), choice)
    mixer = QMixer(state_shape=(N, 3), mixing_embed_dim=4, n_agents=N, device="cpu")
    loss = QMixerLoss(local, TensorDictModule(mixer, in_keys=[chosen, seen], out_keys=[chosen[1]]), action_space=space)
    SoftUpdate(loss, tau=0.01)
    blend_targets(loss, Reciprocal(N, 0.5, graph, adjacency="exact"))
    data, mixed = batch("qmix"), []
    data[MASK] = data[("next", *MASK)] = torch.rand(len(data), N, 5) < 0.6
    data[MASK][..., 0] = True
    if space == "one_hot":
        data["agents", "action"] = torch.nn.functional.one_hot(data["agents", "action"], 5)
    loss.mixer_network.register_forward_pre_hook(lambda _, args: mixed.append(args[0][chosen]))
    targets(loss, data)
    obs, said = data["next", "agents", "observation"], []
    allowed = data[MASK] | torch.tensor(not masked)
    with torch.no_grad(), loss.target_local_value_network_params.to_module(local):
        own = net(obs).masked_fill(~allowed, -torch.inf)
        best = own.argmax(-1)  # [R, N]
        for i in range(N):
            index = best[:, i].view(-1, 1, 1).expand(-1, N, 1)
            answers = net(obs if centralized else obs[:, i : i + 1].expand(-1, N, -1))  # everybody reads agent i's
            answer = answers.gather(-1, index).squeeze(-1)
            unheard = centralized & ~allowed.gather(-1, index).squeeze(-1)  # a separate network gets agent i's mask
            said.append(torch.where(unheard, own[:, i].amax(-1, keepdim=True), answer))
    said = torch.stack(said, 1)  # [R, i, j]
    heard = torch.einsum("ij,rij->ri", graph() if callable(graph) else graph, said)
    expected = 0.5 * said.diagonal(dim1=1, dim2=2) + 0.5 * heard
    torch.testing.assert_close(mixed[-1].squeeze(-1), expected)


def test_td3_with_a_joint_critic_by_hand_blends_its_twins_by_brute_force():
    torch.manual_seed(0)
    actor = TensorDictModule(torch.nn.Linear(3, 1), in_keys=[OBSERVATION], out_keys=[ACTION])
    critic = TensorDictModule(Flat(), in_keys=[OBSERVATION, ACTION], out_keys=[("agents", "state_action_value")])
    loss = TD3Loss(actor, critic, bounds=(-9.0, 9.0), policy_noise=0.0)
    loss.set_keys(action=ACTION, **recipe("ddpg", "plain").KEYS)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=1.0)
    SoftUpdate(loss, tau=0.01)
    loss.target_qvalue_network_params.data["module", "weight"].normal_()  # two that differ
    blend_targets(loss, Reciprocal(N, 0.5, adjacency="exact"))
    data, twins = batch("td3"), []
    seen = data["next", "agents", "observation"]
    with torch.no_grad():
        with loss.target_actor_network_params.to_module(actor):
            acted = actor.module(seen).clamp(-9, 9)
        for k in range(2):
            with loss.target_qvalue_network_params[k].to_module(critic):
                z = critic.module(seen, acted).squeeze(-1).T
            twins.append(0.5 * z + 0.5 * (z.sum(0) - z) / 2)  # everybody answers at the same joint state
    expected = torch.minimum(*twins)
    bootstrap = targets(loss, data) - data["next", "agents", "reward"].squeeze(-1).T
    torch.testing.assert_close(bootstrap, expected)
