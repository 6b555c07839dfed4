"""Numpy copies laid out as [P, N, E, ...], and what the pool adds: padding, resets, agents that leave."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
import torch
from toy_copies import Duel, Toy

from marl.envs import EnvSpec, make_env
from marl.envs.check import check_env
from marl.envs.copies import CopiesEnv, LocalPool, copy_seeds
from marl.envs.packing import generator_state, load_generator, pack, unpack
from marl.envs.workers import make_copies
from marl.types import UserError


def toy(seeds: tuple[int, ...] = (0,), copies: int = 1, exact: bool = True) -> CopiesEnv:
    return make_copies(functools.partial(Toy, exact=exact), seeds=seeds, copies=copies)


def zeros(env: CopiesEnv) -> torch.Tensor:
    return torch.zeros(env.members, env.spec.n_agents, env.copies, 1)


class Solo(Toy):
    """The second agent of ``Toy``, never leaving before the time is up; it is paid its own action."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.spec = EnvSpec("solo", ("a",), (2,), (1,), discrete=False)

    def observe(self) -> list[np.ndarray]:
        return super().observe()[1:]

    def step(self, action: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, bool]:
        obs, _, _, _ = super().step(action * 0)
        return obs, action[:, 0], np.array([self.drawn < 0.1]), self.time == 6


@pytest.mark.parametrize("exact", [True, False])
def test_copies_keep_the_contract(exact: bool) -> None:
    check_env(lambda seeds: make_copies(functools.partial(Toy, exact=exact), seeds=seeds, copies=2))


def test_independent_learners_keep_the_contract() -> None:
    check_env(lambda seeds: make_copies(Solo, seeds=seeds, copies=2, learners=3))


def test_an_agent_that_left_sees_zeros_earns_nothing_and_stays_terminated_to_the_end() -> None:
    env = toy()
    env.reset()
    steps = [env.step(zeros(env)) for _ in range(4)]
    # agent 1 leaves at step 2: its last observation and reward count, then zeros; agent 0 ends the episode at step 4
    assert [s.terminated[0, :, 0].tolist() for s in steps] == [
        [False, False],
        [False, True],
        [False, True],
        [True, True],
    ]
    assert [s.done[0, :, 0].tolist() for s in steps] == [[False, False]] * 3 + [[True, True]]
    assert [s.next_obs[0, 1, 0, 1].item() for s in steps] == [1, 2, 0, 0]
    assert steps[1].reward[0, 1, 0] == steps[1].next_obs[0, 1, 0, 0] != 0
    assert [s.reward[0, 1, 0].item() for s in steps[2:]] == [0, 0]


def test_the_step_that_ends_an_episode_shows_its_last_observation_and_the_next_first_one() -> None:
    env = toy()
    env.reset()
    for _ in range(4):
        step = env.step(zeros(env))
    assert step.next_obs[0, 0, 0, 0] == 4 and step.obs[0, 0, 0, 0] == 0
    assert env.step(zeros(env)).next_obs[0, 0, 0, 0] == 1
    assert not env.step(zeros(env)).done.any()


def test_narrow_observations_are_padded_with_zeros() -> None:
    env = toy()
    env.reset()
    obs = env.step(zeros(env)).obs
    assert obs.shape == (1, 2, 1, 2) and obs.dtype == torch.float32
    assert obs[0, 0, 0].tolist() == [1.0, 0.0]  # agent 0 sees the step only


def test_every_action_reaches_its_own_copy_and_agent() -> None:
    class Echo(Toy):
        """Pays each agent its own action."""

        def step(self, action: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, bool]:
            obs, _, _, _ = super().step(action * 0)
            return obs, action[:, 0], np.zeros(2, bool), False

    for env in (
        make_copies(Echo, seeds=[5, 6, 7], copies=4),
        make_copies(Solo, seeds=[5, 6, 7], copies=4, learners=2),
    ):
        env.reset()
        action = torch.rand(3, 2, 4, 1) / 2  # P = 3, N = 2, E = 4
        assert torch.equal(env.step(action).reward, action[..., 0])


