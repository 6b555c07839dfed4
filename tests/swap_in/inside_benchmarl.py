"""What must hold of BenchMARL's algorithms with reciprocity; ``test_swap_benchmarl.py`` runs it where BenchMARL is."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from benchmarl.algorithms import MaddpgConfig, MappoConfig, QmixConfig
from benchmarl.environments import VmasTask
from benchmarl.experiment import Experiment, ExperimentConfig
from benchmarl.models import GruConfig
from benchmarl.models.mlp import Mlp, MlpConfig

from marl.testing import check_reciprocity

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples" / "swap_in" / "benchmarl"))

import reciprocal_algorithms as ours

CONFIGS = {
    "maddpg": (MaddpgConfig, ours.ReciprocalMaddpgConfig),
    "mappo": (MappoConfig, ours.ReciprocalMappoConfig),
    "qmix": (QmixConfig, ours.ReciprocalQmixConfig),
}
N, GROUP = 3, "agents"
torch.set_num_threads(1)


def algorithm_config(name, kappa, **settings):
    """kappa None: BenchMARL's own. Every agent has networks of its own."""
    config = CONFIGS[name][kappa is not None].get_from_yaml()
    if name != "qmix":
        config.share_param_critic = False
    for key, value in settings.items() if kappa is None else {"kappa": kappa, **settings}.items():
        setattr(config, key, value)
    return config


def small(folder, name, kappa, seed=0, model=None, **settings):
    config = ExperimentConfig.get_from_yaml()
    config.save_folder, config.loggers, config.create_json, config.evaluation = str(folder), [], False, False
    config.share_policy_params, config.prefer_continuous_actions = False, name != "qmix"
    config.max_n_frames, config.lr = 120, 1e-2
    config.off_policy_collected_frames_per_batch = config.on_policy_collected_frames_per_batch = 60
    config.off_policy_n_envs_per_worker = config.on_policy_n_envs_per_worker = 4
    config.off_policy_n_optimizer_steps = config.on_policy_n_minibatch_iters = 3
    config.off_policy_train_batch_size, config.on_policy_minibatch_size = 32, 30
    config.off_policy_memory_size = 200
    task = VmasTask.SIMPLE_SPREAD.get_from_yaml()
    task.config["max_steps"] = 10
    model = model or MlpConfig(num_cells=[16], layer_class=torch.nn.Linear, activation_class=torch.nn.ReLU)
    return Experiment(task, algorithm_config(name, kappa, **settings), model, seed=seed, config=config)


def trained(folder, name, kappa, **settings):
    """All tensors of the loss after two iterations: networks, their targets."""
    experiment = small(folder, name, kappa, **settings)
    experiment.run()
    state = experiment.losses[GROUP].state_dict()
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}, torch.get_rng_state()


@pytest.mark.parametrize("name", CONFIGS)
def test_with_kappa_0_training_ends_in_the_same_bits_and_with_kappa_above_in_others(name, tmp_path):
    expected, stream = trained(tmp_path, name, None)
    got, stream_of_ours = trained(tmp_path, name, 0.0)
    assert len(expected) > 8 and expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected) and torch.equal(stream, stream_of_ours)
    changed, _ = trained(tmp_path, name, 0.5)
    assert any(not torch.equal(expected[key], changed[key]) for key in expected)


@pytest.fixture(scope="module", params=CONFIGS)
def played(request, tmp_path_factory):
    """An algorithm's name, an experiment of it and what it collects first."""
    experiment = small(tmp_path_factory.mktemp("played"), request.param, None)
    batch = next(iter(experiment.collector)).detach()
    reward = batch["next", GROUP, "reward"]
    reward.copy_((reward * 64).round() / 64)  # GAE's target is (r - V) + V: so that it is r to the bit
    return request.param, experiment, batch


class Host:
    """An algorithm of the experiment's, with fresh networks, and the batch of the experiment."""

    def __init__(self, played, kappa, seed, **settings):
        self.name, experiment, self.batch = played
        torch.manual_seed(seed)
        self.algorithm = algorithm_config(self.name, kappa, **settings).get_algorithm(experiment)
        self.loss, _ = self.algorithm.get_loss_and_updater(GROUP)

    def processed(self, terminated):
        batch = self.batch.clone()
        batch["next", "terminated"].fill_(terminated)
        batch["next", "done"].logical_or_(batch["next", "terminated"])  # some episodes reach their time limit
        return self.algorithm.process_batch(GROUP, batch)

    def targets(self, terminated):
        """What TorchRL compares predictions with."""
        with patch.object(sys.modules[type(self.loss).__module__], "distance_loss", wraps=torch.sub) as compared:
            compared.side_effect = lambda a, b, *_, **__: a - b
            self.loss(self.processed(terminated).reshape(-1))
        (call,) = compared.call_args_list
        target = call.args[0 if self.name == "mappo" else 1]
        return target.unsqueeze(0) if self.name == "qmix" else target.flatten(1).transpose(0, 1)

    def answer(self, values):
        def instead(module, _, output):
            shape = output.get(module.out_key).shape
            return output.set(module.out_key, torch.tensor(values).view(-1, 1).expand(shape).clone())

        network = {"maddpg": "value_network", "mappo": "critic_network", "qmix": "local_value_network"}[self.name]
        for module in getattr(self.loss, network).modules():
            if isinstance(module, Mlp):
                module.register_forward_hook(instead)


