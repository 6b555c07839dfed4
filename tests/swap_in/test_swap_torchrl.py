"""Reciprocity in TorchRL's losses: DDPG, TD3, QMIX, PPO, by one line behind each."""

from __future__ import annotations

import runpy
import subprocess
import sys

import pytest
import torch
from swap_tools import RECIPES, changed

pytest.importorskip("torchrl")
from tensordict.nn import TensorDictModule
from torchrl.modules import MultiAgentMLP
from torchrl.objectives import (
    DQNLoss,
    QMixerLoss,
    SoftUpdate,
    TD3Loss,
    ValueEstimators,
)
from torchrl.objectives.value import GAE, TDLambdaEstimator
from torchrl_tools import LOSSES, ROWS, STEPS, Host, N, answering, batch, made, recipe, target_critics, targets

from marl.reciprocity import LinearKappa, Reciprocal, ReciprocalCritics, UserError
from marl.swap.torchrl import blend_targets
from marl.testing import check_reciprocity

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_keeps_the_promises_of_reciprocity(loss):
    check_reciprocity(type("Host", (Host,), {"loss": loss}), agents=N)


@pytest.mark.parametrize("loss", LOSSES)
def test_kappa_0_trains_to_the_same_bits_and_kappa_above_to_others(loss):
    more = [loss] if loss in ("ddpg", "td3") else []

    def trained(name, *kappa):
        module = recipe(loss, name).train(STEPS[loss], 3, *more, *kappa)
        return torch.cat([x.flatten() for x in module.state_dict().values() if isinstance(x, torch.Tensor)])

    plain, stream = trained("plain"), torch.get_rng_state()
    assert torch.equal(trained("reciprocal", 0.0), plain)
    assert torch.equal(torch.get_rng_state(), stream)
    other = trained("reciprocal", 0.5)
    assert other.isfinite().all() and not torch.equal(other, plain)


def test_a_script_is_a_command_that_ends_with_its_return():
    command = [sys.executable, RECIPES / "torchrl_ddpg" / "reciprocal.py", "--steps", "66", "--loss", "td3"]
    done = subprocess.run([*command, "--seed", "1", "--kappa", "0.3"], capture_output=True, text=True, check=True)
    word, number = done.stdout.splitlines()[-1].split()
    assert word == "return" and -2000 < float(number) < 0