def test_independent_learners_are_named_and_their_episodes_end_on_their_own() -> None:
    env = make_copies(Solo, seeds=[0], copies=1, learners=20)
    assert env.spec.agents[:2] == ("learner_0", "learner_1")
    assert env.spec.obs_sizes == (2,) * 20 and env.spec.independent
    env.reset()
    done = env.step(torch.zeros(1, 20, 1, 1)).done
    assert done.any() and not done.all()  # a chance of .1 each; the seeds are fixed


def test_several_learners_in_a_task_of_several_agents_are_refused() -> None:
    with pytest.raises(ValueError, match="toy has 2"):
        make_copies(Toy, seeds=[0], copies=1, learners=2)


def test_a_copy_has_the_same_seed_whoever_else_is_there() -> None:
    # order: member, learner, copy. Member 7's seeds are the last ones, and a prefix of those with more copies
    assert copy_seeds([3, 7], 2, 2)[4:] == copy_seeds([7], 2, 2)
    assert copy_seeds([7], 5)[:2] == copy_seeds([7], 2)
    many = copy_seeds(range(20), 8, 4)
    assert len(set(many)) == len(many) and all(0 <= seed < 2**31 for seed in many)


def test_without_an_exact_state_loading_says_so_and_the_transition_is_lost() -> None:
    env = toy(exact=False)
    env.reset()
    for _ in range(2):
        before = env.step(zeros(env))
    state = env.state_dict()
    other = toy(seeds=(9,), exact=False)
    other.load_state_dict(state)
    assert other.events() == ["its state cannot be saved: every copy begins a new episode"]
    step = other.step(zeros(env))
    assert step.lost is not None and step.lost.all() and step.done.all()
    assert not step.terminated.any() and not step.reward.any()
    assert torch.equal(step.next_obs, before.obs)
    assert step.obs[0, 0, 0, 0] == 0
    step = other.step(zeros(env))
    assert step.lost is None and step.obs[0, 0, 0, 0] == 1


def duel(exact: bool = True) -> CopiesEnv:
    """P = 2, E = 3."""
    return make_copies(functools.partial(Duel, exact=exact), seeds=[0, 1], copies=3)


def stay(env: CopiesEnv) -> torch.Tensor:
    return torch.zeros(env.members, env.spec.n_agents, env.copies, dtype=torch.int64)


@pytest.mark.parametrize("exact", [True, False])
def test_copies_with_masks_and_states_keep_the_contract(exact: bool) -> None:
    check_env(lambda seeds: make_copies(functools.partial(Duel, exact=exact), seeds=seeds, copies=2))


def test_masks_and_states_are_those_of_the_moment_and_of_the_true_successor() -> None:
    env = duel()
    view = env.start()
    even, odd = [[True, True, False], [True, False, True]], [[True, False, False]] * 2
    assert view.avail is not None and view.avail.shape == (2, 2, 3, 3) and view.avail[1, :, 2].tolist() == even
    assert view.state is not None and view.state.shape == (2, 3, 2)
    assert torch.equal(view.state[..., 1], view.obs[:, 1, :, 0])  # the number that agent 1 sees, of the same copy
    for time in (1, 2, 3):
        step = env.step(stay(env))
        assert step.avail is not None and step.state is not None
        assert step.avail[0, 0, 0].tolist() == (odd if time % 2 else even)[0]
        assert torch.equal(step.next_avail, step.avail) and torch.equal(step.next_state, step.state)
        assert (step.state[..., 0] == time).all()
        if time == 3:  # agent 1 left at step 2: whatever it might do means nothing, so nothing of its own is forbidden
            assert step.avail[0, 1, 0].tolist() == [True, True, True]
    step = env.step(stay(env))
    assert (step.next_state[..., 0] == 4).all() and (step.state[..., 0] == 0).all()
    assert step.next_avail[0, 0, 0].tolist() == even[0] and step.avail[0, :, 0].tolist() == even
    assert torch.equal(env.avail(), step.avail) and torch.equal(env.state(), step.state)


def test_outcomes_are_told_at_an_episodes_end_and_nowhere_else() -> None:
    env = duel()
    env.reset()
    drawn = []
    for _ in range(4):
        step = env.step(stay(env))
        drawn.append(step.next_state[..., 1])
        assert step.outcome.shape == (2, 3, 2)
        assert step.done.all() or not step.outcome.any()
    low = torch.stack(drawn) < 0.5  # [4, P, E]
    assert torch.equal(step.outcome[..., 0], low[-1].float()) and torch.equal(step.outcome[..., 1], low.sum(0).float())