def test_the_real_losses_keep_the_promises_of_reciprocity(played):
    check_reciprocity(lambda kappa, seed: Host(played, kappa, seed), agents=N)


def mean_of_others(values):
    """``[N_i, N_j, ...]`` -> the mean over j other than i."""
    return torch.stack([values[i, [j for j in range(N) if j != i]].mean(0) for i in range(N)])


def test_targets_are_those_computed_by_hand(played):
    """adjacency exact: agent i leans on the mean of what the other networks say where it stands."""
    name, _, batch = played
    host = Host(played, 0.25, 1, adjacency="exact")
    loss, params = host.loss, host.loss._cached_target_params if name != "mappo" else None
    gamma, after, reward = 0.99, batch["next"].clone(), batch["next", GROUP, "reward"].squeeze(-1)
    if name == "qmix":
        network = loss.value_estimator.value_network
        with params.to_module(network):
            local, mixer = network.module
            local(after)
            best = after[GROUP, "action_value"].argmax(-1)
            seen, said = after[GROUP, "observation"], []
            for i in range(N):  # everybody stands where agent i stands, so that network j sees what agent i sees
                everybody = after.clone()
                everybody[GROUP, "observation"] = seen[..., i : i + 1, :].expand_as(seen).clone()
                values = local.module[0](everybody)[GROUP, "action_value"]
                said.append(values.gather(-1, best[..., i, None, None].expand(*values.shape[:-1], 1)).movedim(-2, 0))
            said = torch.stack(said)  # [N_i, N_j, *B, 1]
            own = torch.stack([said[i, i] for i in range(N)])
            after[GROUP, "chosen_action_value"] = (0.75 * own + 0.25 * mean_of_others(said)).movedim(0, -2)
            expected = reward.mean(-1) + gamma * mixer(after)["chosen_action_value"].squeeze(-1)
        assert torch.allclose(host.targets(False)[0], expected.reshape(-1), atol=1e-5)
        return
    if name == "maddpg":
        network = loss.value_estimator.value_network
        with params.to_module(network):
            value = network(after)[GROUP, "state_action_value"].squeeze(-1)
    else:
        with loss.target_critic_network_params.to_module(loss.critic_network):
            value = loss.critic_network(after)[GROUP, "state_value"].squeeze(-1)
    value = value.movedim(-1, 0).detach()  # [N, *B]
    mixed = 0.75 * value + 0.25 * mean_of_others(value.expand(N, *value.shape))
    reward = reward.movedim(-1, 0)
    if name == "maddpg":
        expected = reward + gamma * mixed
    else:  # lambda .9; after an episode's last step there is nothing but the value
        steps, further, expected = reward.shape[-1], mixed[..., -1], torch.empty_like(reward)
        for t in reversed(range(steps)):
            last = batch["next", "done"][:, t, 0]
            further = torch.where(last, mixed[..., t], 0.1 * mixed[..., t] + 0.9 * further)
            expected[..., t] = further = reward[..., t] + gamma * further
    assert torch.allclose(host.targets(False), expected.flatten(1), atol=1e-4)


def test_mappo_without_anybody_to_hear_is_the_generalised_advantage_estimate(played):
    """The two forms agree where nothing is blended: each hears itself at the very same state."""
    if played[0] != "mappo":
        return
    hosts = Host(played, 0.5, 1, adjacency="exact", graph="self"), Host(played, None, 1)
    assert played[2]["next", "done"].any()  # episodes end within the batch
    got, expected = (host.algorithm.process_batch(GROUP, host.batch.clone()) for host in hosts)
    for key in ("advantage", "value_target"):
        assert torch.allclose(got[GROUP, key], expected[GROUP, key], atol=1e-4)


@pytest.mark.parametrize("adjacency", ["resample", "mask", "gaussian", "knn", "peer", "exact"])
def test_every_adjacency_gives_other_targets_of_the_same_shape(played, adjacency):
    settings = {"adjacency": adjacency, "rho": [1, 2], "count": 2}
    targets = [Host(played, kappa, 1, **settings).targets(False) for kappa in (0.0, 0.5)]
    assert targets[0].shape == targets[1].shape and not torch.equal(*targets) and targets[1].isfinite().all()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"kappa": 2}, "kappa: expected a number from 0 to 1, got 2"),
        ({"graph": "ringg"}, "did you mean 'ring'"),
        ({"adjacency": "masc"}, "did you mean 'mask'"),
        ({"rho": [0]}, "rho: expected levels of 1 or more, got 0"),
        ({"model": GruConfig.get_from_yaml()}, "recurrent networks do not go with reciprocity"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings, words, tmp_path):
    with pytest.raises(ours.Refused) as refused:
        small(tmp_path, "maddpg", **{"kappa": 0.5, **settings})
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_critic_that_all_agents_share_is_heard_as_well(played):
    if played[0] == "qmix":
        return  # shares its networks by a setting of the experiment
    targets = [Host(played, kappa, 1, share_param_critic=True).targets(False) for kappa in (None, 0.0, 0.5)]
    assert torch.equal(targets[0], targets[1]) and not torch.equal(targets[1], targets[2])


def test_the_random_numbers_of_reciprocity_are_in_benchmarls_checkpoint(played):
    one, other = (Host(played, 0.5, 1) for _ in range(2))
    one.targets(False)
    other.loss.load_state_dict(one.loss.state_dict())
    assert torch.equal(one.targets(False), other.targets(False))
    assert not torch.equal(one.targets(False), Host(played, 0.5, 1).targets(False))
