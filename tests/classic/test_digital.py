import numpy as np
import pytest
from pettingzoo.test import parallel_api_test

from marl.classic.digital import Digital, parallel_env
from marl.types import UserError


def test_the_world_is_drawn_as_the_paper_says():
    world = Digital()
    assert world.transition.shape == (20, 2, 20) and world.reward.shape == (20, 20, 2)
    assert world.transition.sum(-1) == pytest.approx(np.ones((20, 2)))
    assert world.reward.min() >= 0 and world.reward.max() <= 4
    assert world.reward.mean() == pytest.approx(2, abs=0.15)  # 800 draws of U[0, 4], standard error .04
    # U[0, 1] entries over their sum: the largest of 20 is about 1 / 10
    assert world.transition.max() < 0.2


def test_the_optimum_satisfies_bellmans_equation_and_matches_the_notes():
    world = Digital()
    best = world.optimum
    assert world.bellman_residual(best) < 1e-9
    assert world.bellman_residual(best + 1) == pytest.approx(1 - 0.8)  # gamma times 1 comes back
    assert [best.min(), best.max()] == pytest.approx([9.98, 11.01], abs=0.005)


def test_the_optimum_is_found_by_plain_value_iteration_too():
    world = Digital(agents=3, states=5, gamma=0.5, seed=4)
    q = np.zeros((5, 2))
    for _ in range(60):  # .5^60 = 1e-18
        q = world.reward.mean(0) + 0.5 * world.transition @ q.max(-1)
    assert world.optimum == pytest.approx(q, abs=1e-9)


def test_shared_rewards_are_not_flattened_by_averaging():
    private, shared = Digital(), Digital(shared_rewards=True)
    assert (shared.reward == shared.reward[0]).all()
    assert np.ptp(shared.optimum) > 3 * np.ptp(private.optimum)
    assert (shared.transition == private.transition).all()


def test_a_seed_is_a_world():
    assert (Digital(seed=3).reward == Digital(seed=3).reward).all()
    assert (Digital(seed=3).reward != Digital(seed=4).reward).all()


def test_a_walk_hangs_together_and_all_agents_live_it():
    world = Digital(agents=3, states=5)
    walk = world.walk(np.random.default_rng(0), 4, 500)
    assert walk.state[0].tolist() == [4, 4, 4]
    assert (walk.state[1:] == walk.next_state[:-1]).all()
    assert (walk.state == walk.state[:, :1]).all() and (walk.action == walk.action[:, :1]).all()
    means = world.reward[np.arange(3), walk.state, walk.action]
    noise = walk.reward - means
    assert np.abs(noise).max() <= 0.5 and noise.std() == pytest.approx(1 / 12**0.5, rel=0.1)
    assert np.corrcoef(noise.T)[0, 1] == pytest.approx(0, abs=0.15)  # each its own
    assert not walk.terminated.any()


def test_a_walk_goes_where_the_transition_matrix_says():
    world = Digital(agents=1, states=4, seed=1)
    walk = world.walk(np.random.default_rng(1), 0, 80_000)
    counts = np.zeros((4, 2, 4))
    np.add.at(counts, (walk.state[:, 0], walk.action[:, 0], walk.next_state[:, 0]), 1)
    # at least 5 000 visits of each pair: standard errors below .008
    assert counts / counts.sum(-1, keepdims=True) == pytest.approx(world.transition, abs=0.03)
    assert counts.sum(-1).min() > 5_000


def test_one_step_carries_out_the_action_of_some_agent():
    world = Digital(agents=2, states=3, noise=0.0, seed=1)
    assert world.transition[1].min() > 0.02
    rng, seen = np.random.default_rng(0), set()
    for _ in range(800):
        after, reward, ended = world.step(np.array([1]), np.array([0, 1]), rng)
        (carried_out,) = np.flatnonzero((reward == world.reward[:, 1].T).all(-1))
        seen.add((int(carried_out), int(after[0])))
        assert not ended.any()
    assert seen == {(u, y) for u in (0, 1) for y in (0, 1, 2)}
    assert world.view(np.array([2])).tolist() == [[2], [2]]


def test_a_step_refuses_actions_that_there_are_not():
    with pytest.raises(UserError, match=r"action: expected 2 numbers from 0 to 1, got \[7, 7\]"):
        Digital(agents=2, states=3).step(np.array([0]), np.array([7, 7]), np.random.default_rng(0))


def test_the_pettingzoo_face_passes_their_test():
    parallel_api_test(parallel_env(agents=3, states=4, horizon=10), num_cycles=50)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"agents": 0}, "agents: expected a whole number of 1 or more, got 0"),
        ({"states": -1}, "states"),
        ({"noise": -0.1}, "noise: expected 0 or more"),
        ({"noise": float("nan")}, "noise: expected 0 or more, got nan"),
        ({"seed": -1}, "seed -1: expected a whole number of 0 or more"),
        (
            {"states": 1_000_000},
            r"transition \[1000000, 2, 1000000\]: 2000000000000 numbers, expected 50000000 at most",
        ),
        ({"agents": 10_000_000}, r"tables \[10000000, 20, 2\]"),
    ],
)
def test_bad_worlds_are_refused_in_one_line(options, words):
    with pytest.raises(UserError, match=words) as error:
        Digital(**options)
    assert "\n" not in str(error.value)