def test_masks_and_states_answer_the_same_after_a_load_and_go_on_in_equal_bits() -> None:
    env, other = duel(), duel()
    env.reset()
    env.step(stay(env))
    other.load_state_dict(env.state_dict())
    assert torch.equal(env.avail(), other.avail()) and torch.equal(env.state(), other.state())
    for _ in range(9):
        for x, y in zip(env.step(stay(env)), other.step(stay(other)), strict=True):
            assert x is y is None or torch.equal(x, y)


def test_a_lost_transition_stays_where_it_was_in_masks_and_states_too() -> None:
    env, other = duel(exact=False), duel(exact=False)
    env.reset()
    before = env.step(stay(env))  # odd: little is available, and the next episode's first moment is even
    other.load_state_dict(env.state_dict())
    step = other.step(stay(other))
    assert step.lost is not None and step.lost.all()
    assert torch.equal(step.next_avail, before.avail) and torch.equal(step.next_state, before.state)
    assert not torch.equal(step.avail, before.avail) and (step.state[..., 0] == 0).all()
    assert not step.outcome.any()


def test_independent_learners_have_masks_but_no_state_or_outcome_in_common() -> None:
    class Lone(Duel):
        """The first agent of ``Duel``."""

        def __init__(self, seed: int) -> None:
            super().__init__(seed)
            self.spec = dataclasses.replace(self.spec, agents=("a",), obs_sizes=(1,), action_sizes=(2,))

        def observe(self) -> list[np.ndarray]:
            return super().observe()[:1]

        def step(self, action: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, bool]:
            obs, reward, terminated, truncated = super().step(action)
            return obs, reward[:1], terminated[:1], truncated

        def avail(self) -> np.ndarray:
            return super().avail()[:1, :2]

    check_env(lambda seeds: make_copies(Lone, seeds=seeds, copies=2, learners=3))
    env = make_copies(Lone, seeds=[0], copies=2, learners=3)
    assert env.spec.state_size == 0 and env.spec.outcomes == () and env.spec.masked
    view = env.start()
    assert view.state is None and view.avail is not None and view.avail.shape == (1, 3, 2, 2)
    step = env.step(stay(env))
    assert step.state is step.next_state is step.outcome is None


def test_rendering_picks_the_copy() -> None:
    env = toy(seeds=(0, 1), copies=2)
    env.reset()
    pool = env.pool
    assert isinstance(pool, LocalPool)
    pool.copies[3].step(np.zeros((2, 1)))  # only the last copy of the last member moves
    assert [int(env.render(p, e).max()) for p in (0, 1) for e in (0, 1)] == [0, 0, 0, 1]


@pytest.mark.parametrize("make", [np.random.default_rng, np.random.RandomState])
def test_generators_go_on_exactly_from_their_saved_state(make: type) -> None:
    one, two = make(1), make(2)
    one.normal(size=3)  # RandomState keeps half of a pair of normal numbers: that counts as well
    state = generator_state(one)
    load_generator(two, state)
    assert one.normal(size=5).tolist() == two.normal(size=5).tolist()
    load_generator(two, state)  # the first load has not eaten the state
    assert two.normal(size=5).tolist() != one.normal(size=5).tolist()


def test_a_state_shares_no_list_with_the_environment_that_gave_or_takes_it() -> None:
    agents = ["a", "b"]
    saved = pack({"agents": agents})
    agents.remove("a")  # as an environment does whose agent leaves
    given = unpack(saved)["agents"]
    assert given == ["a", "b"]
    given.remove("b")
    assert saved == {"agents": ["a", "b"]}


@pytest.mark.parametrize("id", ["gym/CartPole-v1", "mpe/simple_spread_v3", "probe/policy"])
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"copies": 0}, "copies: expected 1 or more, got 0"),
        ({"seeds": []}, "seeds: expected 1 or more, got 0"),
        ({"workers": -1}, "workers: expected 0 or more, got -1"),
    ],
)
def test_numbers_of_nothing_are_refused(id: str, numbers: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_env(id, **numbers)
