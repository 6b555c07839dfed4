"""The batched particle engine as an environment: randomness, save and restore, limits, bad input, pictures."""

import numpy as np
import pytest
import torch
from test_mpe_rules import double, place

from marl.envs import make_env
from marl.envs.check import check_env
from marl.envs.mpe.options import BATCHED, SCENARIOS
from marl.types import UserError


def random_action(env, generator):
    shape = (env.members, env.spec.n_agents, env.copies)
    if env.spec.discrete:
        draws = [torch.randint(n, (env.members, env.copies), generator=generator) for n in env.spec.action_sizes]
        return torch.stack(draws, 1)
    return torch.rand(*shape, env.spec.action_size, generator=generator) * 2 - 1


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_keeps_the_contract(name):
    check_env(lambda seeds: make_env(f"mpe/{name}", seeds=seeds, copies=2, options={"max_cycles": 6}), steps=20)


@pytest.mark.parametrize("name", BATCHED)
@pytest.mark.parametrize("continuous", [True, False], ids=["continuous", "discrete"])
def test_member_alone_lives_the_same_life_as_in_a_population(name, continuous):
    options = {"continuous": continuous, "max_cycles": 7}
    agents = 7 if "spread" in name else None  # torch.sum over seven rows depends on where a copy lies
    many = make_env(f"mpe/{name}", seeds=[3, 5, 9], copies=5, agents=agents, options=options)
    one = make_env(f"mpe/{name}", seeds=[5], copies=5, agents=agents, options=options)
    assert torch.equal(many.reset()[1:2], one.reset())
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        action = random_action(many, generator)
        a, b = many.step(action), one.step(action[1:2])
        assert all(torch.equal(x[1:2], y) for x, y in zip(a[:5], b[:5], strict=True))
    assert not torch.equal(a.obs[0], a.obs[1])


def test_a_member_that_ends_early_does_not_disturb_the_others():
    """With terminate_on_success members reset at different times; each still draws as it would alone."""
    options = {"terminate_on_success": True, "prey": "heuristic", "max_cycles": 11}
    many = make_env("mpe/simple_tag_v3", seeds=[0, 1, 2, 3], copies=3, agents=6, options=options)
    alone = [make_env("mpe/simple_tag_v3", seeds=[s], copies=3, agents=6, options=options) for s in range(4)]
    many.reset()
    for env in alone:
        env.reset()
    generator = torch.Generator().manual_seed(0)
    won = 0
    for _ in range(80):
        action = random_action(many, generator)
        step = many.step(action)
        won += int(step.terminated[:, 0].sum())
        for p, env in enumerate(alone):
            assert torch.equal(env.step(action[p : p + 1]).obs, step.obs[p : p + 1])
    assert won > 0


@pytest.mark.parametrize("name", BATCHED)
def test_restored_environment_goes_on_bit_for_bit_through_the_next_resets(name):
    def fresh(seeds):
        env = make_env(f"mpe/{name}", seeds=seeds, copies=4, options={"max_cycles": 9})
        env.reset()
        return env

    env, generator = fresh([1, 2]), torch.Generator().manual_seed(0)
    for _ in range(5):
        env.step(random_action(env, generator))
    saved, other = env.state_dict(), fresh([8, 9])
    then = saved["world"]["pos"].clone()
    other.load_state_dict(saved)
    for _ in range(22):
        action = random_action(env, generator)
        a, b = env.step(action), other.step(action)
        assert all(torch.equal(x, y) for x, y in zip(a[:5], b[:5], strict=True))
    # what was saved has not moved on with the environments that it came from and went to
    assert torch.equal(saved["world"]["pos"], then) and saved["time"].tolist() == [5] * 8


def test_time_limit_truncates_and_shows_the_true_last_observation():
    short = make_env("mpe/simple_spread_v3", copies=2, options={"max_cycles": 3})
    long = make_env("mpe/simple_spread_v3", copies=2, options={"max_cycles": 30})
    first = short.reset()
    long.reset()
    for t in range(3):
        action = torch.full((1, 3, 2, 5), 0.1 * t)
        a, b = short.step(action), long.step(action)
        assert torch.equal(a.next_obs, b.next_obs) and torch.equal(a.reward, b.reward)
    assert a.done.all() and a.truncated.all() and not a.terminated.any() and not b.done.any()
    assert not torch.equal(a.obs, a.next_obs)
    assert not a.obs[..., :2].any()  # the next episode begins at rest,
    assert not torch.equal(a.obs, first)  # somewhere else


def test_success_terminates_but_not_at_the_time_limit():
    for limit, terminated in ((5, True), (1, False)):
        env = double("simple_spread_v3", agents=1, terminate_on_success=True, max_cycles=limit)
        place(env, [[0, 0], [0.05, 0]])
        step = env.step(torch.zeros(1, 1, 1, 5))
        assert bool(step.done) and bool(step.terminated) is terminated


def test_what_step_returned_is_never_written_again():
    env = make_env("mpe/simple_tag_v3", copies=2, options={"max_cycles": 2})
    kept = [env.reset()]
    copies = [kept[0].clone()]
    for _ in range(5):
        step = env.step(torch.ones(1, 3, 2, 5))
        kept += step[:5]
        copies += [x.clone() for x in step[:5]]
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


