"""MinAtar: the contract, equal spaces, exact restore within an episode, and what MinAtar itself gets wrong."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.envs import list_environments, make_env
from marl.envs.check import check_env
from marl.envs.minatar import CHANNELS, GAMES, MinAtarCopy, MinAtarOptions
from marl.lifelong.abreast import Abreast
from marl.types import UserError

needs_minatar = pytest.mark.skipif(find_spec("minatar") is None, reason="the extra `minatar` is not installed")
ALL = pytest.mark.parametrize("name", GAMES)
RIGHT, FIRE = 3, 5


def copy(name: str = "Breakout", seed: int = 0, **options: Any) -> MinAtarCopy:
    return MinAtarCopy(seed, f"minatar/{name}", GAMES[name], MinAtarOptions(**options))


def presses(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(6, size=count).tolist()


def act(game: MinAtarCopy, action: int) -> tuple[Any, ...]:
    """One step, and a new episode where one ended."""
    obs, reward, terminated, truncated = game.step(np.array([action]))
    answer = obs[0].tobytes(), float(reward[0]), bool(terminated[0]), truncated
    return (*answer, game.reset()[0].tobytes()) if terminated[0] or truncated else answer


# Without the package.


def test_the_games_are_listed_whether_or_not_minatar_is_there() -> None:
    assert [id for id in list_environments() if id.startswith("minatar/")] == [f"minatar/{name}" for name in GAMES]


def test_without_minatar_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minatar", None)
    with pytest.raises(UserError, match=r"^minatar/\* needs MinAtar: pip install .*\[minatar\]'$"):
        make_env("minatar/Breakout")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Breakot", {}, "no environment 'minatar/Breakot'; did you mean 'Breakout'"),
        ("Breakout", {"sticky": 1.5}, "sticky: expected a number from 0 to 1, got 1.5"),
        ("Breakout", {"max_steps": 0}, "max_steps: expected 1 or more, got 0"),
        ("Breakout", {"ramping": True}, "no option 'ramping' of minatar/Breakout; did you mean 'difficulty_ramping'"),
    ],
)
def test_mistakes_are_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_env(f"minatar/{name}", options=options)
    assert "\n" not in str(caught.value)


# With it.


@needs_minatar
@ALL
def test_a_game_keeps_the_contract(name: str) -> None:
    check_env(lambda seeds: make_env(f"minatar/{name}", seeds=seeds, copies=2, options={"max_steps": 23}), steps=60)


@needs_minatar
def test_independent_learners_and_harder_games_keep_it_too() -> None:
    options = {"max_steps": 9, "difficulty_ramping": True, "sticky": 0.5}
    check_env(lambda seeds: make_env("minatar/Seaquest", seeds=seeds, agents=2, options=options), steps=25)


@needs_minatar
def test_all_games_have_equal_spaces_so_that_one_network_plays_them_all() -> None:
    env = Abreast([make_env(f"minatar/{name}") for name in GAMES])
    spec = env.spec
    assert (spec.obs_sizes, spec.action_sizes, spec.pixels, spec.bytes) == ((1000,), (6,), (10, 10, 10), True)
    boards = env.reset().view(len(GAMES), CHANNELS, 100)
    lit = {name: int(board.any(-1).nonzero().max()) for name, board in zip(GAMES, boards, strict=True)}
    assert lit["Seaquest"] <= 9 and lit["Breakout"] <= 3 and lit["Freeway"] <= 6, "channels beyond a game's are dark"
    assert set(boards.unique().tolist()) == {0.0, 255.0}


@needs_minatar
@ALL
def test_steps_are_minatars_own(name: str) -> None:
    import minatar

    ours, theirs = copy(name, seed=4, sticky=0.0), minatar.Environment(GAMES[name], 0.0, False)
    theirs.seed(4)
    theirs.reset()
    ours.reset()
    for action in presses(1, 300):
        obs, reward, over, _ = ours.step(np.array([action]))
        expected = theirs.act(action)
        assert (float(reward[0]), bool(over[0])) == expected
        board = obs[0].reshape(CHANNELS, 10, 10).transpose(1, 2, 0)[..., : theirs.n_channels]
        assert np.array_equal(board > 0, theirs.state())
        if expected[1]:
            theirs.reset()
            ours.reset()


@needs_minatar
@settings(max_examples=8)
@given(
    seed=st.integers(0, 1000),
    moment=st.integers(0, 150),
    sticky=st.sampled_from([0.0, 0.1, 0.9]),
    ramping=st.booleans(),
)
@ALL
def test_a_restored_game_goes_on_in_equal_bits(name: str, seed: int, moment: int, sticky: float, ramping: bool) -> None:
    options = {"sticky": sticky, "difficulty_ramping": ramping, "max_steps": 400}
    first, other = copy(name, seed, **options), copy(name, seed + 1, **options)
    first.reset()
    other.reset()
    for action in presses(seed, moment):
        act(first, action)
        act(other, action)
    state = first.state_dict()
    wanted = [act(first, action) for action in presses(seed + 1, 150)]
    other.load_state_dict(state)
    assert [act(other, action) for action in presses(seed + 1, 150)] == wanted
    first.load_state_dict(state)
    assert [act(first, action) for action in presses(seed + 1, 150)] == wanted


@needs_minatar
def test_the_last_episodes_action_does_not_go_on_in_the_next_one() -> None:
    """With a chance of 1 nothing that is asked for is ever done: the paddle stays, in every episode."""
    import minatar

    game = copy(sticky=1.0)
    game.reset()
    game.world.last_action = RIGHT
    game.reset()
    game.step(np.array([FIRE]))
    assert game.world.env.pos == 4
    theirs = minatar.Environment("breakout", 1.0, False)
    theirs.last_action = RIGHT
    theirs.reset()
    theirs.act(FIRE)
    assert theirs.env.pos == 5, "MinAtar mended it: then the line in reset() can go"


@needs_minatar
def test_difficulty_is_constant_unless_asked_for() -> None:
    assert copy("Asterix").world.env.ramping is False and "constant difficulty" in copy("Asterix").spec.rules
    assert copy("Asterix", difficulty_ramping=True).world.env.ramping is True


@needs_minatar
def test_the_time_limit_truncates_and_does_not_terminate() -> None:
    game = copy("Freeway", max_steps=3)
    game.reset()
    ends = [game.step(np.array([0]))[2:] for _ in range(3)]
    assert [(bool(over[0]), cut) for over, cut in ends] == [(False, False), (False, False), (False, True)]


@needs_minatar
def test_a_board_can_be_drawn() -> None:
    env = make_env("minatar/Breakout", copies=2)
    env.reset()
    env.step(torch.zeros(1, 1, 2, dtype=torch.int64))  # at first the ball is where it was
    picture = env.render(copy=1)
    assert picture.shape == (320, 320, 3) and picture.dtype == "uint8"
    assert len(set(map(tuple, picture.reshape(-1, 3).tolist()))) >= 4, "nothing, paddle, ball, bricks"


@needs_minatar
def test_worker_processes_play_the_same_and_take_and_give_states_with_their_uint32_generators() -> None:
    here, there = (make_env("minatar/Asterix", copies=2, workers=w) for w in (0, 1))
    try:
        assert torch.equal(here.reset(), there.reset())
        for action in presses(0, 5):
            a, b = (env.step(torch.full((1, 1, 2), action)) for env in (here, there))
            assert torch.equal(a.obs, b.obs) and torch.equal(a.reward, b.reward)
        saved = there.state_dict()
        past = [env.step(torch.full((1, 1, 2), 3)).obs for env in (here, there)]
        there.load_state_dict(saved)
        again = there.step(torch.full((1, 1, 2), 3)).obs
        assert torch.equal(past[0], past[1]) and torch.equal(past[1], again)
    finally:
        there.close()