@pytest.mark.parametrize("name", ["plain", "reciprocal"])
@pytest.mark.parametrize("folder", ["torchrl_ddpg", "torchrl_qmix", "torchrl_ppo"])
def test_every_script_runs_as_the_main_program(folder, name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script", "--steps", "66", "--seed", "1"])
    runpy.run_path(str(RECIPES / folder / f"{name}.py"), run_name="__main__")
    word, number = capsys.readouterr().out.splitlines()[-1].split()
    assert word == "return" and -2000 < float(number) < 0


@pytest.mark.parametrize("folder", ["torchrl_ddpg", "torchrl_qmix", "torchrl_ppo"])
def test_a_user_of_torchrl_changes_at_most_ten_lines(folder):
    assert 0 < changed(folder) <= 10


@pytest.mark.parametrize("adjacency", ["resample", "gaussian", "knn", "peer"])
def test_three_critics_that_answer_0_1_and_4_give_their_blend_to_the_target(adjacency):
    module, data = made("ddpg"), batch("ddpg")
    blend_targets(module, Reciprocal(N, 0.5, adjacency=adjacency))
    answering(target_critics(module), [0.0, 1.0, 4.0])
    # .5 * 0 + .5 * (1 + 4) / 2 = 1.25; .5 * 1 + .5 * 2 = 1.5; .5 * 4 + .5 * .5 = 2.25; gamma is .95
    bootstrap = targets(module, data) - data["next", "agents", "reward"].squeeze(-1).T
    torch.testing.assert_close(bootstrap, 0.95 * torch.tensor([[1.25], [1.5], [2.25]]).expand(N, ROWS))


def test_agents_hear_themselves_or_nobody_at_several_adjacent_states():
    module, data = made("ddpg"), batch("ddpg")
    blend_targets(module, Reciprocal(N, 0.5, graph=torch.diag(torch.tensor([1.0, 0.0, 1.0])), count=2))
    answering(target_critics(module), [0.0, 1.0, 4.0])
    # a critic that answers the same everywhere agrees with itself, and agent 1 keeps its own
    bootstrap = targets(module, data) - data["next", "agents", "reward"].squeeze(-1).T
    torch.testing.assert_close(bootstrap, 0.95 * torch.tensor([[0.0], [1.0], [4.0]]).expand(N, ROWS))


@pytest.mark.parametrize("loss", ["ddpg", "td3", "qmix"])
def test_one_neighbour_each_is_read_as_the_same_graph_that_may_change(loss):
    ring = torch.tensor([[0.0, 1, 0], [0.0, 0, 1], [1.0, 0, 0]])

    def blended(graph):
        torch.manual_seed(0)
        module = made(loss)
        blend_targets(module, Reciprocal(N, 0.5, graph, count=2, generator=torch.Generator().manual_seed(1)))
        return targets(module, batch(loss))

    torch.testing.assert_close(blended(ring), blended(lambda: ring))


def test_a_key_that_is_written_in_another_way_names_the_same_value():
    def blended(*key):
        torch.manual_seed(0)
        module = made("ddpg")
        if key:
            module.set_keys(state_action_value=key)
        blend_targets(module, Reciprocal(N, 0.5, generator=torch.Generator().manual_seed(1)))
        return targets(module, batch("ddpg"))

    assert torch.equal(blended(("agents",), "state_action_value"), blended())


def test_each_twin_is_blended_before_the_minimum_is_taken():
    module, data = made("td3"), batch("td3")
    blend_targets(module, Reciprocal(N, 0.5, graph=torch.tensor([[0.0, 1, 0], [1.0, 0, 0], [0.0, 0, 1]])))
    answering(target_critics(module), [[0.0, 8.0, 1.0], [4.0, 2.0, 3.0]])
    # agents 0 and 1: twins (0 + 8) / 2 and (4 + 2) / 2, minimum 3; the minima 0 and 2 blended would be 1
    bootstrap = targets(module, data) - data["next", "agents", "reward"].squeeze(-1).T
    torch.testing.assert_close(bootstrap, 0.95 * torch.tensor([[3.0], [3.0], [1.0]]).expand(N, ROWS))


def test_a_team_blends_what_its_members_think_of_their_own_best_actions_before_the_mixing():
    module, data = made("qmix"), batch("qmix")
    blend_targets(module, Reciprocal(N, 0.5, adjacency="exact"))
    answers = torch.tensor([[1.0, 0.0, 0.0], [0.0, 6.0, 2.0], [0.0, 4.0, 8.0]])  # [agent, action]
    params = target_critics(module)
    leaves = sorted(params.items(True, True), key=lambda item: str(item[0]))
    for _, leaf in leaves:
        leaf.data.zero_()
    leaves[-2][1].data.copy_(answers)
    mixed = []
    module.mixer_network.register_forward_pre_hook(
        lambda _, args: mixed.append(args[0]["agents", "chosen_action_value"])
    )
    targets(module, data)
    # best actions 0, 1, 2. Z*_0 = (1 + 0) / 2 by the others' 0 and 0, Z*_1 = 3 + (0 + 4) / 4, Z*_2 = 4 + (0 + 2) / 4.
    # The others' maxima instead would give .5 + (6 + 8) / 4 = 4 to agent 0.
    torch.testing.assert_close(mixed[-1], torch.tensor([[0.5], [4.0], [4.5]]).expand(ROWS, N, 1))


def test_one_hot_and_categorical_actions_of_a_team_have_the_same_targets():
    from torchrl.modules import QMixer, QValueModule, SafeSequential

    def loss(space):
        torch.manual_seed(0)
        observation, values, chosen = (
            ("agents", "observation"),
            ("agents", "action_value"),
            ("agents", "chosen_action_value"),
        )
        net = MultiAgentMLP(3, 4, N, centralized=False, share_params=False, depth=1)
        choice = QValueModule(
            action_value_key=values, out_keys=[("agents", "action"), values, chosen], action_space=space
        )
        local = SafeSequential(TensorDictModule(net, in_keys=[observation], out_keys=[values]), choice)
        mixer = QMixer(state_shape=(N, 3), mixing_embed_dim=4, n_agents=N, device="cpu")
        mixer = TensorDictModule(mixer, in_keys=[chosen, observation], out_keys=["chosen_action_value"])
        made = QMixerLoss(local, mixer, action_space=space)
        SoftUpdate(made, tau=0.01)
        blend_targets(made, Reciprocal(N, 0.5, generator=torch.Generator().manual_seed(1)))
        return made

    data = batch("qmix")
    hot = data.clone().set(("agents", "action"), torch.nn.functional.one_hot(data["agents", "action"], 4))
    torch.testing.assert_close(targets(loss("one_hot"), hot), targets(loss("categorical"), data))


def advantages(kind, kappa, limit=None, adjacency="exact"):
    torch.manual_seed(0)
    module, data = made("ppo"), batch("ppo")
    if limit is not None:
        data["next", "agents", "done"][:, limit] = True
    module.make_value_estimator(kind, gamma=0.9, lmbda=0.8)
    if kappa is not None:
        blend_targets(module, Reciprocal(N, kappa, adjacency=adjacency))
    data["next", "agents", "observation"][:, :-1] = data["agents", "observation"][:, 1:]  # one trajectory
    targets(module, data)
    return data


@pytest.mark.parametrize("limit, adjacency", [(None, "exact"), (1, "exact"), (1, "peer")])
def test_gae_with_reciprocity_is_the_lambda_return_of_the_blended_values(limit, adjacency):
    gae, td = (advantages(kind, 0.5, limit, adjacency) for kind in (ValueEstimators.GAE, ValueEstimators.TDLambda))
    torch.testing.assert_close(gae["value_target"], td["value_target"])
    torch.testing.assert_close(gae["advantage"], td["advantage"])
    plain = advantages(ValueEstimators.GAE, None, limit=limit)
    assert (gae["value_target"] - plain["value_target"]).abs().max() > 0.01


def test_a_blend_in_all_of_gaes_next_values_would_be_another_return(monkeypatch):
    monkeypatch.setattr("marl.swap.torchrl._bootstrapped", lambda _, __, value: torch.ones_like(value))
    gae, td = (advantages(kind, 0.5) for kind in (ValueEstimators.GAE, ValueEstimators.TDLambda))
    assert (gae["value_target"] - td["value_target"]).abs().max() > 0.01


def test_an_estimator_that_stands_alone_does_as_the_one_in_the_loss():
    module, data = made("ppo"), batch("ppo")
    alone = GAE(gamma=0.95, lmbda=0.9, value_network=recipe("ppo", "plain").make_loss().critic_network)
    critic = alone.value_network
    module.critic_network_params.data.clone().to_module(critic)
    alone.set_keys(value=("agents", "state_value"), **{k: ("agents", k) for k in ("reward", "done", "terminated")})
    for host in (module, alone):
        blend_targets(host, Reciprocal(N, 0.5, generator=torch.Generator().manual_seed(1)))
    expected = targets(module, data.clone(), module.target_critic_network_params)
    alone(data)
    torch.testing.assert_close(data["value_target"].flatten(0, 1).squeeze(-1).T, expected)


def test_mappo_blends_joint_critics_under_a_team_reward():
    from torchrl.objectives.multiagent import MAPPOLoss

    actor, value = recipe("ppo", "plain").make_loss().actor_network, ("agents", "state_value")
    critic = MultiAgentMLP(3, 1, N, centralized=True, share_params=False, depth=1)
    loss = MAPPOLoss(actor, TensorDictModule(critic, in_keys=[("agents", "observation")], out_keys=[value]))
    loss.set_keys(value=value)
    loss.make_value_estimator(ValueEstimators.MAGAE, gamma=0.5, lmbda=0.0)
    blend_targets(loss, Reciprocal(N, 0.5))
    data, params = batch("ppo"), loss.critic_network_params.data.clone()
    for name in ("reward", "done", "terminated"):
        data["next", name] = data["next", "agents", name][..., 0, :]
    answering(params, [0.0, 1.0, 4.0])
    loss.value_estimator(data, params=loss.critic_network_params, target_params=params)
    bootstrap = data["value_target"] - data["next", "reward"].unsqueeze(-2)  # half of 1.25, 1.5 and 2.25, as above
    torch.testing.assert_close(bootstrap, torch.tensor([[0.625], [0.75], [1.125]]).expand_as(bootstrap))


def test_a_value_estimator_that_is_made_later_blends_as_well():
    plain, module = made("ddpg"), made("ddpg")
    blend_targets(module, Reciprocal(N, 0.5))
    for each in (plain, module):
        each.make_value_estimator(TDLambdaEstimator, gamma=0.5, lmbda=0.5, value_network=each.actor_critic)
        each.set_keys(**recipe("ddpg", "plain").KEYS)
        answering(target_critics(each), [0.0, 1.0, 4.0])
    data = batch("ddpg")
    assert not torch.allclose(targets(module, data), targets(plain, data))


def test_the_key_of_td3s_values_may_be_set_after_the_loss_blends():
    hosts = []
    for late in (False, True):
        module, keys = made("td3"), recipe("td3", "plain").KEYS
        if late:
            module.set_keys(**dict.fromkeys(keys))  # those of the constructor
        blend_targets(module, Reciprocal(N, 0.5, generator=torch.Generator().manual_seed(0)))
        module.set_keys(**keys)
        hosts.append(module)
    data = batch("td3")
    found = []
    for module in hosts:
        torch.manual_seed(1)
        found.append(targets(module, data))
    assert torch.equal(*found)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_schedule_counts_one_call_for_each_target_and_the_state_goes_with_the_loss(loss):
    def host():
        module = made(loss)
        blend_targets(module, Reciprocal(N, LinearKappa(0.0, 1.0, calls=4)))
        return module

    first, data = host(), batch(loss)
    for call in range(3):
        assert first.reciprocal.kappa == call / 4
        torch.manual_seed(1)
        targets(first, data, first.target_critic_network_params if loss == "ppo" else None)
        assert (first.reciprocal.gap is None) == (call == 0)
    second = host()
    second.load_state_dict(first.state_dict())
    both = []
    for module in (first, second):
        torch.manual_seed(1)
        both.append(targets(module, data, module.target_critic_network_params if loss == "ppo" else None))
    assert torch.equal(*both)


def test_bad_input_is_told_in_one_line():
    twice = made("ddpg")
    blend_targets(twice, Reciprocal(N))
    with pytest.raises(UserError, match="DDPGLoss: expected one that does not blend its targets yet"):
        blend_targets(twice, Reciprocal(N))
    for first, second in ((lambda x: x, lambda x: x.value_estimator), (lambda x: x.value_estimator, lambda x: x)):
        both = made("ppo")
        blend_targets(first(both), Reciprocal(N))
        with pytest.raises(UserError, match="expected one that does not blend its targets yet, this one does"):
            blend_targets(second(both), Reciprocal(N))
    with pytest.raises(UserError, match="TD0Estimator: expected one that does not blend its targets yet"):
        blend_targets(twice.value_estimator, Reciprocal(N))
    for wrong in (0.5, ReciprocalCritics([torch.nn.Linear(3, 1)] * N)):
        name = type(wrong).__name__
        with pytest.raises(UserError, match=f"^reciprocal: expected a marl.reciprocity.Reciprocal, got {name}$"):
            blend_targets(made("ddpg"), wrong)
    with pytest.raises(UserError, match=r"expected a DDPGLoss, TD3Loss, QMixerLoss, PPOLoss .* got DQNLoss"):
        net = TensorDictModule(torch.nn.Linear(3, 2), in_keys=["observation"], out_keys=["action_value"])
        blend_targets(DQNLoss(net, action_space="categorical"), Reciprocal(N))
    four = made("ddpg")
    blend_targets(four, Reciprocal(4))
    with pytest.raises(UserError, match=r"expected shape \[rows, 4, \*\] for 4 agents, got \[6, 3, 3\]"):
        four(batch("ddpg"))
    traced = made("ppo")
    traced.make_value_estimator(ValueEstimators.VTrace, gamma=0.9)
    with pytest.raises(UserError, match="expected TD0, TD1, TDLambda or GAE, got VTrace"):
        blend_targets(traced, Reciprocal(N))
    actor = TensorDictModule(torch.nn.Linear(3, 1), in_keys=["observation"], out_keys=["action"])
    critic = TensorDictModule(torch.nn.Linear(3, 1), in_keys=["observation"], out_keys=["state_action_value"])
    with pytest.raises(UserError, match="TD3Loss: expected delay_qvalue=True"):
        blend_targets(TD3Loss(actor, critic, bounds=(-1.0, 1.0), delay_qvalue=False), Reciprocal(N))
