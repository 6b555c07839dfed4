"""How the prey of simple_tag acts, and what its policy file must be."""

import math

import pytest
import torch
from safetensors.torch import save_file
from test_mpe_rules import double, place

from marl.envs import make_env
from marl.types import UserError


def test_heuristic_prey_flees_the_nearest_predator_at_full_thrust():
    env = double("simple_tag_v3", agents=3, num_obstacles=0, prey="heuristic")
    place(env, [[0.3, 0.4], [2, 2], [-0.6, 0], [0, 0]])
    assert env.prey(env.world)[0, :, 0].tolist() == pytest.approx([-0.6, -0.8])  # nearest at (.3, .4), distance .5
    env.step(torch.zeros(1, 3, 1, 5))
    assert env.world.vel[3, :, 0].tolist() == pytest.approx([-0.6 * 0.4, -0.8 * 0.4])  # 4 * .1


def test_heuristic_prey_does_not_push_further_out_of_the_arena():
    env = double("simple_tag_v3", agents=1, num_obstacles=0, prey="heuristic")
    place(env, [[0.7, 0.4], [1.0, 0.8]])
    assert env.prey(env.world)[0, :, 0].tolist() == pytest.approx([0, 0.8])


def test_heuristic_prey_with_discrete_actions_takes_the_longer_axis():
    env = double("simple_tag_v3", agents=1, num_obstacles=0, prey="heuristic", continuous=False)
    place(env, [[0.1, -0.2], [0, 0]])
    assert env.prey(env.world)[0, :, 0].tolist() == [0, 1]


def test_random_prey_draws_from_its_own_actions():
    for continuous in (True, False):
        env = make_env("mpe/simple_tag_v3", copies=4000, options={"continuous": continuous})
        env.reset()
        thrust = env.prey(env.world)[0]
        assert thrust.abs().max() <= 1
        assert thrust.mean(1).abs().max() < 0.04
        # difference of two uniforms on [0, 1]: 1 / 6; one of five moves: 2 / 5
        assert thrust.var(1).tolist() == pytest.approx([1 / 6 if continuous else 2 / 5] * 2, rel=0.1)


def test_checkpoint_prey_acts_by_its_network(tmp_path):
    path = str(tmp_path / "prey.safetensors")
    # hidden = relu(x, -x) of the prey's own velocity; output +x = tanh(2 * hidden 0), -x = tanh(2 * hidden 1)
    first, last = torch.zeros(2, 10), torch.zeros(5, 2)
    first[0, 0], first[1, 0], last[2, 0], last[1, 1] = 1, -1, 2, 2
    bias = {"l0.bias": torch.zeros(2), "l1.bias": torch.zeros(5)}
    save_file({"l0.weight": first, "l1.weight": last, **bias}, path)
    env = double("simple_tag_v3", agents=3, num_obstacles=0, prey="checkpoint", prey_policy=path)
    place(env, [[1, 1], [1, 0], [0, 1], [0, 0]], vel=[[0, 0]] * 3 + [[0.5, 0]])
    # +x: (tanh(1) + 1) / 2, -x: (0 + 1) / 2
    assert env.prey(env.world)[0, :, 0].tolist() == pytest.approx([math.tanh(1) / 2, 0])
    env = double("simple_tag_v3", num_obstacles=0, prey="checkpoint", prey_policy=path, continuous=False)
    place(env, [[1, 1], [1, 0], [0, 1], [0, 0]], vel=[[0, 0]] * 3 + [[-0.5, 0]])
    assert env.prey(env.world)[0, :, 0].tolist() == [-1, 0]
    with pytest.raises(UserError, match=r"l0.weight should be \[2, 14\], is \[2, 10\]"):
        double("simple_tag_v3", prey="checkpoint", prey_policy=path)


def test_a_policy_file_that_is_none_is_the_users_error(tmp_path):
    path = tmp_path / "prey.safetensors"
    last_layer = {"l1.weight": torch.zeros(5, 4), "l1.bias": torch.zeros(5)}
    with pytest.raises(UserError, match="cannot be read"):
        double("simple_tag_v3", prey="checkpoint", prey_policy=str(path))
    path.write_bytes(b"no tensors here")
    with pytest.raises(UserError, match="cannot be read"):
        double("simple_tag_v3", prey="checkpoint", prey_policy=str(path))
    save_file({"l0.weight": torch.zeros(4, 14), "l0.bias": torch.tensor(0.0), **last_layer}, str(path))
    with pytest.raises(UserError, match=r"l0.weight should be \[1, 14\], is \[4, 14\]"):
        double("simple_tag_v3", prey="checkpoint", prey_policy=str(path))
    save_file({"l0.weight": torch.zeros(4, 14), "l0.bias": torch.zeros(4, 1), **last_layer}, str(path))
    with pytest.raises(UserError, match=r"l0.bias should be \[4\], is \[4, 1\]"):
        double("simple_tag_v3", prey="checkpoint", prey_policy=str(path))
    save_file({"weight": torch.zeros(2)}, str(path))
    with pytest.raises(UserError, match=r"expected l0.weight"):
        double("simple_tag_v3", prey="checkpoint", prey_policy=str(path))
