"""The particle games by hand: what moves, what is earned, how the games that bear the same names differ."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.envs import make_env


def place(env, pos, vel=None, goal=None):
    """Put every copy into one state: ``pos [K, 2]``, ``vel [A, 2]``, ``goal [G]``."""
    env.world.pos.copy_(torch.tensor(pos, dtype=env.world.pos.dtype)[..., None])
    env.world.vel.zero_()
    if vel is not None:
        env.world.vel.copy_(torch.tensor(vel, dtype=env.world.pos.dtype)[..., None])
    if goal is not None:
        env.world.goal.copy_(torch.tensor(goal)[:, None])
    env.world.look()


def double(name, agents=None, **options):
    env = make_env(f"mpe/{name}", agents=agents, options={"dtype": "float64", **options})
    env.reset()
    return env


def test_mpe2_moves_with_the_old_velocity_and_index_1_is_minus_x():
    env = double("simple_spread_v3", agents=1, continuous=False)
    place(env, [[0, 0], [1, 0]], vel=[[1, 0]])
    step = env.step(torch.tensor([[[1]]]))
    # position 0 + 1 * .1; velocity 1 * .75 - 5 * .1
    assert step.next_obs[0, 0, 0].tolist() == pytest.approx([0.25, 0, 0.1, 0, 0.9, 0])
    # team -.9, own 0 (it does not touch itself): .5 * -.9
    assert step.reward.item() == pytest.approx(-0.45)


def test_openai_moves_with_the_new_velocity_index_1_is_plus_x_and_an_agent_touches_itself():
    env = double("simple_spread_v3", agents=1, continuous=False, dynamics="openai")
    place(env, [[0, 0], [1, 0]], vel=[[1, 0]])
    step = env.step(torch.tensor([[[1]]]))
    # velocity 1 * .75 + 5 * .1 = 1.25; position 0 + 1.25 * .1
    assert step.next_obs[0, 0, 0].tolist() == pytest.approx([1.25, 0, 0.125, 0, 0.875, 0])
    assert step.reward.item() == pytest.approx(-0.875 - 1)


def test_continuous_actions_are_mapped_to_0_1_and_their_difference_is_the_thrust():
    for dynamics, sign in (("mpe2", 1), ("openai", -1)):
        env = double("simple_spread_v3", agents=1, dynamics=dynamics)
        place(env, [[0, 0], [1, 0]])
        # [-1, 1] to [0, 1]: -x .25, +x .75, -y 1 (cut), +y 0: thrust (.5, -1); velocity = 5 * .1 * thrust
        step = env.step(torch.tensor([0.3, -0.5, 0.5, 7.0, -1.0]).view(1, 1, 1, 5))
        assert step.next_obs[0, 0, 0, :2].tolist() == pytest.approx([sign * 0.25, sign * -0.5])


def test_spread_reward_of_two_touching_agents_in_both_games():
    # landmarks at distance 0 and 1 from the nearest agent: team -1; each agent touches the other: own -1
    state = [[0, 0], [0, 0.2], [0, 0], [0, 1.2]]
    env = double("simple_spread_v3", agents=2, local_ratio=0.25)
    place(env, state)
    assert env.game.reward(env.world)[:, 0].tolist() == pytest.approx([-1, -1])  # .75 * -1 + .25 * -1
    env = double("simple_spread_v3", agents=2, dynamics="openai")
    place(env, state)
    # each: -1 - 1 (other) - 1 (itself) = -3; both earn the sum
    assert env.game.reward(env.world)[:, 0].tolist() == pytest.approx([-6, -6])


def test_curriculum_stage_0_forgives_touching():
    state = [[0, 0], [0, 0.2], [0, 0], [0, 1.2]]
    for stage, own in ((0, 0.0), (1, -1.0)):
        env = double("simple_spread_v3", agents=2, local_ratio=1.0, curriculum=True, curriculum_stage=stage)
        place(env, state)
        assert env.game.reward(env.world)[:, 0].tolist() == [own, own]


def test_speaker_listener_earns_the_squared_distance_once_or_for_each_agent():
    state = [[0, 0], [3, 4], [0, 0], [9, 9], [9, 9]]  # the listener is 5 away from landmark 0
    for dynamics, reward in (("mpe2", -25), ("openai", -50)):
        env = double("simple_speaker_listener_v4", dynamics=dynamics)
        place(env, state, goal=[0])
        assert env.game.reward(env.world)[:, 0].tolist() == pytest.approx([reward, reward])


def test_reference_earns_distances_or_the_sum_of_squares():
    state = [[0, 0], [0, 0], [3, 0], [0, 4], [9, 9]]
    # agent 0's goal for agent 1 is landmark 0 (3 away), agent 1's goal for agent 0 is landmark 1 (4 away)
    for options, reward in (
        ({"local_ratio": 1.0}, [-3, -4]),
        ({"local_ratio": 0.0}, [-3.5, -3.5]),
        ({"dynamics": "openai"}, [-25, -25]),
    ):
        env = double("simple_reference_v3", **options)
        place(env, state, goal=[0, 1])
        assert env.game.reward(env.world)[:, 0].tolist() == pytest.approx(reward)


def test_openai_tag_cuts_the_speed_before_it_moves():
    env = double("simple_tag_v3", agents=1, continuous=False, dynamics="openai", num_obstacles=0, prey="heuristic")
    place(env, [[0, 0], [-5, 0]], vel=[[1.2, 0], [0, 0]])
    step = env.step(torch.tensor([[[1]]]))
    # 1.2 * .75 + 3 * .1 = 1.2, cut to 1, position .1
    assert step.next_obs[0, 0, 0, :4].tolist() == pytest.approx([1, 0, 0.1, 0])


def test_every_predator_earns_ten_for_every_touch():
    env = double("simple_tag_v3", agents=3, num_obstacles=0)
    place(env, [[0, 0], [0.1, 0.1], [5, 5], [0.1, 0]])  # predators 0 and 1 within .125 of the prey
    assert env.game.reward(env.world)[:, 0].tolist() == [20, 20, 20]


def test_adversary_and_push_rewards():
    env = double("simple_adversary_v3")
    place(env, [[0, 0], [3, 0], [0, 1], [0, 4], [9, 9]], goal=[0])
    # distances to the goal: adversary 4, good 5 and 3
    assert env.game.reward(env.world)[:, 0].tolist() == pytest.approx([-4, 4 - 3, 4 - 3])
    env = double("simple_push_v3")
    place(env, [[0, 0], [3, 0], [9, 9], [0, 4]], goal=[1])
    assert env.game.reward(env.world)[:, 0].tolist() == pytest.approx([5 - 4, -5])


def test_spread_assigned_earns_minus_the_distance_to_ones_own_landmark_in_both_games():
    for dynamics in ("mpe2", "openai"):
        env = double("spread_assigned", agents=2, dynamics=dynamics)
        place(env, [[0, 0], [0, 0.1], [3, 4], [0, 0.1]])
        assert env.game.reward(env.world)[:, 0].tolist() == pytest.approx([-5, 0])


def test_contact_force_at_the_rim_is_log_2_times_force_times_margin():
    env = double("simple_spread_v3", agents=2)
    place(env, [[0, 0], [0.3, 0], [9, 9], [9, 9]])
    env.world.advance(torch.zeros(2, 2, 1, dtype=torch.float64), env.world.words)
    speed = 100 * 0.001 * math.log(2) * 0.1
    assert env.world.vel[:, 0, 0].tolist() == pytest.approx([-speed, speed])


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(2, 6))
def test_contacts_among_agents_keep_the_total_momentum(seed, agents):
    env = double("simple_spread_v3", agents=agents)
    generator = torch.Generator().manual_seed(seed)
    env.world.pos.copy_(torch.rand(env.world.pos.shape, generator=generator, dtype=torch.float64) * 0.4)
    env.world.vel.copy_(torch.rand(env.world.vel.shape, generator=generator, dtype=torch.float64))
    env.world.look()
    before = env.world.vel.sum(0)
    env.world.advance(torch.zeros_like(env.world.vel), env.world.words)
    torch.testing.assert_close(env.world.vel.sum(0), before * 0.75)


def test_agents_on_the_same_spot_stay_finite():
    env = double("simple_spread_v3", agents=2)
    place(env, [[0, 0], [0, 0], [1, 1], [1, 1]])
    assert env.step(torch.zeros(1, 2, 1, 5)).next_obs.isfinite().all()