@pytest.mark.parametrize(("name", "agents", "landmarks"), [
    ("simple_spread_v3", 1.0, 1.0),
    ("simple_tag_v3", 1.0, 0.9),
    ("spread_assigned", 4.0, 4.0),
])  # fmt: skip
def test_starts_are_uniform_on_their_squares(name, agents, landmarks):
    env = make_env(f"mpe/{name}", copies=4000)
    env.reset()
    world = env.world
    for pos, half in ((world.pos[: world.agents], agents), (world.pos[world.agents :], landmarks)):
        assert half * 0.999 < pos.max() <= half and -half <= pos.min() < -half * 0.999
        # a mean of at least 8000 uniform numbers: standard error below half / sqrt(3 * 8000) = .0065 half
        assert pos.mean((1, 2)).abs().max() < 0.04 * half
        assert pos.var((0, 1, 2)) == pytest.approx(half**2 / 3, rel=0.05)
    assert not world.vel.any()


def test_goals_are_drawn_evenly_and_apart():
    env = make_env("mpe/simple_reference_v3", copies=9000)
    env.reset()
    counts = torch.bincount(env.world.goal[0] * 3 + env.world.goal[1], minlength=9)
    assert counts.min() > 850 and counts.max() < 1150  # 1000 expected, standard deviation 30


@pytest.mark.parametrize(("name", "agents", "options", "words"), [
    ("simple_spred_v3", None, {}, "did you mean 'simple_spread_v3'"),
    ("simple_push_v3", None, {"num_good": 2}, "no option 'num_good'"),
    ("simple_spread_v3", None, {"prey": "heuristic"}, "no option 'prey'"),
    ("simple_push_v3", 3, {}, "has 2 agents, got 3"),
    ("simple_adversary_v3", 1, {}, "at least 2 agents"),
    ("simple_spread_v3", 0, {}, "at least 1 agent"),
    ("simple_spread_v3", None, {"local_ratio": 1.5}, "from 0 to 1"),
    ("simple_spread_v3", None, {"local_ratio": 0.5, "dynamics": "openai"}, "local_ratio belongs to dynamics=mpe2"),
    ("simple_spread_v3", None, {"engine": "mpe2", "dynamics": "openai"}, "needs the batched engine"),
    ("simple_crypto_v3", None, {"dynamics": "openai"}, "needs the batched engine"),
    ("simple_crypto_v3", 4, {}, "fixed number of agents"),
    ("simple_world_comm_v3", 2, {}, "too few"),
    ("spread_assigned", None, {"engine": "mpe2"}, "not part of mpe2"),
    ("simple_tag_v3", None, {"prey": "checkpoint"}, "together"),
    ("simple_tag_v3", None, {"num_agent_neighbors": 0}, "at least 1"),
    ("simple_world_comm_v3", None, {"num_food": 0}, "num_food: expected at least 1, got 0"),  # mpe2 fails at a step
    ("simple_spread_v3", None, {"curriculum": True, "curriculum_stage": 2}, "0 to 1"),
    ("simple_tag_v3", None, {"curriculum": True, "curriculum_stage": 1, "engine": "mpe2"}, "stays at stage 0"),
])  # fmt: skip
def test_bad_input_is_one_clear_line(name, agents, options, words):
    with pytest.raises(UserError, match=words) as error:
        make_env(f"mpe/{name}", agents=agents, options=options)
    assert "\n" not in str(error.value)


def test_index_that_an_agent_does_not_have_is_refused():
    env = make_env("mpe/simple_speaker_listener_v4", options={"continuous": False})
    env.reset()
    with pytest.raises(ValueError, match="choices"):
        env.step(torch.tensor([[[4], [4]]]))  # the speaker has three words


def test_picture_shows_agents_and_landmarks_in_their_colours():
    env = double("simple_tag_v3", agents=1, num_obstacles=1)
    place(env, [[-1, 0], [1, 0], [0, 1]])
    picture = env.render()
    assert picture.shape == (400, 400, 3) and picture.dtype == np.uint8
    # the camera's half-width is 1 / .9: x = -1 is pixel 20, x = 1 is 380; y = 1 is row 20
    assert picture[200, 20].tolist() == [217, 89, 89]
    assert picture[200, 379].tolist() == [89, 217, 89]
    assert picture[20, 200].tolist() == [64, 64, 64]
    assert picture[200, 200].tolist() == [255, 255, 255]


def test_discs_shrink_as_the_camera_zooms_out_only_with_dynamic_rescaling():
    def dark(**options):
        env = double("simple_spread_v3", agents=1, **options)
        place(env, [[0, 0], [env.camera.item() * 3, 0]])
        return int((env.render() != 255).any(-1).sum())

    assert dark() < dark(dynamic_rescaling=False) / 5  # radius .3 of it: area about .1 of it


def test_mpe2_copies_keep_member_streams_apart():
    options = {"engine": "mpe2"}
    many = make_env("mpe/simple_tag_v3", seeds=[1, 2], copies=2, options=options)
    one = make_env("mpe/simple_tag_v3", seeds=[2], copies=2, options=options)
    assert torch.equal(many.reset()[1:], one.reset())
    action = torch.zeros(2, 3, 2, 5)
    a, b = many.step(action), one.step(action[1:])
    assert torch.equal(a.obs[1:], b.obs)  # the random prey's draws included
